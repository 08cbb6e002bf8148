"""An experiment: which runs, over which seeds. What `experiments/<name>/config.py` holds."""

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_jax.adapters import Full
from cl_jax.config import check_fields, child, config, flatten, grid, replace, static
from cl_jax.errors import UserError
from cl_jax.model import Model
from cl_jax.models.mlp import mlp
from cl_jax.optimizers import Adam
from cl_jax.schedules import TaskDecay
from cl_jax.tasks import Permuted
from cl_jax.tasks.stream import EXPOSURES, SCENARIOS, TRAINING_MASKS


@config
class Mlp:
    """See `cl_jax.models.mlp.mlp`."""

    hidden: tuple[int, ...] = static((100, 100), low=1)

    def build(self, num_outputs: int) -> Model:
        return mlp(self.hidden, num_outputs)


@config
class Run:
    """One configuration: everything but the seed.

    Attributes:
        data: name of the source, see `cl_jax.sources.load`.
        validation: share of the training rows held out for choosing hyper-parameters.
        stream: Permuted, Rotated, Split, or a config of your own with `build(data) -> Stream`.
        scenario: "domain", "task" or "class" (van de Ven and Tolias 2019).
        training_mask: which outputs compete in class-incremental training: "seen", "all" or "current".
        exposure: "current" task only; "seen" or "all": joint training on the tasks so far, or on all.
        methods: by name, in the order of application; empty is fine-tuning.
        steps: training steps a task. batch_size: new examples a step.
    """

    data: str = static("digits")
    validation: float = static(0.1)
    stream: Any = child(Permuted)
    scenario: str = static("domain", choices=SCENARIOS)
    training_mask: str = static("seen", choices=TRAINING_MASKS)
    exposure: str = static("current", choices=EXPOSURES)
    model: Any = child(Mlp)
    optimizer: Any = child(Adam)
    schedule: Any = child(TaskDecay)
    adapter: Any = child(Full)
    methods: dict[str, Any] = child(dict)
    steps: int = static(500, low=1)
    batch_size: int = static(32, low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the comparison: a label and a point of its grid."""

    label: str
    run: Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A comparison: entries times seeds."""

    name: str
    description: str
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One training run: an entry and a seed."""

    entry: Entry
    seed: int
    id: str  # content address: 12 hexadecimal digits


def sweep(label: str, run: Run, axes: Mapping[str, Sequence[Any]] | None = None) -> tuple[Entry, ...]:
    """Entries for all combinations of `{"methods.ewc.strength": [1, 10, 100]}`."""
    points = grid(**{name.replace(".", "__"): values for name, values in (axes or {}).items()})
    return tuple(Entry(label=label, run=replace(run, point)) for point in points)


def stream_label(run: Run) -> str:
    """`permuted-digits/domain`."""
    return f"{type(run.stream).__name__.lower()}-{run.data.partition(':')[2] or run.data}/{run.scenario}"


def members(experiment: Experiment, data_sha256: Mapping[str, str]) -> list[Member]:
    """Entries times seeds; the id addresses the configuration, the seed and the data, not the label's order."""
    made = []
    for entry in experiment.entries:
        for seed in experiment.seeds:
            content = {**hyper_parameters(entry.run), "seed": seed, "data": data_sha256[entry.run.data]}
            content["label"] = entry.label
            text = json.dumps(content, sort_keys=True, allow_nan=False)
            made.append(Member(entry=entry, seed=seed, id=hashlib.sha256(text.encode()).hexdigest()[:12]))
    return made


def hyper_parameters(run: Run) -> dict[str, Any]:
    """Every hyper-parameter by its dotted path; traced numbers as floats, so that 1 and 1.0 are one member."""
    flat = flatten(run)
    return {name: float(value) if isinstance(value, float) else value for name, value in flat.items()}


def load_experiment(path: Path) -> Experiment:
    """Reads `<path>/config.py` (or a .py file) and its `experiment`.

    Raises:
        UserError: no such file, an error in it, or no `Experiment` named `experiment` in it.
    """
    file = path / "config.py" if path.is_dir() else path
    if not file.is_file():
        near = sorted(p.parent.name for p in path.parent.glob("*/config.py")) if path.parent.is_dir() else []
        hint = f"; beside it are {', '.join(near)}" if near else ""
        raise UserError(f"no experiment at {path}: expected a folder with a config.py, or a .py file{hint}")
    spec = importlib.util.spec_from_file_location(f"cl_jax_experiment_{file.parent.name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        line = error.__traceback__
        while line is not None and line.tb_next is not None:
            line = line.tb_next
        where = f", line {line.tb_lineno}" if line is not None else ""
        raise UserError(f"{file}{where}: {type(error).__name__}: {error}") from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{file}: expected `experiment = Experiment(...)`, found {experiment!r}")
    return experiment


def check_experiment(experiment: Experiment) -> None:
    """Everything about an experiment that can be wrong whatever the data. Raises UserError."""
    if not experiment.entries or not experiment.seeds:
        raise UserError(f"experiment {experiment.name!r}: needs at least one entry and one seed")
    seen: set[str] = set()
    for entry in experiment.entries:
        check_fields(entry.run, entry.label)
        key = json.dumps({**hyper_parameters(entry.run), "label": entry.label}, sort_keys=True)
        if key in seen:
            raise UserError(f"{entry.label}: the same configuration twice; remove one or give it another label")
        seen.add(key)

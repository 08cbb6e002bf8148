"""An experiment: which runs, over which seeds. What `experiments/<name>/config.py` holds."""

import dataclasses
import hashlib
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_jax.adapters import ADAPTERS, Full
from cl_jax.config import LARGEST_INT, check_fields, child, config, flatten, grid, replace, static
from cl_jax.errors import UserError, did_you_mean
from cl_jax.methods import METHODS
from cl_jax.model import Model
from cl_jax.models.mlp import mlp
from cl_jax.optimizers import OPTIMIZERS, Adam
from cl_jax.schedules import SCHEDULES, TaskDecay
from cl_jax.tasks import STREAMS, Permuted
from cl_jax.tasks.stream import EXPOSURES, SCENARIOS, TRAINING_MASKS


@config
class Mlp:
    """Multi-layer perceptron: dense layers of these widths with ReLU between them; see `cl_jax.models.mlp`."""

    hidden: tuple[int, ...] = static((100, 100), low=1)

    def build(self, num_outputs: int) -> Model:
        return mlp(self.hidden, num_outputs)


MODELS: dict[str, Any] = {"mlp": Mlp}
# What may stand in each field of a run: the parts of the package by name, and what any part there has to have.
_PARTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "stream": (STREAMS, ("build", "num_tasks")),
    "model": (MODELS, ("build",)),
    "optimizer": (OPTIMIZERS, ("build", "learning_rate", "reset")),
    "schedule": (SCHEDULES, ("value",)),
    "adapter": (ADAPTERS, ("build", "check")),
    "methods": (METHODS, ("build",)),
}


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
    """Entries for all combinations of `{"methods.ewc.strength": [1, 10, 100]}`.

    Raises:
        UserError: an axis that is not a hyper-parameter of the run, or not a list of values.
    """
    for path, values in (axes or {}).items():
        if isinstance(values, (str, bytes)) or not hasattr(values, "__len__") or len(values) == 0:
            raise UserError(f"{label}: axis {path!r} expects a list of at least one value, was given {values!r}")
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
    if not file.is_file() or file.suffix != ".py":
        raise UserError(_no_experiment(path))
    spec = importlib.util.spec_from_file_location(f"cl_jax_experiment_{file.parent.name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        if isinstance(error, SyntaxError) and error.filename == str(file):
            lines.append(error.lineno)
        where = f"{file}, line {lines[-1]}" if lines else f"{file}"
        if isinstance(error, UserError):
            raise UserError(f"{where}: {error}") from error
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(f"{where}: {type(error).__name__}: {text}{_meant(error, module)}") from error
    if not hasattr(module, "experiment"):
        made = [name for name, value in vars(module).items() if isinstance(value, Experiment)]
        hint = f" Rename {made[0]!r} to 'experiment'." if made else did_you_mean("experiment", vars(module))
        raise UserError(f"{file}: has no `experiment`; give it a line `experiment = Experiment(...)`.{hint}")
    experiment = module.experiment
    if not isinstance(experiment, Experiment):
        raise UserError(f"{file}: expected `experiment = Experiment(...)`, found {experiment!r:.200}")
    return experiment


def _no_experiment(path: Path) -> str:
    # Names of the experiments beside the path, where the process runs, and in the checkout that this package is of.
    places = (path.parent, Path("experiments"), Path(__file__).parents[1] / "experiments")
    known: dict[str, Path] = {}
    for place in places:
        for file in sorted(place.glob("*/config.py")) if place.is_dir() else ():
            known.setdefault(file.parent.name, file.parent)
    found = "there is nothing"
    if path.is_dir():
        found = "that folder has no config.py"
    elif path.exists():
        found = "that is not a .py file"
    hint = did_you_mean(path.name, known)
    for name, folder in known.items():
        hint = hint.replace(f"{name!r}", f"'{folder}'")
    names = f"; known: {', '.join(known)}" if known else ""
    return f"no experiment at {path}: {found}; expected a folder with a config.py, or a .py file{names}.{hint}"


def _meant(error: BaseException, module: Any) -> str:
    """The nearest name to one that Python did not find."""
    wanted = re.search(r"cannot import name '(\w+)'", str(error)) if isinstance(error, ImportError) else None
    if wanted is not None and isinstance(error, ImportError):
        return did_you_mean(wanted[1], dir(sys.modules.get(error.name or "")))
    if isinstance(error, AttributeError) and error.name:
        return did_you_mean(error.name, dir(error.obj))
    if isinstance(error, NameError) and error.name:
        return did_you_mean(error.name, vars(module))
    return ""


def check_experiment(experiment: Experiment) -> None:
    """Everything about an experiment that can be wrong whatever the data. Raises UserError."""
    name = f"experiment {experiment.name!r}"
    for field in ("name", "description"):
        if not isinstance(getattr(experiment, field), str):
            raise UserError(f"{name}: {field} expects a text, was given {getattr(experiment, field)!r}")
    if not isinstance(experiment.entries, (tuple, list)) or not experiment.entries:
        raise UserError(f"{name}: entries expects a tuple of at least one Entry, was given {experiment.entries!r:.200}")
    _check_seeds(experiment.seeds, name)
    seen: set[str] = set()
    for entry in experiment.entries:
        if not isinstance(entry, Entry):
            raise UserError(
                f"{name}: entries expects Entry values, found {entry!r:.100}; `sweep` gives several, so write a star "
                f"before it: (*sweep(...), *sweep(...))"
            )
        if not isinstance(entry.label, str) or not entry.label.strip():
            raise UserError(f"{name}: the label of an entry expects a text, was given {entry.label!r}")
        check_parts(entry.run, entry.label)
        key = json.dumps({**hyper_parameters(entry.run), "label": entry.label}, sort_keys=True)
        if key in seen:
            raise UserError(f"{entry.label}: the same configuration twice; remove one or give it another label")
        seen.add(key)


def _check_seeds(seeds: Any, name: str) -> None:
    if not isinstance(seeds, (tuple, list, range)) or len(seeds) == 0:
        raise UserError(f"{name}: seeds expects a tuple of at least one whole number, was given {seeds!r}")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_INT:
            raise UserError(f"{name}: seeds are whole numbers from 0 to {LARGEST_INT}, was given {seed!r}")
    twice = sorted({seed for seed in seeds if list(seeds).count(seed) > 1})
    if twice:
        raise UserError(f"{name}: seeds {', '.join(map(str, twice))} given more than once; remove the repeats")


def check_parts(run: Any, where: str) -> None:
    """Every field of a run: its kind of part, then types, ranges and names within. Raises UserError."""
    if not isinstance(run, Run):
        raise UserError(f"{where}: expected a Run, was given {run!r:.200}")
    if not isinstance(run.methods, Mapping):
        raise UserError(f"{where}.methods: expected a dict such as {{'ewc': Ewc()}}, was given {run.methods!r:.200}")
    for name in run.methods:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*", name):
            raise UserError(f"{where}.methods: a method's name expects letters, digits, - and _, was given {name!r}")
    for field in _PARTS:
        value = getattr(run, field)
        for path, part in value.items() if field == "methods" else [("", value)]:
            _check_part(part, field, f"{where}.{field}.{path}".removesuffix("."))
    check_fields(run, where)
    if not 0 < run.validation < 1:
        raise UserError(f"{where}.validation: was given {run.validation}; allowed are shares between 0 and 1")
    if run.training_mask != "seen" and run.scenario != "class":
        raise UserError(
            f"{where}.training_mask: was given {run.training_mask!r} in scenario {run.scenario!r}, where it changes "
            f"nothing; leave it out, or use scenario 'class'"
        )


def _check_part(part: Any, field: str, where: str) -> None:
    table, needed = _PARTS[field]
    classes = ", ".join(f"{cls.__name__}()" for cls in table.values())
    expected = f"expected a config such as {classes}"
    if isinstance(part, type):
        raise UserError(f"{where}: {expected}, was given the class {part.__name__}; write {part.__name__}()")
    if isinstance(part, str):
        hint = did_you_mean(part, table)
        for name, cls in table.items():
            hint = hint.replace(f"{name!r}", f"{cls.__name__}()")
        raise UserError(f"{where}: {expected}, was given the text {part!r}.{hint}")
    for other, (others, _) in _PARTS.items():
        if other != field and type(part) in others.values():
            raise UserError(f"{where}: {expected}, was given {type(part).__name__}(), which belongs in {other!r}")
    missing = [name for name in needed if not hasattr(part, name)]
    if missing:
        raise UserError(
            f"{where}: {expected}, or one of your own with {', '.join(needed)}; was given {part!r:.200} of type "
            f"{type(part).__name__}, which has no {', '.join(missing)}"
        )

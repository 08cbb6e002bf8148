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

from cl_jax.adapters import Full
from cl_jax.base import BASES
from cl_jax.config import child, config, flatten, grid, replace, static
from cl_jax.errors import UserError, did_you_mean, unknown
from cl_jax.models import MODELS as MODELS
from cl_jax.models import Cnn as Cnn
from cl_jax.models import Decoder as Decoder
from cl_jax.models import Dropout as Dropout
from cl_jax.models import Encoder as Encoder
from cl_jax.models import Mlp as Mlp
from cl_jax.models import Resnet18 as Resnet18
from cl_jax.optimizers import Adam
from cl_jax.schedules import TaskDecay
from cl_jax.tasks import Permuted, Sharp
from cl_jax.tasks.stream import EXPOSURES, SCENARIOS, TRAINING_MASKS


@config
class Run:
    """One configuration: everything but the seed.

    Attributes:
        data: name of the source, see `cl_jax.sources.load`.
        validation: share of the training rows held out for choosing hyper-parameters.
        stream: one of `cl_jax.tasks.STREAMS`, or a config of your own with `num_tasks` and `build(data) -> Stream`.
        scenario: "domain", "task" or "class" (van de Ven and Tolias 2019).
        training_mask: which outputs compete in class-incremental training: "seen", "all" or "current".
        exposure: "current" task only; "seen" or "all": joint training on the tasks so far, or on all.
        boundary: how one task passes into the next, at once or gradually, see `cl_jax.tasks.boundaries`.
        base: what stands for the first task, see `cl_jax.base`; None: random weights, and the first task is trained as
            the others are.
        methods: by name, in the order of application; empty is fine-tuning.
        steps: training steps a task. batch_size: new examples a step.
        passes: in place of steps, over the examples of each task: one is online learning, see `cl_jax.passes`.
        recent: after a task evaluate only this many newest tasks, all of them before the first and after the last: the
            rest of R is NaN, and with 1 average accuracy, learning accuracy and backward transfer are what they were.
        diagnostics: names of `cl_jax.diagnostics.DIAGNOSTICS`, measured at every task boundary.
    """

    data: str = static("digits")
    validation: float = static(0.1)
    stream: Any = child(Permuted)
    scenario: str = static("domain", choices=SCENARIOS)
    training_mask: str = static("seen", choices=TRAINING_MASKS)
    exposure: str = static("current", choices=EXPOSURES)
    boundary: Any = child(Sharp, later=True)
    model: Any = child(Mlp)
    optimizer: Any = child(Adam)
    schedule: Any = child(TaskDecay)
    adapter: Any = child(Full)
    methods: dict[str, Any] = child(dict)
    steps: int = static(500, low=1)
    batch_size: int = static(32, low=1)
    passes: int | None = static(None, low=1, later=True)
    recent: int | None = static(None, low=1, later=True)
    diagnostics: tuple[str, ...] = static((), later=True)
    base: Any = child(optional=tuple(BASES.values()), later=True)

    def steps_in(self, task: int) -> int:
        """Training steps of a task, from 0."""
        return 0 if task == 0 and self.base is not None else self.steps


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
    """`permuted-digits/domain`; of files and folders the last name, of a TFDS set its name, of text its domains.

    What a stream is made of stands before it with its numbers, since other numbers are another problem and no setting
    to choose: `fuzzy0.5-noisylabels0.2-split-digits/class`.
    """
    kind, _, rest = run.data.partition(":")
    data = Path(rest).name if kind == "idx" else rest
    if kind == "text":
        data = rest.partition("?")[0]
    if kind == "labelled":
        data = Path(rest.partition("?")[0]).name
    parts = [] if isinstance(run.boundary, Sharp) else [run.boundary]
    stream = run.stream
    while stream is not None:
        parts.append(stream)
        stream = getattr(stream, "stream", None)
    return f"{'-'.join(map(_kind, parts))}-{data or kind}/{run.scenario}"


def _kind(part: Any) -> str:
    fields = dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()
    numbers = [getattr(part, field.name) for field in fields if field.metadata.get("role") == "traced"]
    return type(part).__name__.lower() + "-".join(f"{number:g}" for number in numbers)


def members(experiment: Experiment, data_sha256: Mapping[str, str]) -> list[Member]:
    """Entries times seeds; the id addresses the configuration, the seed and the data, not the label's order."""
    made = []
    for entry in experiment.entries:
        for seed in experiment.seeds:
            made.append(Member(entry=entry, seed=seed, id=address(entry, seed, data_sha256[entry.run.data])))
    return made


def address(entry: Entry, seed: int, data_sha256: str) -> str:
    """12 hexadecimal digits of everything that a member's results depend on, and of its label."""
    return address_of({**hyper_parameters(entry.run), "seed": seed, "data": data_sha256, "label": entry.label})


def address_of(content: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of names and values."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def hyper_parameters(run: Run) -> dict[str, Any]:
    """Every hyper-parameter by its dotted path; traced numbers as floats, so that 1 and 1.0 are one member."""
    flat = flatten(run)
    return {name: float(value) if isinstance(value, float) else value for name, value in flat.items()}


def load_experiment(path: Path, size: str | None = None) -> Experiment:
    """Reads `<path>/config.py` (or a .py file) and its `experiment`.

    Args:
        size: one of its `sizes`, a dict of experiments by name, in place of `experiment`.

    Raises:
        UserError: no such file, an error in it, no `Experiment` named `experiment` in it, or no such size.
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
        raise UserError(f"{where}: {type(error).__name__}: {text}.{_meant(error, module)}") from error
    if not hasattr(module, "experiment"):
        made = [name for name, value in vars(module).items() if isinstance(value, Experiment)]
        hint = f" Rename {made[0]!r} to 'experiment'." if made else did_you_mean("experiment", vars(module))
        raise UserError(f"{file}: has no `experiment`; give it a line `experiment = Experiment(...)`.{hint}")
    experiment = module.experiment
    if size is not None:
        sizes = getattr(module, "sizes", None)
        if not isinstance(sizes, Mapping):
            raise UserError(f"--size {size}: {file} comes in one size only, it has no `sizes`; leave --size out")
        if size not in sizes:
            raise unknown("--size", size, sizes)
        experiment = sizes[size]
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

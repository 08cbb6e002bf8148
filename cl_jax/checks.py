"""What is wrong with an experiment, by itself and on its data: shapes are derived, nothing is compiled."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cl_jax import program
from cl_jax.adapters import ADAPTERS
from cl_jax.adapters.adapter import Adapter
from cl_jax.boundary_checks import check_boundary
from cl_jax.config import LARGEST_INT, check_fields
from cl_jax.data import Data
from cl_jax.diagnostics import DIAGNOSTICS
from cl_jax.errors import UserError, did_you_mean, unknown
from cl_jax.experiment import MODELS, Entry, Experiment, Run, hyper_parameters
from cl_jax.kind_checks import check_kind, check_stream
from cl_jax.methods import METHODS
from cl_jax.model import Model
from cl_jax.open_weights import check_weights
from cl_jax.optimizers import OPTIMIZERS, Sgd
from cl_jax.per_example import EXACT_OF_TEXT
from cl_jax.schedules import SCHEDULES
from cl_jax.tasks import BOUNDARIES, STREAMS
from cl_jax.tasks.stream import View, smallest_task

# What may stand in each field of a run: the parts of the package by name, and what any part there has to have.
_PARTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "stream": (STREAMS, ("build", "num_tasks")),
    "boundary": (BOUNDARIES, ("shown",)),
    "model": (MODELS, ("build",)),
    "optimizer": (OPTIMIZERS, ("build", "learning_rate", "reset")),
    "schedule": (SCHEDULES, ("value",)),
    "adapter": (ADAPTERS, ("build", "check")),
    "methods": (METHODS, ("build",)),
}


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
    _check_diagnostics(run.diagnostics, f"{where}.diagnostics")
    if not 0 < run.validation < 1:
        raise UserError(f"{where}.validation: was given {run.validation}; allowed are shares between 0 and 1")
    if run.exposure == "all" and run.scenario == "class" and run.training_mask != "all":
        raise UserError(
            f"{where}.exposure: was given 'all' in scenario 'class', where training_mask {run.training_mask!r} leaves "
            f"out the right outputs of later tasks: use training_mask='all'"
        )
    if run.training_mask != "seen" and run.scenario != "class":
        raise UserError(
            f"{where}.training_mask: was given {run.training_mask!r} in scenario {run.scenario!r}, where it changes "
            f"nothing; leave it out, or use scenario 'class'"
        )


def _check_diagnostics(names: Any, where: str) -> None:
    if not isinstance(names, tuple):
        raise UserError(f"{where}: expected a tuple of names such as ('plasticity',), was given {names!r:.200}")
    for name in names:
        if name not in DIAGNOSTICS:
            raise unknown(f"name in {where}:", name, DIAGNOSTICS)
    if len(set(names)) < len(names):
        raise UserError(f"{where}: was given {', '.join(names)}; name each once")


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
    if field == "stream" and hasattr(part, "stream"):
        _check_part(part.stream, field, f"{where}.stream")
    missing = [name for name in needed if not hasattr(part, name)]
    if missing:
        raise UserError(
            f"{where}: {expected}, or one of your own with {', '.join(needed)}; was given {part!r:.200} of type "
            f"{type(part).__name__}, which has no {', '.join(missing)}"
        )


def check_runs(entries: Sequence[Entry], data: Mapping[tuple[str, float], Data]) -> None:
    """Checks every entry; those that differ in traced numbers only are one. Raises UserError."""
    checked = set()
    for entry in entries:
        structure = jax.tree.structure(entry.run)
        if structure not in checked:
            check_run(entry.run, data[entry.run.data, entry.run.validation], entry.label)
            checked.add(structure)


def check_run(run: Run, data: Data, where: str) -> None:
    """What is wrong with a configuration on this data, before anything compiles.

    Raises:
        UserError: its message starts with `where`.
    """
    try:
        check_stream(run, data)
        view = program.view_of(run, data)
        check_kind(run, view, data)
        _check_tasks(run, view, data)
        check_boundary(run, data)
        check_weights(run, data)
        model = run.model.build(view.num_outputs)
        run.adapter.check(jax.eval_shape(model.init, jax.random.key(0), program.example_of(data)))
        _check_features(run, model)
        _check_methods(run, view, data)
        _check_proximal(run)
        _check_with_adapter(run)
        program.state_bytes(run, data)  # traces what makes the first state, so that its own complaints come now
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_tasks(run: Run, view: View, data: Data) -> None:
    smallest = smallest_task(view.stream, data, "train")
    if run.batch_size > smallest:
        raise UserError(
            f"batch_size {run.batch_size} is larger than the smallest task, {smallest} training examples: lower "
            f"batch_size or stream.num_tasks"
        )
    for split in ("validation", "test"):
        if smallest_task(view.stream, data, split) == 0:
            raise UserError(f"a task has no {split} examples: use fewer tasks or a larger {split} share")
    if run.scenario != "class" and view.stream.text is None and view.stream.classes_per_task == 1:
        raise UserError(
            f"scenario {run.scenario!r} with one class a task leaves one output to choose from, so every answer is "
            f"right: use fewer tasks, or scenario 'class'"
        )


def _check_methods(run: Run, view: View, data: Data) -> None:
    # Where every task sees every row in its own way, each row is another example in each task.
    examples = data.sizes[0] * (view.stream.num_tasks if view.stream.task_of is None else 1)
    for name, method in run.methods.items():
        if data.text is not None and getattr(method, "needs_labels", False):
            able = [known for known, cls in METHODS.items() if not getattr(cls, "needs_labels", False)]
            raise UserError(
                f"methods.{name}: {type(method).__name__} is of examples with one label each, and the data are text: "
                f"use one of {', '.join(able)}"
            )
        if data.text is None and getattr(method, "needs_text", False):
            able = [known for known, cls in METHODS.items() if not getattr(cls, "needs_text", False)]
            raise UserError(
                f"methods.{name}: {type(method).__name__} is of text, and the data are images: use one of "
                f"{', '.join(able)}"
            )
        if data.text is not None and getattr(method, "kind", None) == "exact":
            raise UserError(f"methods.{name}: {EXACT_OF_TEXT}")
        capacity: Any = getattr(method, "capacity", None)
        if isinstance(capacity, int) and capacity > examples:
            raise UserError(
                f"methods.{name}.capacity {capacity} is larger than the {examples} training examples of all tasks: "
                f"lower it to at most that"
            )


def _check_features(run: Run, model: Model) -> None:
    blind = [name for name in run.diagnostics if DIAGNOSTICS[name].needs_features and model.tap is None]
    if blind:
        raise UserError(
            f"diagnostics {', '.join(blind)} need to know what the layers of the model receive, and "
            f"{type(run.model).__name__} does not tell: give it a `tap`, see cl_jax.model.Model, or leave them out"
        )


def _check_with_adapter(run: Run) -> None:
    """What a method says that it does, beside what the adapter allows."""
    adapter = type(run.adapter).__name__
    for name, method in run.methods.items():
        if getattr(method, "moves_weights", False) and not _all_train(run):
            raise UserError(
                f"methods.{name} moves weights directly, which adapter {adapter} does not allow: use adapter Full()"
            )
        if getattr(method, "mixes_tasks", False) and run.adapter.build(run.stream.num_tasks).per_task:
            raise UserError(
                f"methods.{name} trains on examples of earlier tasks, which under adapter {adapter} have weights of "
                f"their own: leave one of the two out"
            )
        if getattr(method, "evaluates_others", False) and run.adapter.build(run.stream.num_tasks).per_task:
            raise UserError(
                f"methods.{name} is evaluated with other weights than those that train, and under adapter {adapter} "
                f"each task with weights of its own: leave one of the two out"
            )


def _all_train(run: Run) -> bool:
    """Whether the adapter lets a method move every weight that the model computes with."""
    adapter = run.adapter.build(run.stream.num_tasks)
    return adapter.identity and adapter.mask is Adapter().mask


def _check_proximal(run: Run) -> None:
    proximal = [name for name, method in run.methods.items() if getattr(method, "proximal", False) is True]
    if not proximal:
        return
    if len(proximal) > 1:
        raise UserError(
            f"methods {' and '.join(proximal)} are both proximal, and one step after the other is not the step of "
            f"their sum: make all but one a penalty (proximal=False)"
        )
    (name,) = proximal
    if not _all_train(run):
        raise UserError(
            f"methods.{name}.proximal moves every weight directly, which adapter {type(run.adapter).__name__} does "
            f"not allow: use adapter Full(), or proximal=False"
        )
    if not isinstance(run.optimizer, Sgd) or run.optimizer.use_momentum:
        given = "Sgd with momentum" if isinstance(run.optimizer, Sgd) else type(run.optimizer).__name__
        raise UserError(
            f"methods.{name}.proximal is exact only after a step of plain gradient descent, whose size is the "
            f"learning rate; was given {given}: use optimizer Sgd(), or proximal=False"
        )

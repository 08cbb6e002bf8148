"""What is wrong with an experiment on its data: shapes are derived, nothing is compiled."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cl_jax import program
from cl_jax.adapters.adapter import Adapter
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.experiment import Entry, Run
from cl_jax.optimizers import Sgd
from cl_jax.tasks.stream import View, smallest_task


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
        view = program.view_of(run, data)
        _check_tasks(run, view, data)
        model = run.model.build(view.num_outputs)
        images = jax.ShapeDtypeStruct((1, *data.images.shape[1:]), jnp.float32)
        run.adapter.check(jax.eval_shape(model.init, jax.random.key(0), images))
        _check_methods(run, view, data)
        _check_proximal(run)
        jax.eval_shape(lambda seed: program.make_world(program.world_of(run), seed, data), jnp.zeros((), jnp.int32))
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
    if run.scenario != "class" and view.stream.classes_per_task == 1:
        raise UserError(
            f"scenario {run.scenario!r} with one class a task leaves one output to choose from, so every answer is "
            f"right: use fewer tasks, or scenario 'class'"
        )


def _check_methods(run: Run, view: View, data: Data) -> None:
    # Where every task sees every row in its own way, each row is another example in each task.
    examples = data.sizes[0] * (view.stream.num_tasks if view.stream.task_of is None else 1)
    for name, method in run.methods.items():
        capacity: Any = getattr(method, "capacity", None)
        if isinstance(capacity, int) and capacity > examples:
            raise UserError(
                f"methods.{name}.capacity {capacity} is larger than the {examples} training examples of all tasks: "
                f"lower it to at most that"
            )


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
    adapter = run.adapter.build()
    if not adapter.identity or adapter.mask is not Adapter().mask:
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

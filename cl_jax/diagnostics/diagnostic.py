"""What a diagnostic is: a pure function of a task boundary. It changes nothing that trains, and is off by default."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.batch import Batch
from cl_jax.model import Model, Params

WHOLE = ""  # in the place of a layer's name: the whole network

Look = Callable[[Callable[[jax.Array], Params]], Any]  # from `Boundary.params` to arrays


class Value(NamedTuple):
    """One measured quantity, with what its axes are. NaN: not defined, or not known; the table leaves it out."""

    quantity: str
    array: jax.Array  # float32 [layers, tasks, positions]
    layers: tuple[str, ...] = (WHOLE,)
    at: tuple[float, ...] = (math.nan,)  # positions: steps, or places on a line
    each_task: bool = False  # whether the second axis is of tasks; else it has length 1


class Boundary(NamedTuple):
    """What a diagnostic may ask for after some number of tasks. Tasks count from 0, and so do boundaries: r is the one
    after r tasks, 0 the start.

    Attributes:
        model: of the run.
        num_tasks: T.
        num_active: the most outputs that compete for one example.
        steps: training steps a task.
        after: int32 (), tasks trained so far.
        key: for this boundary alone.
        params: `(task) -> params`, what the model now computes with when it is evaluated on a task.
        earlier: `(boundary, task) -> params`, the same at an earlier boundary; only where `Diagnostic.keeps_weights`.
        known: `(boundary) -> bool ()`, whether `earlier` has it: a run that continues another one lacks some.
        probe: `(task, *, split="train", present=None, training=False) -> Batch`, the same few examples of a task
            whenever asked, each with weight 1 / n, padding at the end with 0. `present`: the task whose outputs are the
            last that compete; None: the last one trained. `training`: the outputs that compete in training.
        next_steps: `(number, look) -> looks [number, ...]`: trains a copy of the member on the next task and after each
            step asks `look(params)`, `params` as the field; undefined after the last task.
        costs: `() -> numbers by quantity and part`, what the run costs; known beforehand.
    """

    model: Model
    num_tasks: int
    num_active: int
    steps: int
    after: jax.Array
    key: jax.Array
    params: Callable[[jax.Array], Params]
    earlier: Callable[[jax.Array, jax.Array], Params]
    known: Callable[[jax.Array], jax.Array]
    probe: Callable[..., Batch]
    next_steps: Callable[[int, Look], Any]
    costs: Callable[[], dict[str, dict[str, float]]]

    @property
    def last(self) -> jax.Array:
        """The last task trained; before any training the first one."""
        return jnp.maximum(self.after - 1, 0)

    def over_tasks(self, wanted: Callable[[jax.Array], jax.Array], measure: Callable[[jax.Array], Any]) -> Any:
        """`measure(task)` of every task, with a leading axis [T]; NaN, and not computed, where it is not wanted."""
        shapes = jax.eval_shape(measure, jax.ShapeDtypeStruct((), jnp.int32))

        def nothing(task: jax.Array) -> Any:
            return jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), shapes)

        def one(task: jax.Array) -> Any:
            return lax.cond(wanted(task), measure, nothing, task)

        return lax.map(one, jnp.arange(self.num_tasks, dtype=jnp.int32))


class Diagnostic(NamedTuple):
    """A diagnostic and what it needs.

    Attributes:
        measure: `(boundary) -> values`, always the same quantities in the same order.
        keeps_weights: whether it compares with earlier boundaries: the weights of every boundary are then kept,
            (T + 1) x 4 bytes a parameter and member, on the host, in checkpoints and, while it measures, on the device.
        needs_features: whether it needs to know what layers receive, `Model.tap`.
    """

    measure: Callable[[Boundary], list[Value]]
    keeps_weights: bool = False
    needs_features: bool = False


def weight_of(batch: Batch) -> jax.Array:
    """A probe's weights, float32 [n]: 1 / number of examples, 0 for padding."""
    assert batch.weight is not None
    return batch.weight


def of_layers(quantity: str, numbers: Sequence[jax.Array] | jax.Array, layers: Sequence[str]) -> Value:
    """A number of each layer: from L numbers, or [L]."""
    return Value(quantity, jnp.stack(list(numbers))[:, None, None], tuple(layers))


def of_tasks(quantity: str, numbers_TxL: jax.Array, layers: Sequence[str] = (WHOLE,)) -> Value:
    """A number of each task and layer."""
    return Value(quantity, numbers_TxL.T[:, :, None], tuple(layers), each_task=True)

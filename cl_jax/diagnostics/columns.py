"""What the numbers are that a run's diagnostics give at a boundary: one flat row, described once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.data import Data
from cl_jax.diagnostics.boundary import boundary_of, keeps_weights, measured
from cl_jax.diagnostics.diagnostic import WHOLE, Value
from cl_jax.diagnostics.shapes import Whole, every_boundary, once, whole
from cl_jax.experiment import Run


class Columns(NamedTuple):
    """What each of the N numbers of a boundary is."""

    quantity: np.ndarray  # str [N]
    layer: np.ndarray  # str [N], "": the whole network
    depth: np.ndarray  # int32 [N], the layer's place among those of the quantity; -1: the whole network
    task: np.ndarray  # int32 [N], from 1; 0: of no task
    at: np.ndarray  # float64 [N], a step or a place; NaN: of none


class Layout(NamedTuple):
    """What one member's diagnostics keep and give."""

    kept: Any  # shapes and dtypes, [T + 1, ...] each; (): nothing
    columns: Columns

    @property
    def kept_bytes(self) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.kept))


_LAYOUTS: dict[Any, Layout] = {}


def layout(run: Run, data: Data) -> Layout:
    """Of a run that has diagnostics; nothing is computed for it."""
    return once(_LAYOUTS, run, data, lambda: _layout(run, data))


def _layout(run: Run, data: Data) -> Layout:
    member, found = whole(run, data), []
    kept = every_boundary(member.shown, run.stream.num_tasks) if keeps_weights(run) else ()

    def trace(member: Whole, kept: Any, number: jax.Array) -> tuple[()]:
        held = (kept, member.shown, member.state)
        boundary = boundary_of(member.run, member.seed, member.curriculum, held, member.data, number, number)
        found.extend((value, value.array.shape) for value in measured(run, boundary))
        return ()

    jax.eval_shape(trace, member, kept, jax.ShapeDtypeStruct((), jnp.int32))
    parts = [columns_of(value, shape) for value, shape in found]
    return Layout(kept, Columns(*(np.concatenate(each) for each in zip(_NONE, *parts, strict=True))))


_NONE = Columns(*(np.zeros(0, kind) for kind in ("U1", "U1", np.int32, np.int32, np.float64)))


def columns_of(value: Value, shape: tuple[int, ...]) -> Columns:
    """Of a value's numbers, in the order of its array of that shape."""
    assert (shape[0], shape[2]) == (len(value.layers), len(value.at)) and (value.each_task or shape[1] == 1)
    named = [name for name in value.layers if name != WHOLE]
    depth = np.array([-1 if name == WHOLE else named.index(name) for name in value.layers], np.int32)
    layer, task, place = (each.ravel() for each in np.indices(shape))
    return Columns(
        quantity=np.full(layer.shape, value.quantity),
        layer=np.array(value.layers, str)[layer],
        depth=depth[layer],
        task=(task + 1 if value.each_task else np.zeros_like(task)).astype(np.int32),
        at=np.array(value.at, np.float64)[place],
    )

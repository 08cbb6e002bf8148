"""Shapes of one member, found without computing anything; each structure of run is traced once."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax import program
from cl_jax.data import Data
from cl_jax.experiment import Run

Found = TypeVar("Found")


class Whole(NamedTuple):
    """What one member is made of before its first step, as shapes and dtypes."""

    run: Run  # numbers in place of the traced ones, which may be tracers
    data: Data
    seed: Any
    curriculum: Any
    params: Any  # of the model
    state: Any
    shown: Any  # what is evaluated


def whole(run: Run, data: Data) -> Whole:
    """A member of this run; `run` and `data` may be traced ones."""
    seed = jax.ShapeDtypeStruct((), jnp.int32)
    plain = jax.tree.map(lambda leaf: np.float32(0), run)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), data)

    def make(run: Run, seed: jax.Array, data: Data) -> Whole:
        curriculum, params = program.drawn(program.world_of(run), seed, data)
        state = program.init(run, seed, curriculum, params, data)
        shown = program.shown(run, curriculum, state, data, jnp.zeros((), jnp.int32))
        return Whole(run, data, seed, curriculum, params, state, shown)

    return jax.eval_shape(make, plain, seed, like)


def every_boundary(shown: Any, num_tasks: int) -> Any:
    """With a leading axis for the boundaries of a run, [T + 1, ...]."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_tasks + 1, *leaf.shape), leaf.dtype), shown)


def once(known: dict[Any, Found], run: Run, data: Data, make: Callable[[], Found]) -> Found:
    """What is known of runs of this structure on this data."""
    key = (jax.tree.structure(run), data.sha256, data.sizes)
    if key not in known:
        known[key] = make()
    return known[key]

"""Pairs of low-rank factors for the matrices of a model: what the adapters of the LoRA family train."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.adapters.adapter import path_name
from cl_jax.errors import UserError
from cl_jax.method import stream_key
from cl_jax.model import Params

# path -> {"a": [d_in, r], "b": [r, d_out]}; of a stack of layers with a leading axis, as its matrices have. Or, of what
# trains beside the factors, path -> {"whole": the leaf}.
Factors = dict[str, dict[str, jax.Array]]
FIRST_TASKS = ("full", "lora")


class LoraState(NamedTuple):
    """What trains: a full copy that moves in the first task only (or nothing), and the factors."""

    first: Params  # the model's parameters while the first task trains them; () otherwise
    factors: Factors  # of each task where they have a leading axis [T]


def new_factors(key: jax.Array, params: Params, rank: int, targets: str) -> Factors:
    """A [d_in, r] ~ N(0, 1 / d_in) and B [r, d_out] = 0 for every matrix whose path `targets` is found in.

    A leaf [n, d_in, d_out] is a stack of n matrices, each with factors of its own.
    """
    made = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if leaf.ndim >= 2 and re.search(targets, name) is not None:
            *stack, d_in, d_out = leaf.shape
            noise = jax.random.normal(stream_key(key, name), (*stack, d_in, rank), leaf.dtype)
            made[name] = {"a": noise * d_in**-0.5, "b": jnp.zeros((*stack, rank, d_out), leaf.dtype)}
    return made


def whole_leaves(params: Params, pattern: str) -> Factors:
    """The leaves whose path `pattern` is found in, to train as they are."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_name(path): {"whole": leaf} for path, leaf in leaves if re.search(pattern, path_name(path))}


def plus_products(params: Params, factors: Factors, scale: jax.Array | float, used: jax.Array | None = None) -> Params:
    """W + scale A B for every matrix that has factors, and what trains whole in place of what was there.

    Args:
        used: float32 [r], 1 for the columns of A that count, 0 for those that do not; None: all do.
    """

    def one(path: tuple, leaf: jax.Array) -> jax.Array:
        part = factors.get(path_name(path))
        if part is None:
            return leaf
        if "whole" in part:
            return part["whole"]
        a = part["a"] if used is None else part["a"] * used.reshape((1,) * (leaf.ndim - 1) + used.shape)
        return leaf + scale * (a @ part["b"])

    return jax.tree_util.tree_map_with_path(one, params)


def check_factors(params: Params, rank: int, targets: str) -> None:
    """Raises UserError when no matrix matches, or the rank is larger than a matched matrix allows."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    matrices = {path_name(path): leaf.shape for path, leaf in leaves if len(leaf.shape) >= 2}
    try:
        matched = {name: shape for name, shape in matrices.items() if re.search(targets, name)}
    except re.error as error:
        raise UserError(f"adapter.targets: {targets!r} is not a regular expression: {error}") from error
    if not matched:
        raise UserError(f"adapter.targets: {targets!r} matches none of the matrices {', '.join(matrices)}")
    name, shape = min(matched.items(), key=lambda item: min(item[1][-2:]))
    if rank > min(shape[-2:]):
        raise UserError(
            f"adapter.rank: was given {rank}, larger than the matrix {name} {list(shape)} allows; the most "
            f"allowed is {min(shape[-2:])}: lower the rank or leave the matrix out of adapter.targets"
        )

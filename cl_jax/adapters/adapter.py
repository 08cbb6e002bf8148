"""What is trained, and how it acts: the interface of adapters, and the identity."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.errors import UserError
from cl_jax.model import Params

Trainable = Any  # a pytree of float arrays


def _nothing_kept(key: jax.Array, params: Params) -> tuple[Params, Trainable]:
    return (), params


def _trainable(base: Params, trainable: Trainable, task: jax.Array) -> Params:
    return trainable


def _all_updates(base: Params, task: jax.Array, updates: Trainable) -> Trainable:
    return updates


def _no_penalty(base: Params, trainable: Trainable, task: jax.Array) -> jax.Array:
    return jnp.zeros(())


def _as_it_was(
    base: Params, trainable: Trainable, task: jax.Array, step: jax.Array, steps: int
) -> tuple[Params, Trainable]:
    return base, trainable


def _nothing_merged(key: jax.Array, base: Params, trainable: Trainable, task: jax.Array) -> tuple[Params, Trainable]:
    return base, trainable


class Adapter(NamedTuple):
    """`Adapter()` is full fine-tuning: every parameter trains and is what the model computes with.

    Attributes:
        init: `(key, params) -> (base, trainable)`, from a model's initial parameters.
        effective: `(base, trainable, task) -> params`, what the model computes with; methods act on these.
        mask: `(base, task, updates) -> updates`, which updates are let through in a task.
        penalty: `(base, trainable, task) -> scalar`, added to the task loss: of what trains, which methods never see.
        during: `(base, trainable, task, step, steps) -> (base, trainable)`, before each step of a task (pruning);
            `steps`, of the whole task, is static, and `step`, from 0, is the same for all members side by side, so that
            a `lax.cond` on it costs what the branch taken does.
        end_task: `(key, base, trainable, task) -> (base, trainable)`, at the boundary after a task (merging).
        identity: whether `effective` returns `trainable` itself, so that a proximal step may be taken on it.
        per_task: whether each task has effective parameters of its own: then it is evaluated with those, so its number
            has to be known at test time.
        gates: whether layers of the effective parameters hold a `gate`, which the model has to heed: `Model.gates`.

    `task` is int32 (), from 0: the one in training, or the one that is evaluated.
    """

    init: Callable[[jax.Array, Params], tuple[Params, Trainable]] = _nothing_kept
    effective: Callable[[Params, Trainable, jax.Array], Params] = _trainable
    mask: Callable[[Params, jax.Array, Trainable], Trainable] = _all_updates
    penalty: Callable[[Params, Trainable, jax.Array], jax.Array] = _no_penalty
    during: Callable[[Params, Trainable, jax.Array, jax.Array, int], tuple[Params, Trainable]] = _as_it_was
    end_task: Callable[[jax.Array, Params, Trainable, jax.Array], tuple[Params, Trainable]] = _nothing_merged
    identity: bool = True
    per_task: bool = False
    gates: bool = False


def path_name(path: tuple[Any, ...]) -> str:
    """`dense_0/kernel` for a leaf's key path."""
    return "/".join(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path)


def layers_of(params: Params) -> list[str]:
    """The paths of the layers with a kernel, the one that gives the logits last.

    That is the one called `head`, or else the last by name, numbers in names read as numbers: `dense_10` comes after
    `dense_9`.

    Raises:
        UserError: no layer has a kernel.
    """

    def place(name: str) -> tuple[bool, list[Any]]:
        return name == "head", [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    layers = [name.removesuffix("/kernel") for name in names if name.endswith("/kernel")]
    if not layers:
        raise UserError(
            f"the model has no layer with a `kernel`, but {', '.join(names) or 'no parameters'}: this adapter needs a "
            f"model whose layers are called as those of cl_jax.models"
        )
    return sorted(layers, key=place)

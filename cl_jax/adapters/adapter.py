"""What is trained, and how it acts: the interface of adapters, and the identity."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cl_jax.model import Params

Trainable = Any  # a pytree of float arrays


def _nothing_kept(key: jax.Array, params: Params) -> tuple[Params, Trainable]:
    return (), params


def _trainable(base: Params, trainable: Trainable, task: jax.Array) -> Params:
    return trainable


def _all_updates(base: Params, task: jax.Array, updates: Trainable) -> Trainable:
    return updates


def _nothing_merged(key: jax.Array, base: Params, trainable: Trainable, task: jax.Array) -> tuple[Params, Trainable]:
    return base, trainable


class Adapter(NamedTuple):
    """`Adapter()` is full fine-tuning: every parameter trains and is what the model computes with.

    Attributes:
        init: `(key, params) -> (base, trainable)`, from a model's initial parameters.
        effective: `(base, trainable, task) -> params`, what the model computes with; methods act on these.
        mask: `(base, task, updates) -> updates`, which updates are let through in a task.
        end_task: `(key, base, trainable, task) -> (base, trainable)`, at the boundary after a task (merging).
        identity: whether `effective` returns `trainable` itself, so that a proximal step may be taken on it.
        per_task: whether each task has effective parameters of its own: then it is evaluated with those, so its number
            has to be known at test time.

    `task` is int32 (), from 0: the one in training, or the one that is evaluated.
    """

    init: Callable[[jax.Array, Params], tuple[Params, Trainable]] = _nothing_kept
    effective: Callable[[Params, Trainable, jax.Array], Params] = _trainable
    mask: Callable[[Params, jax.Array, Trainable], Trainable] = _all_updates
    end_task: Callable[[jax.Array, Params, Trainable, jax.Array], tuple[Params, Trainable]] = _nothing_merged
    identity: bool = True
    per_task: bool = False


def path_name(path: tuple[Any, ...]) -> str:
    """`dense_0/kernel` for a leaf's key path."""
    return "/".join(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path)

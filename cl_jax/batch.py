"""What a training step sees: a batch of examples, and where they came from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.errors import UserError


class Reference(NamedTuple):
    """Where examples live: rows of the data set, seen through a task's transformation.

    A method that keeps examples for later keeps these: data that streams brings the images of every `Reference` in the
    state, and of a row that nobody foresaw a NaN.
    """

    row: jax.Array  # int32 [B], of the data set
    task: jax.Array  # int32 [B], number of the task, from 0


class Batch(NamedTuple):
    """Examples as a model and a loss see them. `None` means the default said at the field."""

    x: Any  # [B, ...] model input
    y: jax.Array  # int32 [B] index of the right output; of sequences [B, L], at each position
    active: jax.Array | None = None  # bool [B, C] outputs that compete in the softmax; None: all
    weight: jax.Array | None = None  # float32 [B], loss = sum(weight * loss_i); None: 1 / B each
    reference: Reference | None = None  # set by the sweep engine, absent in a user's own loop
    extra: dict[str, Any] | None = None  # [B, ...] by name: what a method's `draw` tells its own `loss`
    counted: jax.Array | None = None  # float32 [B, L] of sequences: 1 where the loss counts a target, else 0


class Task(NamedTuple):
    """The training set of the task just finished, as methods see it at its boundary.

    `examples` is whatever the method's `render` turns into a `Batch`: in the sweep engine references, in a user's
    own loop a `Batch` itself. The valid rows come first; invalid ones pad tasks of different sizes to one shape.
    """

    number: jax.Array  # int32 (), from 0
    examples: Any  # pytree with leading axis N
    valid: jax.Array  # bool [N]


def whole_task(number: int, examples: Batch) -> Task:
    """The task of a user's own loop: `examples` are all of its training examples, none of them padding."""
    return Task(jnp.asarray(number, jnp.int32), examples, jnp.ones((examples.y.shape[0],), bool))


def join(incoming: Batch, stored: Batch) -> Batch:
    """The rows of both, incoming first, without weights; an `extra` that only one of them has is 0 for the other.

    Raises:
        UserError: only one of them has `active`, `reference` or `counted`.
    """

    def concatenate(name: str) -> Any:
        one, two = getattr(incoming, name), getattr(stored, name)
        if (one is None) != (two is None):
            has, lacks = ("replayed", "incoming") if one is None else ("incoming", "replayed")
            raise UserError(
                f"the {has} examples have `{name}` and the {lacks} ones do not: let `store` keep and `load` return "
                f"`{name}` exactly when the incoming batches have it"
            )
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, two)

    extra = _joined_extra(incoming, stored)
    return Batch(
        concatenate("x"), concatenate("y"), concatenate("active"), None, concatenate("reference"), extra,
        concatenate("counted"),
    )  # fmt: skip


def _joined_extra(incoming: Batch, stored: Batch) -> dict[str, Any] | None:
    one, two = incoming.extra or {}, stored.extra or {}
    num_one, num_two = incoming.y.shape[0], stored.y.shape[0]

    def zeros(num: int, like: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros((num, *leaf.shape[1:]), leaf.dtype), like)

    joined = {}
    for name in {**one, **two}:
        first = one[name] if name in one else zeros(num_one, two[name])
        second = two[name] if name in two else zeros(num_two, one[name])
        joined[name] = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    return joined or None


def row_weights(batch: Batch) -> jax.Array:
    """float32 [B]: what each row counts in the task loss, `weight` or 1 / B each."""
    size = batch.y.shape[0]
    return jnp.full((size,), 1 / size, jnp.float32) if batch.weight is None else batch.weight


def target_weights(batch: Batch) -> jax.Array:
    """What each target counts in a mean over targets, float32 like `y`: the rows' weights, of sequences shared out in
    proportion over the counted positions of all rows together; they sum to what the weights sum to (or to 0).
    """
    weight = row_weights(batch)
    if batch.counted is None:
        return weight
    each = weight[:, None] * batch.counted
    total = jnp.sum(each)
    return each * (jnp.sum(weight) / jnp.where(total > 0, total, 1.0))


def equal_shares(valid: jax.Array) -> jax.Array:
    """float32 [R]: 1 / n for each of the n valid rows (bool [R]) and 0 for the others; all 0 if none is valid."""
    return jnp.where(valid, 1 / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0), 0.0)

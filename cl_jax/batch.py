"""What a training step sees: a batch of examples, and where they came from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


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
    y: jax.Array  # int32 [B] index of the right output
    active: jax.Array | None = None  # bool [B, C] outputs that compete in the softmax; None: all
    weight: jax.Array | None = None  # float32 [B], loss = sum(weight * loss_i); None: 1 / B each
    reference: Reference | None = None  # set by the sweep engine, absent in a user's own loop


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

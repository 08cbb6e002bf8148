"""Which answers changed since the base, one by one: right then and wrong now, and the other way round.

On the validation probe of each task, against the model after the first task (the base); targets are examples, of text
counted tokens, of which

    lost     share right before and wrong now, minus g
    gained   share wrong before and right now, minus g
    g        c (1 - max(a_before, a_now)), c = 1 / number of outputs, a the shares right

g is what guessing alone turns over, as often one way as the other: the better model does not know the share
1 - max(a_before, a_now), of which a guess is right with chance c in one of the two models and nearly always wrong in
the other. Two models that agree are thus a little below 0. gained - lost = a_now - a_before whatever g, so that both
tell what accuracy hides: much forgotten while as much was learned.

Not defined where none of a task's outputs compete yet.

Source: Toneva et al. 2019, arXiv 1812.05159 (forgetting events, of examples during training).
"""

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch, target_weights
from cl_jax.diagnostics.diagnostic import Boundary, Value, of_tasks


def transitions(before: jax.Array, now: jax.Array, weight: jax.Array, num_outputs: int) -> jax.Array:
    """lost and gained, float32 [2].

    Args:
        before, now: bool [...], whether each target was right. weight: float32 [...], of each, sums to 1.
    """

    def share(where: jax.Array) -> jax.Array:
        return jnp.sum(weight * where.astype(jnp.float32))

    guessed = (1.0 / num_outputs) * (1.0 - jnp.maximum(share(before), share(now)))
    return jnp.stack([share(before & ~now), share(~before & now)]) - guessed


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""
    base, first_task = jnp.ones((), jnp.int32), jnp.zeros((), jnp.int32)

    def both(task: jax.Array) -> jax.Array:
        then = boundary.probe(task, split="validation", present=first_task)
        now = boundary.probe(task, split="validation")
        before = _right(boundary.model.apply(boundary.earlier(base, task), then.x), then)
        after = _right(boundary.model.apply(boundary.params(task), now.x), now)
        weight = target_weights(now)
        possible = jnp.sum(weight * _known(now).astype(jnp.float32)) > 0
        return jnp.where(possible, transitions(before, after, weight, boundary.num_active), jnp.nan)

    found = boundary.over_tasks(lambda task: (boundary.after > 1) & boundary.known(base), both)
    return [of_tasks("lost", found[:, :1]), of_tasks("gained", found[:, 1:])]


def _right(logits: jax.Array, batch: Batch) -> jax.Array:
    """bool like `y`: whether the likeliest output that competes is the right one."""
    if batch.active is not None:
        logits = jnp.where(batch.active, logits, -jnp.inf)
    return (jnp.argmax(logits, axis=-1).astype(jnp.int32) == batch.y) & _known(batch)


def _known(batch: Batch) -> jax.Array:
    """bool like `y`: whether the right output competes."""
    if batch.active is None:
        return jnp.ones(batch.y.shape, bool)
    return jnp.take_along_axis(batch.active, batch.y[..., None], axis=-1)[..., 0]

"""Cross-entropy over the active outputs, and the task loss every method adds to."""

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.model import Model, Params


def log_probabilities(logits: jax.Array, active: jax.Array | None) -> jax.Array:
    """log softmax over the active outputs; inactive ones get the lowest finite float (probability 0, no NaN).

    Args:
        logits: float [..., C].
        active: bool [..., C] or None (all active).
    """
    if active is not None:
        logits = jnp.where(active, logits, jnp.finfo(logits.dtype).min / 2)
    return jax.nn.log_softmax(logits, axis=-1)


def cross_entropy(logits: jax.Array, y: jax.Array, active: jax.Array | None = None) -> jax.Array:
    """-log p(y | x) per example, in nats: float [B] from logits [B, C], labels int [B] and active bool [B, C].

    Of sequences: float [B, L] from logits [B, L, C] and labels [B, L].
    """
    return -jnp.take_along_axis(log_probabilities(logits, active), y[..., None], axis=-1)[..., 0]


def example_losses(logits: jax.Array, batch: Batch) -> jax.Array:
    """What each example loses, in nats: float [B].

    The cross-entropy of its label; of a sequence of L positions 1 / L sum_t counted_t cross_entropy_t: what it loses in
    all, by position and not by target, so that every target of a task counts the same.
    """
    losses = cross_entropy(logits, batch.y, batch.active)
    if batch.counted is None:
        return losses
    return jnp.sum(losses * batch.counted, axis=-1) * (1.0 / losses.shape[-1])


def task_loss(model: Model, params: Params, batch: Batch) -> jax.Array:
    """sum_i weight_i * loss_i (see `example_losses`), a scalar; the mean over the batch when it has no weights."""
    return weighted_loss(model.apply(params, batch.x), batch)


def weighted_loss(logits: jax.Array, batch: Batch) -> jax.Array:
    """`task_loss` from the logits [B, C], of sequences [B, L, C]."""
    losses = example_losses(logits, batch)
    return jnp.mean(losses) if batch.weight is None else jnp.sum(batch.weight * losses)

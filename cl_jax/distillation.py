"""Distillation: how far a model's answers are from those of an earlier model, the teacher. Knows no Method.

Hinton, Vinyals & Dean 2015, arXiv 1503.02531.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.losses import log_probabilities
from cl_jax.model import Model, Params


def divergence(
    teacher: jax.Array,
    logits: jax.Array,
    temperature: jax.Array | float,
    teacher_active: jax.Array | None = None,
    active: jax.Array | None = None,
) -> jax.Array:
    """KL(q || p) = sum_k q_k (log q_k - log p_k), in nats, of the teacher's answers q and the present ones p.

    q = softmax(teacher / T) over the outputs `teacher_active`, p = softmax(logits / T) over the outputs `active`. No
    factor T^2 and no mean: both are the caller's. It is the cross-entropy -sum_k q_k log p_k less the teacher's own
    entropy, so their gradients are equal: with respect to `logits` (p - q) / T on the active outputs.

    For T -> infinity, T^2 KL(q || p) -> 1 / (2 K) sum_k (d_k - mean d)^2, d = logits - teacher, all K outputs active.

    Args:
        teacher: float [..., K], logits; no gradient is stopped here.
        logits: float [..., K].
        temperature: T > 0, may be traced.
        teacher_active: bool [..., K]; None: all. Where no output is, the answer is uniform over all K.
        active: bool [..., K], has to hold wherever `teacher_active` does, for the teacher's answers must be possible;
            None: all. An output that only the present model has got is to have probability 0.

    Returns:
        float [...].
    """
    log_q = log_probabilities(teacher / temperature, teacher_active)
    log_p = log_probabilities(logits / temperature, active)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def answers(model: Model, params: Params, items: Any, load: Callable[[Any], Batch], *, chunk: int = 256) -> jax.Array:
    """The logits, float32 [N, C], of stored items, a pytree of arrays [N, ...]; `chunk` of them rendered at a time."""
    num = jax.tree.leaves(items)[0].shape[0]
    chunk = min(chunk, num)
    num_chunks = -(-num // chunk)
    rows = jnp.minimum(jnp.arange(num_chunks * chunk, dtype=jnp.int32), num - 1)  # the last item fills the last chunk

    def one(index: jax.Array) -> jax.Array:
        batch = load(jax.tree.map(lambda leaf: leaf[index], items))
        return model.apply(params, batch.x).astype(jnp.float32)

    logits = jax.lax.map(one, rows.reshape(num_chunks, chunk))
    return logits.reshape(num_chunks * chunk, logits.shape[-1])[:num]

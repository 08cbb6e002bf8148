"""Grouped-query causal attention within the documents of a row.

Times told of in the decoder are of a training step (Adam) of the default `cl_jax.models.decoder.Decoder` on 16 rows of
128 bytes, on an AVX-512 CPU, and multiples of the step as it is: alternatives took turns in one process.

Shapes: B sequences, L positions, H heads in K groups of G that share a key and a value, E numbers a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

UNSEEN = -1e30  # exp of it is 0, and it is finite: -inf minus -inf is NaN


class Sight(NamedTuple):
    """What each position sees; the same for every layer, so computed once."""

    bias: jax.Array  # float32 [B, L, L], 0 where a position (row) sees another (column), else `UNSEEN`
    positions: jax.Array  # float32 [B, L], from 0 at the first token of each segment


def sight(segments: jax.Array) -> Sight:
    """A position sees itself and earlier ones of its own segment; a position of padding, earlier padding.

    Args:
        segments: int32 [B, L], a segment's positions side by side, 0: padding.
    """
    place = jnp.arange(segments.shape[1], dtype=jnp.int32)
    causal = place[:, None] >= place[None, :]
    seen = (segments[:, :, None] == segments[:, None, :]) & causal[None]
    return Sight(jnp.where(seen, 0.0, UNSEEN), jnp.sum(seen, axis=2, dtype=jnp.float32) - 1.0)


def attention(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array) -> jax.Array:
    """softmax(query key^T / sqrt(E) + bias) value, scores and softmax in float32: [B, K, G * Q, E], query's dtype.

    It is exp(s - max s) value / sum exp(s - max s), divided last: the backward pass then has no reduction over all
    L x L scores. With `jax.nn.softmax` a step took 1.1 to 1.2 times as long, with `jax.nn.dot_product_attention` 1.3
    (4 members under `vmap`) to 1.6 times (one).

    Args:
        query: float [B, K, G * Q, E], of Q positions, in training all L: those of a group's heads one after the
            other, since one axis more (of 1 as well) makes XLA:CPU copy scores in the backward pass.
        key, value: float [B, K, L, E], of the same dtype.
        bias: float32 [B, Q, L].

    Source: Vaswani et al. 2017, arXiv 1706.03762; groups: Ainslie et al. 2023, arXiv 2305.13245.
    """
    groups = query.shape[2] // bias.shape[1]
    scaled = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("bkle,bkme->bklm", scaled, key, preferred_element_type=jnp.float32)
    scores = scores + jnp.tile(bias, (1, groups, 1))[:, None]
    # The largest score cancels, so it has no gradient.
    weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(value.dtype)
    return (jnp.einsum("bklm,bkme->bkle", weights, value, preferred_element_type=jnp.float32) / total).astype(
        query.dtype
    )

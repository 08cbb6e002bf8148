"""Rotary positions: queries and keys are turned by an angle that grows with the position.

Shapes: B sequences, L positions, E numbers a head (even).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Scaling(NamedTuple):
    """How Llama 3.1 stretches the positions of a model that was first trained on shorter text.

    A frequency that makes more than `high` turns within `context` positions stays, one that makes fewer than `low` is
    divided by `factor`, and between them the share of the division falls linearly in the turns.
    """

    factor: float
    low: float
    high: float
    context: int

    def of(self, frequencies: np.ndarray) -> np.ndarray:
        """The frequencies, in radians a position, that it makes of these."""
        turns = self.context * frequencies / (2 * np.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


class Angles(NamedTuple):
    """Cosines and sines of each position's angles, those of the first half of a head repeated for the second."""

    cos: jax.Array  # float32 [B, L, E]
    sin: jax.Array  # float32 [B, L, E]


def angles(positions: jax.Array, head_width: int, base: float, scaling: Scaling | None = None) -> Angles:
    """position * base^(-2i / E) for i = 0, ..., E / 2 - 1, computed in float32 as Hugging Face's Llama does.

    Args:
        positions: float32 [B, L], from 0.
        scaling: what becomes of the frequencies base^(-2i / E); None: nothing.
    """
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / head_width
    plain = base**-exponents
    frequencies = jnp.asarray((plain if scaling is None else scaling.of(plain)).astype(np.float32))
    half = positions[..., None] * frequencies[None, None, :]
    # Doubled last: of doubled angles XLA computes the cosines and sines anew wherever they are used.
    cos, sin = jnp.cos(half), jnp.sin(half)
    return Angles(jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([sin, sin], axis=-1))


def rotate(x: jax.Array, turn: Angles) -> jax.Array:
    """x cos + R(x) sin, R(x) = (-x_2, x_1) of a head's halves x_1 and x_2, in float32, of x's dtype: like x.

    The product of two rotated vectors depends on the difference of their positions alone.

    Args:
        x: float [B, ..., L, E].

    Source: Su et al. 2021, arXiv 2104.09864; in halves, not in pairs, as Llama's published weights expect.
    """
    head_width = x.shape[-1]
    half = np.eye(head_width // 2, dtype=np.float32)
    swap = jnp.asarray(np.block([[np.zeros_like(half), half], [-half, np.zeros_like(half)]]))
    # A product with a matrix of -1, 0 and 1: XLA:CPU fuses the concatenation of halves, forward and backward, into
    # loops that it does not vectorize: a step took 1.1 times as long (see `cl_jax.models.attention`).
    x32 = x.astype(jnp.float32)
    shape = (x.shape[0], *(1,) * (x.ndim - 3), *x.shape[-2:])
    turned = jnp.matmul(x32, swap, precision=lax.Precision.HIGHEST)  # the lower ones would round x on accelerators
    return (x32 * turn.cos.reshape(shape) + turned * turn.sin.reshape(shape)).astype(x.dtype)

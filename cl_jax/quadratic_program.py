"""A small convex quadratic programme over non-negative numbers, solved by an active-set method of static shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.decompositions import solve

# Relative to the diagonal: without it float32 cannot tell a matrix of nearly parallel gradients from a singular one.
DAMPING = 1e-5
TOLERANCE = 1e-5  # of the largest entry of the scaled linear term
CHANGES = 3  # of the active set, times n, before the search is given up


class _Search(NamedTuple):
    x: jax.Array  # float32 [n], non-negative
    free: jax.Array  # bool [n], the others are held at 0
    changes: jax.Array  # int32 ()
    done: jax.Array  # bool ()


def nonnegative_minimum(matrix: jax.Array, linear: jax.Array) -> jax.Array:
    """argmin over x >= 0 of 1/2 x^T A x + q^T x.

    The conditions are x >= 0, A x + q >= 0 and x^T (A x + q) = 0. As Lawson and Hanson do it: of the coordinates held
    at 0 the one of steepest descent is freed, the minimum over the free ones is found by a Cholesky factor, and where
    it has a coordinate that is not positive the step goes as far as it may and that one is held again. The objective
    falls in each round, so no set of free coordinates comes twice; hardly ever more than n rounds are needed, and
    after 3 n the point reached, which is non-negative in any case, is taken.

    The problem is scaled to a diagonal of ones first, to which 1e-5 is added. A coordinate counts as descending if its
    derivative is below -1e-5 of the largest scaled |q|.

    Args:
        matrix: float32 [n, n], A, symmetric and positive semidefinite, with a positive diagonal.
        linear: float32 [n], q.

    Returns:
        float32 [n].

    Source: C. L. Lawson and R. J. Hanson, Solving Least Squares Problems, 1974, chapter 23 (NNLS).
    """
    size = linear.shape[0]
    scale = lax.rsqrt(jnp.diagonal(matrix))
    eye = jnp.eye(size, dtype=matrix.dtype)
    a = matrix * scale[:, None] * scale[None, :] + DAMPING * eye
    b = linear * scale
    largest = jnp.max(jnp.abs(b))
    b = b / jnp.where(largest > 0, largest, 1.0)

    def minimum_over(free: jax.Array) -> jax.Array:
        kept = jnp.where(free[:, None] & free[None, :], a, eye)
        found = solve(kept, jnp.where(free, -b, 0.0))
        return jnp.where(jnp.isfinite(found), found, 0.0)

    def one(at: _Search) -> _Search:
        target = minimum_over(at.free)
        blocked = at.free & ~(target > 0)
        arrived = ~jnp.any(blocked)

        # As far towards the target as no coordinate turns negative.
        share = jnp.where(blocked, at.x / jnp.maximum(at.x - target, jnp.finfo(a.dtype).tiny), jnp.inf)
        part = at.x + jnp.minimum(jnp.min(share), 1.0) * (target - at.x)
        held = blocked & ((share <= jnp.min(share)) | (part <= 0))

        slope = jnp.where(at.free, 0.0, jnp.matmul(a, target, precision=lax.Precision.HIGHEST) + b)
        steepest = jnp.arange(size, dtype=jnp.int32) == jnp.argmin(slope).astype(jnp.int32)
        descends = jnp.min(slope) < -TOLERANCE
        free = jnp.where(arrived, at.free | (steepest & descends), at.free & ~held)
        x = jnp.where(free, jnp.where(arrived, target, part), 0.0)
        return _Search(x, free, at.changes + 1, arrived & ~descends)

    start = _Search(jnp.zeros_like(b), jnp.zeros((size,), bool), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    end = lax.while_loop(lambda at: ~at.done & (at.changes < CHANGES * size + 1), one, start)
    return jnp.maximum(end.x, 0.0) * largest * scale

"""Decompositions by LAPACK, as they have to be called where members run side by side on several devices of a CPU.

A batch of them is shared out among the CPU's worker threads, and two devices that compute one each wait for each other
for ever (seen with two devices of three members). So one matrix is taken after another. From numbers that are not
finite LAPACK may never return, so it does not get to see them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

_singular_values = jax.custom_batching.sequential_vmap(lambda matrix: jnp.linalg.svd(matrix, compute_uv=False))
_solve = jax.custom_batching.sequential_vmap(lambda a, b: cho_solve((jnp.linalg.cholesky(a), True), b))
_eigh = jax.custom_batching.sequential_vmap(lambda matrix: tuple(jnp.linalg.eigh(matrix)))


def singular_values(matrix: jax.Array) -> jax.Array:
    """From the largest to the smallest, float32 [min(n, d)] of [n, d]; NaN where not all of it is finite."""
    return _of_finite(_singular_values, matrix)


def eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [d], from the smallest on, and eigenvectors, columns of [d, d], of a symmetric matrix [d, d]; NaN
    where not all of it is finite.
    """
    return _of_finite(_eigh, matrix)


def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """x [d] of matrix x = right by a Cholesky factor; NaN where not all of it is finite or positive definite."""
    return _of_finite(_solve, matrix, right)


def _of_finite(decompose: Any, matrix: jax.Array, *others: jax.Array) -> Any:
    sound = jnp.isfinite(matrix).all()
    found = decompose(jnp.where(sound, matrix, 0.0), *others)
    return jax.tree.map(lambda leaf: jnp.where(sound, leaf, jnp.nan), found)

"""The active-set solver against SciPy's NNLS, on random, degenerate and badly scaled problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from cl_jax.quadratic_program import nonnegative_minimum

solve = jax.jit(jax.vmap(nonnegative_minimum))
alone = jax.jit(nonnegative_minimum)
# Of the objective's fall from x = 0. The damping of 1e-5 and float32 leave a few times that.
CLOSE = 1e-4


def objective(matrix, linear, x):
    return 0.5 * x @ matrix @ x + linear @ x


def problems(size, kind):
    """Of min |C x - d|^2: C [10, m, size] and d [10, m]."""
    generator = np.random.default_rng(size)
    c = generator.normal(size=(10, 30, size)) + (2.0 if kind == "alike" else 0.0)
    if kind == "scaled":
        c = c * 10.0 ** generator.uniform(-3, 3, size=(10, 1, size))
    if kind == "repeated":
        c[:, :, size // 2 :] = c[:, :, : size - size // 2]
    if kind == "opposed":
        c[:, :, size // 2 :] = -c[:, :, : size - size // 2]
    d = generator.normal(size=(10, 30)) + (1.0 if kind == "alike" else 0.0)
    return c, d


@pytest.mark.parametrize("size", [1, 4, 19])
@pytest.mark.parametrize("kind", ["plain", "alike", "scaled", "repeated", "opposed"])
def test_equals_nnls(size, kind):
    c, d = problems(size, kind)
    matrix, linear = np.einsum("bmi,bmj->bij", c, c), -np.einsum("bmi,bm->bi", c, d)
    found = np.asarray(solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(linear, jnp.float32)), np.float64)
    assert found.min() >= 0
    for a, q, x, one_c, one_d in zip(matrix, linear, found, c, d, strict=True):
        expected = nnls(one_c, one_d)[0]
        best = objective(a, q, expected)
        assert objective(a, q, x) - best <= CLOSE * max(-best, 1e-3)
        if kind in ("plain", "scaled"):  # elsewhere many x are nearly as good
            scale = np.sqrt(np.diag(a))
            np.testing.assert_allclose(x * scale, expected * scale, atol=1e-4 * np.linalg.norm(one_d))


def test_nothing_to_gain():
    np.testing.assert_array_equal(alone(jnp.eye(3), jnp.array([0.0, 1.0, 2.0])), np.zeros(3))
    np.testing.assert_array_equal(alone(jnp.eye(3), jnp.zeros(3)), np.zeros(3))


def test_by_hand():
    """Coordinate 0 is freed first, and held again when the two others, together, do better."""
    matrix = jnp.array([[1.0, 0.5, 0.5], [0.5, 1.0, -0.3], [0.5, -0.3, 1.0]])
    found = alone(matrix, jnp.array([-1.0, -0.9, -0.9]))
    np.testing.assert_allclose(found, [0.0, 9 / 7, 9 / 7], atol=1e-4)


def test_a_singular_matrix_gives_a_finite_point():
    x = alone(jnp.ones((3, 3)), -jnp.ones(3))
    np.testing.assert_allclose(jnp.sum(x), 1.0, atol=1e-3)

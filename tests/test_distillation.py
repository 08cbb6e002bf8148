"""The divergence of answers against sums written out in NumPy, its limit, and answers chunk by chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch
from cl_jax.distillation import answers, divergence
from cl_jax.models.mlp import mlp

# float32 sums of a few terms of order 1, against float64.
ROUNDING = dict(rtol=2e-5, atol=1e-6)
TEACHER = np.random.default_rng(0).normal(0, 2, (4, 5)).astype(np.float32)
PRESENT = np.random.default_rng(1).normal(0, 2, (4, 5)).astype(np.float32)
OLD = np.array([[1, 1, 0, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]], bool)
NOW = OLD | np.array([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
compiled = jax.jit(divergence)


def by_hand(teacher, present, temperature, old, now):
    """One row, float64: sum over old outputs k of q_k log(q_k / p_k)."""
    q = {k: np.exp(float(teacher[k]) / temperature) for k in np.flatnonzero(old)}
    p = {k: np.exp(float(present[k]) / temperature) for k in np.flatnonzero(now)}
    q, p = ({k: value / sum(each.values()) for k, value in each.items()} for each in (q, p))
    return sum(q[k] * np.log(q[k] / p[k]) for k in q), q, p


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_divergence_by_hand(temperature):
    found = compiled(TEACHER, PRESENT, temperature, OLD, NOW)
    expected = [by_hand(*row)[0] for row in zip(TEACHER, PRESENT, [temperature] * 4, OLD, NOW, strict=True)]
    np.testing.assert_allclose(found, expected, **ROUNDING)
    assert found.dtype == jnp.float32 and min(expected) >= 0 and expected[0] > 0.1


def test_gradient_is_that_of_the_cross_entropy():
    gradient = jax.jit(jax.grad(lambda logits: jnp.sum(divergence(TEACHER, logits, 2.0, OLD, NOW))))(PRESENT)
    expected = np.zeros((4, 5))
    for i in range(4):
        _, q, p = by_hand(TEACHER[i], PRESENT[i], 2.0, OLD[i], NOW[i])
        for k in p:
            expected[i, k] = (p[k] - q.get(k, 0.0)) / 2.0
    np.testing.assert_allclose(gradient, expected, **ROUNDING)


def test_equal_answers_do_not_diverge():
    shifted = TEACHER + np.float32(3)  # a softmax does not see it
    np.testing.assert_allclose(compiled(TEACHER, shifted, 1.0), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(compiled(TEACHER, shifted, 1.0, OLD, OLD), np.zeros(4), atol=1e-6)


def test_no_old_output_gives_no_nan():
    nothing = np.zeros((4, 5), bool)
    value, gradient = jax.value_and_grad(lambda z: jnp.sum(compiled(TEACHER, z, 1.0, nothing, nothing)))(PRESENT)
    assert np.isfinite(value) and not np.asarray(gradient).any()


def test_high_temperature_matches_logits():
    """T^2 KL -> half the variance of the differences of the logits."""
    temperature = 100.0  # the next term of the series is smaller by about 1 / T
    difference = PRESENT - TEACHER
    expected = 0.5 * np.mean((difference - difference.mean(axis=1, keepdims=True)) ** 2, axis=1)
    np.testing.assert_allclose(temperature**2 * compiled(TEACHER, PRESENT, temperature), expected, rtol=0.05)


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_answers_in_chunks_are_the_models(chunk):
    model = mlp((6,), 4)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(7, 5)), jnp.float32)
    params = model.init(jax.random.key(0), x)

    def load(rows):
        return Batch(x[rows], jnp.zeros_like(rows))

    rows = jnp.array([6, 0, 1, 2, 5, 4, 3], jnp.int32)
    found = jax.jit(lambda p: answers(model, p, rows, load, chunk=chunk))(params)
    np.testing.assert_allclose(found, model.apply(params, x)[rows], **ROUNDING)

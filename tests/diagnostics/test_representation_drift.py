"""Linear CKA against its definition, and what it is blind to."""

import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.diagnostics import representation_drift
from cl_jax.diagnostics.representation_drift import linear_cka
from tests.diagnostics.by_hand import ALL_WEIGHTS, examples, forward, measured

EQUAL = jnp.full((20,), 1 / 20, jnp.float32)


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """||Y^T X||^2 / (||X^T X|| ||Y^T Y||), columns centred."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)


def test_features_then_and_now_of_every_task_but_the_last() -> None:
    array, layers = measured(representation_drift, 3)["feature_similarity"]
    assert layers == ("dense_1", "dense_2") and array.shape == (2, 3, 1)
    for task in (0, 1):
        x, _ = examples(task)
        (_, *then), _ = forward(ALL_WEIGHTS[task + 1], x)
        (_, *now), _ = forward(ALL_WEIGHTS[3], x)
        hand = [by_definition(one, other) for one, other in zip(then, now, strict=True)]
        np.testing.assert_allclose(array[:, task, 0], hand, rtol=1e-4)
    assert np.isnan(array[:, 2]).all()


def test_boundaries_that_are_not_known_are_left_out() -> None:
    array, _ = measured(representation_drift, 3, since=2)["feature_similarity"]
    assert np.isnan(array[:, [0, 2]]).all() and np.isfinite(array[:, 1]).all()


def test_rotation_scale_and_shift_do_not_count() -> None:
    draw = np.random.default_rng(0)
    x, other = draw.normal(size=(2, 20, 5)).astype(np.float32)
    rotation, _ = np.linalg.qr(draw.normal(size=(5, 5)))
    moved = (3 * x @ rotation + 7).astype(np.float32)
    assert float(linear_cka(jnp.asarray(x), jnp.asarray(moved), EQUAL)) == pytest.approx(1, abs=1e-5)
    found = float(linear_cka(jnp.asarray(x), jnp.asarray(other), EQUAL))
    assert found == pytest.approx(by_definition(x, other), rel=1e-4) and found < 0.6


def test_rows_of_weight_zero_do_not_count() -> None:
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(2, 20, 5)).astype(np.float32)
    weight = jnp.asarray((np.arange(20) < 12) / np.float32(12), jnp.float32)
    assert float(linear_cka(x, y, weight)) == pytest.approx(by_definition(x[:12], y[:12]), rel=1e-4)

"""Shares of important weights and participation ratios against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.diagnostics import shared_weights
from tests.diagnostics.by_hand import ALL_WEIGHTS, NAMES, examples, fisher, flat, forward, measured


def by_hand(vectors: list[np.ndarray]) -> tuple[float, float]:
    """Share of important weights that are so to two tasks or more, and participation, of one layer."""
    shares = np.array([each / each.sum() for each in vectors])
    important = (shares > shares.mean(axis=1, keepdims=True)).sum(axis=0)
    weighted, whole = 0.0, 0.0
    for column in shares.T:
        if column.sum() > 0:
            weighted += column.sum() * column.sum() ** 2 / np.sum(column**2)
            whole += column.sum()
    return (important >= 2).sum() / (important >= 1).sum(), weighted / whole


@pytest.mark.parametrize("after", [2, 3])
def test_over_the_tasks_so_far_by_layer(after: int) -> None:
    found, now = measured(shared_weights, after), ALL_WEIGHTS[after]
    fishers = [fisher(now, examples(task)[0]) for task in range(after)]
    shares, layers = found["shared_weights"]
    participation, _ = found["weight_participation"]
    assert layers == ("", *NAMES)
    hand = [by_hand([flat(each, name) for each in fishers]) for name in NAMES]
    np.testing.assert_allclose(shares[1:, 0, 0], [each[0] for each in hand], rtol=1e-5)
    np.testing.assert_allclose(participation[1:, 0, 0], [each[1] for each in hand], rtol=1e-4)
    # Each layer's importances sum to the number of tasks, so that of the whole network is their mean.
    np.testing.assert_allclose(participation[0, 0, 0], np.mean([each[1] for each in hand]), rtol=1e-4)
    assert (participation >= 1).all() and (participation <= after).all()


def test_features_over_the_tasks_so_far() -> None:
    array, layers = measured(shared_weights, 3)["feature_participation"]
    assert layers == ("dense_1", "dense_2")
    energies = [[np.mean(each**2, axis=0) for each in forward(ALL_WEIGHTS[3], examples(t)[0])[0][1:]] for t in range(3)]
    for layer in (0, 1):
        shares = np.array([each[layer] / each[layer].sum() for each in energies])
        ratios = [c.sum() ** 2 / np.sum(c**2) for c in shares.T if c.sum() > 0]
        np.testing.assert_allclose(array[layer, 0, 0], np.mean(ratios), rtol=1e-4)


@pytest.mark.parametrize("after", [0, 1])
def test_undefined_for_fewer_than_two_tasks(after: int) -> None:
    assert all(np.isnan(array).all() for array, _ in measured(shared_weights, after).values())


def test_one_feature_a_task_and_one_for_all() -> None:
    assert float(shared_weights.feature_participation(jnp.eye(3))) == 1
    assert float(shared_weights.feature_participation(jnp.ones((3, 4)))) == pytest.approx(3)
    unused = jnp.array([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 0]])
    assert float(shared_weights.feature_participation(unused)) == pytest.approx(2)

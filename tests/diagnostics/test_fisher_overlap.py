"""Fisher overlap against the Frechet distance of Fishers summed example by example."""

import numpy as np
import pytest

from cl_jax.diagnostics import fisher_overlap
from tests.diagnostics.by_hand import ALL_WEIGHTS, NAMES, examples, expected, fisher, measured


def frechet_overlap(one: np.ndarray, other: np.ndarray) -> float:
    """1 - 1/2 ||A^(1/2) - B^(1/2)||^2 with unit traces."""
    a, b = one / one.sum(), other / other.sum()
    return 1 - 0.5 * np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)


def test_the_last_task_with_each_earlier_one_by_layer() -> None:
    array, layers = measured(fisher_overlap, 3)["fisher_overlap"]
    assert layers == ("", *NAMES) and array.shape == (4, 3, 1)
    now = ALL_WEIGHTS[3]
    fishers = [fisher(now, examples(task)[0]) for task in range(3)]
    for task in (0, 1):
        np.testing.assert_allclose(
            array[:, task, 0], expected(layers, frechet_overlap, fishers[2], fishers[task]), rtol=1e-4
        )
    assert np.isnan(array[:, 2]).all() and (array[:, :2] < 0.999).all() and (array[:, :2] > 0).all()


@pytest.mark.parametrize("after", [0, 1])
def test_one_task_overlaps_with_nothing(after: int) -> None:
    assert np.isnan(measured(fisher_overlap, after)["fisher_overlap"][0]).all()


def test_proportional_is_one_and_disjoint_is_zero() -> None:
    a, b = {"w": np.array([1e-30, 3e-30], np.float32)}, {"w": np.array([2e-25, 6e-25], np.float32)}
    assert float(fisher_overlap.overlap(a, b)) == pytest.approx(1, rel=1e-5)  # no underflow on the way
    c, d = {"w": np.array([1, 0], np.float32)}, {"w": np.array([0, 1], np.float32)}
    assert float(fisher_overlap.overlap(c, d)) == 0
    assert np.isnan(fisher_overlap.overlap(c, {"w": np.zeros(2, np.float32)}))

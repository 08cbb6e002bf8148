"""Cosines between task gradients against gradients written out by hand."""

import numpy as np
import pytest

from cl_jax.diagnostics import gradient_interference
from tests.diagnostics.by_hand import ALL_WEIGHTS, BATCHES, NAMES, examples, expected, loss_gradient, measured


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def test_the_next_task_with_each_earlier_one_by_layer() -> None:
    array, layers = measured(gradient_interference, 2)["gradient_cosine"]
    assert layers == ("", *NAMES) and array.shape == (4, 3, 1)
    gradients = [loss_gradient(ALL_WEIGHTS[2], *examples(task)) for task in range(3)]
    for task in (0, 1):
        np.testing.assert_allclose(
            array[:, task, 0], expected(layers, cosine, gradients[task], gradients[2]), rtol=1e-4, atol=1e-6
        )
    assert np.isnan(array[:, 2]).all()


@pytest.mark.parametrize("after", [0, 3])
def test_nothing_to_compare_before_the_first_and_after_the_last_task(after: int) -> None:
    assert np.isnan(measured(gradient_interference, after)["gradient_cosine"][0]).all()


def test_opposite_labels_pull_apart() -> None:
    """The same inputs with the label of a two-way choice turned over: exactly opposite at p = 1/2."""
    zero = {"w": {"kernel": np.array([[1.0, -1.0]], np.float32)}}
    minus = {"w": {"kernel": np.array([[-2.0, 2.0]], np.float32)}}
    assert float(gradient_interference.cosine(zero, minus)) == pytest.approx(-1)
    tiny = {"w": {"kernel": np.array([[1e-18, 0.0]], np.float32)}}
    assert float(gradient_interference.cosine(tiny, tiny)) == pytest.approx(1, rel=1e-4)


def test_probes_are_those_of_the_next_tasks_training() -> None:
    asked = []

    def probe(task, **about):
        asked.append(about)
        return BATCHES[0]

    measured(gradient_interference, 2, probe=probe)
    assert {"training": True} == {key: value for about in asked for key, value in about.items() if key != "present"}

"""Accuracy after each step of a walk that is known, and its minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.diagnostics import stability_gap
from tests.diagnostics.by_hand import ALL_WEIGHTS, examples, forward, measured

WALK = [ALL_WEIGHTS[number] for number in (3, 1, 0, 2, 3, 0, 1)]  # what the member has after each step


def next_steps(number, look):
    assert number == len(WALK)
    every = jax.tree.map(lambda *each: jnp.stack(each), *WALK)
    return jax.lax.map(lambda step: look(lambda task: jax.tree.map(lambda leaf: leaf[step], every)), jnp.arange(number))


def accuracy(params, task: int) -> float:
    x, y = examples(task)
    return float(np.mean(forward(params, x)[1].argmax(axis=1) == y))


def test_accuracy_of_earlier_tasks_step_by_step() -> None:
    found = measured(stability_gap, 2, next_steps=next_steps)
    array, _ = found["accuracy_at_step"]
    steps = (0, 1, 2, 3, 5, 7)
    assert array.shape == (1, 3, 6) and stability_gap.shown_steps(7) == steps
    for task in (0, 1):
        every = [accuracy(params, task) for params in (ALL_WEIGHTS[2], *WALK)]
        np.testing.assert_allclose(array[0, task], [every[step] for step in steps], rtol=1e-6)
        np.testing.assert_allclose(found["minimum_accuracy"][0][0, task, 0], min(every[1:]), rtol=1e-6)
    assert np.isnan(array[0, 2]).all()


@pytest.mark.parametrize("after", [0, 3])
def test_undefined_at_the_ends(after: int) -> None:
    found = measured(stability_gap, after, next_steps=next_steps)
    assert all(np.isnan(array).all() for array, _ in found.values())


def test_steps_that_are_shown() -> None:
    assert stability_gap.shown_steps(100) == (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 100)
    assert stability_gap.shown_steps(1) == (0, 1) and stability_gap.shown_steps(2) == (0, 1, 2)

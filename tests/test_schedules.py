"""Learning rates worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.experiment import Run
from cl_jax.schedules import SCHEDULES, Rewarm, TaskDecay


def rates(schedule, task, steps, learning_rate=0.5):
    """The rate at every step of a task."""
    one = jax.jit(jax.vmap(lambda step: schedule.value(jnp.float32(learning_rate), jnp.int32(task), step, steps)))
    found = one(jnp.arange(steps, dtype=jnp.int32))
    assert found.dtype == jnp.float32
    return np.asarray(found)


def test_the_default_is_constant():
    assert isinstance(Run().schedule, TaskDecay) and set(SCHEDULES) == {"task_decay", "rewarm"}
    for task in (0, 1, 7):
        np.testing.assert_array_equal(rates(TaskDecay(), task, 3), np.float32(0.5))


@pytest.mark.parametrize(
    ("rate", "floor", "expected"),
    [
        (0.5, 0.0, [0.5, 0.25, 0.125, 0.0625]),
        (0.5, 0.2, [0.5, 0.25, 0.2, 0.2]),
        (0.0, 0.0, [0.5, 0.0, 0.0, 0.0]),  # 0 ** 0 = 1: the first task always trains
        (0.0, 0.1, [0.5, 0.1, 0.1, 0.1]),
        (0.8, 0.9, [0.5, 0.5, 0.5, 0.5]),  # a floor above the start does not raise it
    ],
)
def test_decay_by_task(rate, floor, expected):
    for task, value in enumerate(expected):
        np.testing.assert_allclose(rates(TaskDecay(rate=rate, floor=floor), task, 4), [value] * 4, rtol=1e-6)


def test_rewarm():
    """Ten steps, the first four rising to the peak 0.5, then half a cosine over six down to a fifth of it."""
    falling = [0.5 * (0.2 + 0.8 * 0.5 * (1 + np.cos(np.pi * part / 6))) for part in range(7)]
    expected = [0.125, 0.25, 0.375, *falling]
    schedule = Rewarm(warmup=0.4, final=0.2)
    for task in (0, 3):
        np.testing.assert_allclose(rates(schedule, task, 10), expected, rtol=1e-5)
    np.testing.assert_allclose(expected[3], 0.5)
    np.testing.assert_allclose(expected[9], 0.1)


def test_rewarm_decays_its_peak_by_task():
    whole = rates(Rewarm(), 0, 20)
    np.testing.assert_allclose(rates(Rewarm(rate=0.5), 2, 20), whole / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("warmup", "final", "expected"),
    [
        (0.0, 1.0, [0.5, 0.5, 0.5, 0.5]),
        (1.0, 0.1, [0.125, 0.25, 0.375, 0.5]),
        (0.0, 0.0, [0.5 * 0.5 * (1 + np.cos(np.pi * part / 4)) for part in (1, 2, 3, 4)]),
    ],
)
def test_rewarm_at_its_limits(warmup, final, expected):
    np.testing.assert_allclose(rates(Rewarm(warmup=warmup, final=final), 0, 4), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("make", [lambda value: TaskDecay(rate=value), lambda value: Rewarm(rate=value)])
def test_parameters_may_be_swept(make):
    """As tracers under vmap they give what they give one by one."""
    values = jnp.array([0.25, 0.5, 1.0])
    together = jax.vmap(lambda v: make(v).value(jnp.float32(0.1), jnp.int32(2), jnp.int32(1), 5))(values)
    np.testing.assert_allclose(together, [rates(make(float(v)), 2, 5, 0.1)[1] for v in values], rtol=1e-6)

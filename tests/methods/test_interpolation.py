"""Three tasks of interpolated weights, followed by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.batch import Batch, Task
from cl_jax.methods import Interpolation
from cl_jax.methods.interpolation import interpolation
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
MODEL = mlp((), 3)
ROUNDING = dict(rtol=1e-5, atol=1e-6)


def examples(seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(8, 4)), generator.integers(0, 3, 8)
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))


def on_the_line(tau, origin, params):
    return jax.tree.map(lambda o, p: np.asarray(o) + tau * (np.asarray(p) - np.asarray(o)), origin, params)


def life(tau, continue_from=False):
    """Of each task the weights trained, those shown after each step, at its boundary, and after it; the last state."""
    learner = train.Learner(MODEL, optax.scale(-1.0), interpolation(jnp.float32(tau), continue_from=continue_from))
    step = jax.jit(lambda state, batch: train.train_step(learner, KEY, state, batch, 0.5)[0])
    state, tasks = train.init(learner, KEY, examples(0)), []
    for number in range(3):
        steps = []
        for _ in range(2):
            state = step(state, examples(number))
            steps.append((state.trainable, train.evaluated(learner, state)))
        ended = train.consolidated(learner, KEY, state, Task(jnp.int32(number), examples(number), jnp.ones(8, bool)))
        state = train.restarted(learner, KEY, ended)
        tasks.append((steps, train.evaluated(learner, ended), train.evaluated(learner, state), state.trainable))
    return tasks, state


@pytest.mark.parametrize("continue_from", [False, True])
def test_three_tasks_by_hand(continue_from):
    origin = None
    for steps, shown, again, start in life(0.3, continue_from)[0]:
        for trained, seen in steps:
            chex.assert_trees_all_close(
                seen, trained if origin is None else on_the_line(0.3, origin, trained), **ROUNDING
            )
        chex.assert_trees_all_close(shown, steps[-1][1], **ROUNDING)
        chex.assert_trees_all_close(again, shown, **ROUNDING)  # also when asked once the next task has its start
        origin = shown if continue_from else steps[-1][0]
        chex.assert_trees_all_close(start, origin, **ROUNDING)


def test_tau_1_shows_what_trains_and_tau_0_what_was_before():
    ones, zeros = life(1.0)[0], life(0.0)[0]
    for number in range(3):
        chex.assert_trees_all_equal(ones[number][1], ones[number][0][-1][0])
        before = zeros[max(number - 1, 0)][0][-1][0]  # the first task has nothing before it
        chex.assert_trees_all_equal(zeros[number][1], before)


def test_one_training_gives_every_tau():
    (half, state), (other, same) = life(0.5), life(0.9)
    chex.assert_trees_all_equal(state, same)
    shown = jax.vmap(lambda tau: interpolation(tau).evaluated(state.method, state.trainable))(jnp.array([0.5, 0.9]))
    for i, tasks in enumerate((half, other)):
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], shown), tasks[-1][1], **ROUNDING)


def test_only_what_goes_on_from_there_moves_weights():
    assert not Interpolation().moves_weights and Interpolation(continue_from=True).moves_weights

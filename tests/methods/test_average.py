"""The mean of the weights against its sum written out; training does not notice it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import sources, train
from cl_jax.adapters.adapter import Adapter
from cl_jax.batch import Batch, Task
from cl_jax.checks import check_run
from cl_jax.config import config
from cl_jax.data import split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Run
from cl_jax.method import Method, StepInfo
from cl_jax.methods import Average, Interpolation
from cl_jax.methods.average import average
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
MODEL = mlp((), 2)
BATCH = Batch(jax.random.normal(KEY, (6, 3)), jnp.array([0, 1, 1, 0, 1, 0], jnp.int32))
TASK = Task(jnp.int32(0), BATCH, jnp.ones(6, bool))
WRONG = {"w": jnp.full((4,), jnp.nan)}  # what trains is not what is shown


def weights(number: int) -> list[dict[str, jax.Array]]:
    return [{"w": jnp.asarray(row, jnp.float32)} for row in np.random.default_rng(0).normal(size=(number, 4))]


def info(after) -> StepInfo:
    return StepInfo(BATCH, BATCH, WRONG, WRONG, after, jnp.zeros((6, 2)))


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_mean_is_the_sum_written_out(decay):
    start, *path = weights(13)
    method = average(jnp.float32(decay))
    step, state = jax.jit(method.after_step), method.init(KEY, start, BATCH)
    chex.assert_trees_all_equal(method.evaluated(state, WRONG), start)
    for t, theta in enumerate(path, 1):
        state = step(KEY, state, info(theta))
        weight = np.float64(decay) ** np.arange(t - 1, -1, -1)
        expected = weight @ np.array([each["w"] for each in path[:t]], np.float64) / weight.sum()
        np.testing.assert_allclose(method.evaluated(state, WRONG)["w"], expected, rtol=1e-5, atol=1e-6)
        if decay == 0:
            np.testing.assert_array_equal(method.evaluated(state, WRONG)["w"], theta["w"])


@pytest.mark.parametrize("reset", [False, True])
def test_a_boundary_forgets_the_steps_before_it_if_asked(reset):
    start, one, two, three, four = weights(5)
    method = average(jnp.float32(1.0), reset=reset)
    state = method.init(KEY, start, BATCH)
    for theta in (one, two):
        state = method.after_step(KEY, state, info(theta))
    shown = method.evaluated(state, WRONG)
    state = method.end_task(KEY, state, two, TASK)
    chex.assert_trees_all_equal(method.evaluated(state, WRONG), shown)  # the task's own mean is what is evaluated
    for theta in (three, four):
        state = method.after_step(KEY, state, info(theta))
    of = (three, four) if reset else (one, two, three, four)
    expected = np.mean([each["w"] for each in of], axis=0)
    np.testing.assert_allclose(method.evaluated(state, WRONG)["w"], expected, rtol=1e-5, atol=1e-6)


def test_training_does_not_notice():
    learners = [train.Learner(MODEL, optax.scale(-1.0), method) for method in (Method(), average(jnp.float32(1.0)))]
    states, path = [train.init(learner, KEY, BATCH) for learner in learners], []
    steps = [jax.jit(lambda state, learner=learner: train.train_step(learner, KEY, state, BATCH, 0.5)[0])
             for learner in learners]  # fmt: skip
    for _ in range(4):
        states = [step(state) for step, state in zip(steps, states, strict=True)]
        path.append(states[0].trainable)
    states = [train.end_task(learner, KEY, state, TASK) for learner, state in zip(learners, states, strict=True)]
    chex.assert_trees_all_equal(states[0].trainable, states[1].trainable, path[-1])
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *path)
    chex.assert_trees_all_close(train.evaluated(learners[1], states[1]), mean, rtol=1e-5, atol=1e-6)


@config
class PerTask:
    """Weights of its own for each task, as far as the checks are concerned."""

    def build(self, num_tasks):
        return Adapter(per_task=num_tasks > 1)

    def check(self, params):
        pass


@pytest.mark.parametrize("method", [Average(), Interpolation()])
def test_weights_that_each_task_has_of_its_own_are_refused(method):
    data = split_source(sources.load("digits"), 0.1)
    with pytest.raises(UserError, match=r"one: methods\.m is evaluated with other.*adapter PerTask each task with"):
        check_run(Run(adapter=PerTask(), methods={"m": method}), data, "one")
    check_run(Run(methods={"m": method}), data, "one")

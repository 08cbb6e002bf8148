"""The noise is what is left when the shrunk weights are taken away."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import program, sources, train
from cl_jax.batch import Batch, Task
from cl_jax.data import split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Mlp, Run
from cl_jax.methods import ShrinkPerturb
from cl_jax.methods.shrink_perturb import shrink_perturb
from cl_jax.models.mlp import mlp
from cl_jax.tasks import Permuted

KEY = jax.random.key(0)
MODEL = mlp((40,), 30, "he")
BATCH = Batch(jnp.ones((4, 25)), jnp.zeros((4,), jnp.int32), weight=jnp.zeros((4,)))  # no gradient
TASK = Task(jnp.int32(0), BATCH, jnp.ones(4, bool))
START = MODEL.init(jax.random.key(1), BATCH.x)


def initial(key):
    return MODEL.init(key, BATCH.x)


def noise(before, after):
    return jax.tree.map(lambda old, new: np.asarray(new - 0.4 * old, np.float64) / 0.1, before, after)


def assert_normal(sample, variance):
    """Mean and second moment within five standard errors."""
    sample = np.concatenate([np.ravel(each) for each in sample])
    np.testing.assert_allclose(sample.mean(), 0, atol=5 * (variance / sample.size) ** 0.5)
    np.testing.assert_allclose(np.mean(sample**2) / variance, 1, atol=5 * (2 / sample.size) ** 0.5)


def test_a_boundary_shrinks_all_weights_and_adds_normal_noise():
    restart = jax.jit(shrink_perturb(jnp.float32(0.4), jnp.float32(0.1)).restart)
    one, two = (noise(START, restart(jax.random.key(seed), (), START)) for seed in (0, 1))
    assert_normal(jax.tree.leaves(one), 1.0)
    kernels = [np.ravel(each["dense_0"]["kernel"]) for each in (one, two)]
    assert abs(np.corrcoef(kernels)[0, 1]) < 5 / len(kernels[0]) ** 0.5  # each boundary its own, and each parameter
    width = min(kernels[0].size, one["dense_1"]["kernel"].size)
    pair = kernels[0][:width], np.ravel(one["dense_1"]["kernel"])[:width]
    assert abs(np.corrcoef(pair)[0, 1]) < 5 / width**0.5


def test_initial_noise_has_the_size_of_each_kind_of_parameter():
    restart = jax.jit(shrink_perturb(jnp.float32(0.4), jnp.float32(0.1), initial=initial).restart)
    found = noise(START, restart(KEY, (), START))
    for name, d_in in (("dense_0", 25), ("dense_1", 40)):
        assert_normal([found[name]["kernel"]], 2 / d_in)
        np.testing.assert_allclose(found[name]["bias"], 0, atol=1e-6)


def test_the_two_ends():
    """1 and 0 change nothing, bitwise; 0 and 1 start anew."""
    ends = [shrink_perturb(jnp.float32(s), jnp.float32(1 - s), initial=initial).restart for s in (1.0, 0.0)]
    chex.assert_trees_all_equal(ends[0](KEY, (), START), START)
    chex.assert_trees_all_equal(ends[1](KEY, (), START), initial(KEY))


def test_every_step():
    """From zero weights the variance after t steps is perturb^2 (1 - shrink^2t) / (1 - shrink^2)."""
    learner = train.Learner(MODEL, optax.scale(-1.0), shrink_perturb(jnp.float32(0.8), jnp.float32(0.1), every="step"))
    state = train.init(learner, KEY, BATCH, jax.tree.map(jnp.zeros_like, START))
    step = jax.jit(lambda state, key: train.train_step(learner, key, state, BATCH, 0.5)[0])
    for t in range(4):
        state = step(state, jax.random.fold_in(KEY, t))
    assert_normal(jax.tree.leaves(state.trainable), 0.1**2 * (1 - 0.8**8) / (1 - 0.8**2))
    chex.assert_trees_all_equal(train.end_task(learner, KEY, state, TASK), state)


def test_what_a_task_learned_is_evaluated_before_it_shrinks():
    data = split_source(sources.load("digits"), 0.1)
    run = Run(stream=Permuted(num_tasks=2), model=Mlp(hidden=()), methods={"s": ShrinkPerturb(shrink=0.0)})
    seed, task = jnp.int32(0), jnp.int32(0)

    def boundary(run):
        curriculum, params = program.drawn(program.world_of(run), seed, data)
        state = program.init(run, seed, curriculum, params, data)
        return state, program.end_task(run, seed, curriculum, state, data, task)

    before, (after, shown) = jax.jit(boundary)(jax.tree.map(jnp.float32, run))
    chex.assert_trees_all_equal(shown, before.trainable)
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (shown, after.trainable)), strict=True))


def test_only_every_task_waits_for_a_boundary():
    assert ShrinkPerturb().waits_for_boundary and not ShrinkPerturb(every="step").waits_for_boundary
    with pytest.raises(UserError, match=r"unknown shrink_perturb every 'tsk'; known: step, task\. Did you mean 'task'"):
        shrink_perturb(0.4, 0.1, every="tsk")

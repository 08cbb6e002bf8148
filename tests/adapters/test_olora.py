"""O-LoRA's penalty against NumPy loops and its closed-form gradient, and that it does what it is for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.adapters import Olora
from cl_jax.adapters.olora import olora
from cl_jax.adapters.task_lora import task_lora
from cl_jax.batch import Batch, whole_task
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
TASKS = 4
MODEL = mlp((6,), 3)
BATCH = Batch(jax.random.normal(KEY, (8, 5)), jnp.arange(8, dtype=jnp.int32) % 3)
PARAMS = MODEL.init(jax.random.key(1), BATCH.x)
ROUNDING = dict(rtol=1e-5, atol=1e-6)  # float32 sums of a handful of terms against float64
both_first_tasks = pytest.mark.parametrize("first_task", ["lora", "full"])


def expected(factors, task, first_task):
    """sum_{i < t} |A_i^T A_t|^2 and its gradient by A_t, 2 sum_{i < t} A_i A_i^T A_t; by path."""
    value, slopes = 0.0, {}
    for name, pair in factors.items():
        a = np.asarray(pair["a"], np.float64)
        slopes[name] = np.zeros_like(a[0])
        for i in range(1 if first_task == "full" else 0, task):
            for j in range(a.shape[2]):
                for k in range(a.shape[2]):
                    value += float(np.dot(a[i][:, j], a[task][:, k])) ** 2
            slopes[name] += 2 * a[i] @ a[i].T @ a[task]
    return value, slopes


@both_first_tasks
def test_the_penalty_is_the_sum_of_squared_products(first_task):
    adapter = olora(2, TASKS, jnp.float32(0.7), first_task=first_task)
    base, trainable = jax.jit(adapter.init)(KEY, PARAMS)
    of = jax.jit(jax.value_and_grad(lambda trainable, task: adapter.penalty(base, trainable, task)))
    for task in range(TASKS):
        value, slopes = expected(trainable.factors, task, first_task)
        found, gradient = of(trainable, task)
        np.testing.assert_allclose(found, 0.7 * value, **ROUNDING)
        for name, slope in slopes.items():
            at = np.zeros((TASKS, *slope.shape))
            at[task] = 0.7 * slope
            np.testing.assert_allclose(gradient.factors[name]["a"], at, **ROUNDING)
            assert not np.asarray(gradient.factors[name]["b"]).any()
        assert (value > 0) == (task > (first_task == "full"))


def test_a_step_descends_on_it():
    """Beside the task loss: what a strength changes in one step is the step size times the penalty's gradient."""

    @jax.jit
    def step(strength):
        learner = train.Learner(MODEL, optax.scale(-0.1), adapter=olora(2, TASKS, strength))
        state = train.init(learner, KEY, BATCH, PARAMS)
        return state, *train.train_step(learner, KEY, state, BATCH, task=2)

    (start, free, plain), (_, held, metrics) = step(0.0), step(5.0)
    value, slopes = expected(start.trainable.factors, 2, "lora")
    np.testing.assert_allclose(metrics.penalty, 5 * value, **ROUNDING)
    assert plain.penalty == 0 and plain.loss == metrics.loss
    for name, slope in slopes.items():
        by = np.asarray(held.trainable.factors[name]["a"] - free.trainable.factors[name]["a"])
        np.testing.assert_allclose(by[2], -0.1 * 5 * slope, rtol=1e-4, atol=1e-6)
        assert not by[[0, 1, 3]].any()
        np.testing.assert_array_equal(held.trainable.factors[name]["b"], free.trainable.factors[name]["b"])


def test_strength_makes_subspaces_orthogonal():
    @jax.jit
    def overlap(strength):
        adapter = olora(1, TASKS, strength, 1.0)
        learner = train.Learner(MODEL, optax.scale(-0.05), adapter=adapter)
        state = train.init(learner, KEY, BATCH, PARAMS)
        for task in range(TASKS):

            def one(state, _, task=task):
                return train.train_step(learner, KEY, state, BATCH, task=task)[0], None

            state, _ = jax.lax.scan(one, state, length=60)
            state = train.end_task(learner, KEY, state, whole_task(task, BATCH))
        a = state.trainable.factors["dense_0/kernel"]["a"][:, :, 0]
        a = a / jnp.linalg.norm(a, axis=1, keepdims=True)
        return jnp.max(jnp.abs(jnp.triu(a @ a.T, 1)))

    free, held = (float(overlap(strength)) for strength in (0.0, 4.0))
    assert free > 0.3 and held < 0.05  # cosines between the tasks' directions


def test_all_tasks_are_evaluated_with_one_sum():
    adapter, twin = olora(2, TASKS, 0.5, 3.0), task_lora(2, TASKS, 3.0, cumulative=True)
    assert not adapter.per_task and twin.per_task
    base, trainable = jax.jit(adapter.init)(KEY, PARAMS)
    changed = trainable._replace(factors=jax.tree.map(lambda leaf: leaf + 1.0, trainable.factors))
    one, two = jax.jit(adapter.effective), jax.jit(twin.effective)
    for task in range(TASKS):
        chex.assert_trees_all_equal(one(base, changed, task), two(base, changed, task))


def test_config_builds_what_it_says():
    config = Olora(rank=2, strength=2.0, alpha=6.0, targets="dense_0", first_task="lora")
    base, trainable = jax.jit(config.build(TASKS).init)(KEY, PARAMS)
    assert set(trainable.factors) == {"dense_0/kernel"}
    value, _ = expected(trainable.factors, 3, "lora")
    np.testing.assert_allclose(config.build(TASKS).penalty(base, trainable, jnp.int32(3)), 2 * value, **ROUNDING)

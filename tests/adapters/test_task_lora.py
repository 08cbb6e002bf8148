"""LoRA per task against NumPy: each task's own weights, and those of all tasks so far."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.adapters import TaskLora
from cl_jax.adapters.task_lora import task_lora
from cl_jax.batch import Batch, whole_task
from cl_jax.errors import UserError
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
TASKS = 3
MODEL = mlp((6,), 3)
BATCH = Batch(jax.random.normal(KEY, (8, 5)), jnp.arange(8, dtype=jnp.int32) % 3)
PARAMS = MODEL.init(jax.random.key(1), BATCH.x)
ROUNDING = dict(rtol=1e-5, atol=1e-6)  # float32 sums of a handful of terms against float64
both_first_tasks = pytest.mark.parametrize("first_task", ["lora", "full"])
both_sums = pytest.mark.parametrize("cumulative", [False, True])


def moved(tree):
    return jax.tree.map(lambda leaf: leaf + jnp.linspace(-1, 1, leaf.size).reshape(leaf.shape), tree)


@both_first_tasks
@both_sums
def test_a_task_s_weights_are_base_plus_its_products(first_task, cumulative):
    adapter = task_lora(2, TASKS, jnp.float32(3.0), cumulative=cumulative, first_task=first_task)
    base, trainable = jax.jit(adapter.init)(KEY, PARAMS)
    effective = jax.jit(adapter.effective)
    assert trainable.factors["dense_1/kernel"]["a"].shape == (TASKS, 6, 2)
    changed = trainable._replace(factors=moved(trainable.factors))
    for task in range(TASKS):
        chex.assert_trees_all_equal(effective(base, trainable, task), PARAMS)
        expected = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS)
        for name, layer in expected.items():
            a, b = (np.asarray(changed.factors[f"{name}/kernel"][part], np.float64) for part in "ab")
            for i in range(task + 1) if cumulative else [task]:
                layer["kernel"] = layer["kernel"] + 1.5 * a[i] @ b[i]
        chex.assert_trees_all_close(effective(base, changed, task), expected, **ROUNDING)


def test_every_task_draws_factors_of_its_own():
    """N(0, 1 / d_in), whatever the number of tasks to come."""
    params = {"one": {"kernel": jnp.zeros((400, 300))}}
    a = np.asarray(jax.jit(task_lora(50, 3).init)(KEY, params)[1].factors["one/kernel"]["a"])
    few = np.asarray(jax.jit(task_lora(50, 2).init)(KEY, params)[1].factors["one/kernel"]["a"])
    np.testing.assert_array_equal(a[:2], few)
    scaled = a.reshape(3, -1) * np.sqrt(400)  # 20 000 draws each: 5 standard errors
    np.testing.assert_allclose(scaled.mean(axis=1), 0.0, atol=5 / np.sqrt(20_000))
    np.testing.assert_allclose(scaled.var(axis=1), 1.0, atol=5 * np.sqrt(2 / 20_000))
    assert np.abs(np.corrcoef(scaled)[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(20_000)


@pytest.mark.parametrize(("first_task", "cumulative"), [("lora", True), ("full", False)])
def test_a_task_trains_its_own_factors_alone(first_task, cumulative):
    """With momentum, which would leak through a mask. Nothing that an earlier task computes with changes, bitwise."""
    adapter = task_lora(2, TASKS, 2.0, cumulative=cumulative, first_task=first_task)
    learner = train.Learner(MODEL, optax.chain(optax.trace(0.9), optax.scale(-0.1)), adapter=adapter)

    @jax.jit
    def life(key):
        states = [train.init(learner, key, BATCH, PARAMS)]
        for task in range(TASKS):

            def one(state, _, task=task):
                return train.train_step(learner, key, state, BATCH, task=task)[0], None

            state, _ = jax.lax.scan(one, states[-1], length=3)
            states.append(train.end_task(learner, key, state, whole_task(task, BATCH)))
        return states

    states, effective = life(KEY), jax.jit(adapter.effective)
    for task in range(TASKS):
        before, after = states[task], states[task + 1]
        for name, pair in after.trainable.factors.items():
            changed = (np.asarray(pair["b"]) != np.asarray(before.trainable.factors[name]["b"])).any(axis=(1, 2))
            np.testing.assert_array_equal(changed, (np.arange(TASKS) == task) & (first_task == "lora" or task > 0))
        whole = before.trainable.first, after.trainable.first
        if first_task == "full" and task == 0:
            assert all((one != two).any() for one, two in zip(*map(jax.tree.leaves, whole), strict=True))
        else:
            chex.assert_trees_all_equal(*whole)
        own = [effective(s.base, s.trainable, task) for s in states[task + 1 :]]
        for later in own:
            chex.assert_trees_all_equal(later, own[0])


def test_config_builds_what_it_says():
    config = TaskLora(rank=3, alpha=6.0, targets="dense_0", cumulative=True, first_task="lora")
    base, trainable = jax.jit(config.build(2).init)(KEY, PARAMS)
    assert jax.tree.map(jnp.shape, trainable.factors) == {"dense_0/kernel": {"a": (2, 5, 3), "b": (2, 3, 6)}}
    changed = trainable._replace(factors=moved(trainable.factors))
    twin = task_lora(3, 2, 6.0, "dense_0", cumulative=True)
    chex.assert_trees_all_equal(
        config.build(2).effective(base, changed, jnp.int32(1)), twin.effective(base, changed, jnp.int32(1))
    )
    with pytest.raises(UserError, match=r"adapter.rank: was given 4, larger than the matrix dense_1/kernel \[6, 3\]"):
        TaskLora(rank=4).check(PARAMS)

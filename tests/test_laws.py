"""One set of laws over a table of all methods and adapters."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.adapters.freeze import freeze
from cl_jax.adapters.lora import lora
from cl_jax.batch import Batch, Task
from cl_jax.method import Method, chain
from cl_jax.methods.ewc import ewc
from cl_jax.methods.l2 import l2
from cl_jax.methods.replay import replay
from cl_jax.models.mlp import mlp

pytestmark = pytest.mark.slow  # every law compiles two tasks of training for every method

MODEL = mlp((6,), 3)
METHODS: dict[str, Any] = {
    "l2": lambda strength: l2(strength),
    "ewc": lambda strength: ewc(MODEL, strength),
    "ewc-online": lambda strength: ewc(MODEL, strength, anchors="online", kind="empirical"),
    "ewc-proximal": lambda strength: ewc(MODEL, strength, proximal=True),
    "ewc-sampled": lambda strength: ewc(MODEL, strength, kind="sampled", samples=3, num_examples=10),
    "replay": lambda strength: replay(20),
    "replay-boundary": lambda strength: replay(20, insert="boundary", weighting="balanced"),
    "ewc+replay": lambda strength: chain(ewc=ewc(MODEL, strength), replay=replay(20)),
}
PENALTIES = ["l2", "ewc", "ewc-online", "ewc-proximal", "ewc-sampled"]


def examples(task: int) -> Batch:
    generator = np.random.default_rng(task)
    x = jnp.asarray(generator.normal(size=(40, 5)), jnp.float32)
    return Batch(x=x, y=jnp.asarray(generator.integers(0, 3, 40), jnp.int32))


def life(method: Method, strength_key: int = 0, steps: int = 15, **learner: Any) -> train.TrainState:
    """Two tasks of `steps` steps."""
    optimizer = optax.chain(optax.trace(0.9), optax.scale(-0.05))
    subject = train.Learner(MODEL, optimizer, method, **learner)
    state = train.init(subject, jax.random.key(strength_key), examples(0))
    for task in range(2):
        key = jax.random.key(task + 10)
        batch = examples(task)

        def one(state: train.TrainState, step: jax.Array, key=key, batch=batch, task=task) -> tuple[Any, None]:
            rows = (step * 8 + jnp.arange(8, dtype=jnp.int32)) % 40
            incoming = Batch(x=batch.x[rows], y=batch.y[rows])
            return train.train_step(subject, jax.random.fold_in(key, step), state, incoming, task=task)[0], None

        state, _ = jax.lax.scan(one, state, jnp.arange(steps, dtype=jnp.int32))
        finished = Task(jnp.int32(task), batch, jnp.arange(40) < 37)
        state = train.end_task(subject, key, state, finished)
    return state


def weights(state: train.TrainState) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.trainable)])


@pytest.mark.parametrize("name", METHODS)
def test_vmapped_is_looped(name: str) -> None:
    strengths = jnp.asarray([0.0, 1.0, 30.0])
    together = jax.jit(jax.vmap(lambda s: life(METHODS[name](s)).trainable))(strengths)
    for i in range(3):
        alone = life(METHODS[name](strengths[i])).trainable
        # Batched and single matrix products sum in another order.
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", PENALTIES)
def test_strength_zero_is_fine_tuning(name: str) -> None:
    np.testing.assert_allclose(weights(life(METHODS[name](0.0))), weights(life(Method())), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PENALTIES)
def test_strength_holds_the_weights(name: str) -> None:
    """More strength, less movement after the first boundary."""
    start = weights(life(Method(), steps=15))
    assert np.abs(weights(life(METHODS[name](10.0))) - start).max() > 1e-4


def test_empty_chain_changes_nothing() -> None:
    np.testing.assert_array_equal(weights(life(chain(nothing=Method()))), weights(life(Method())))


def test_proximal_step_does_not_diverge() -> None:
    state = life(METHODS["ewc-proximal"](1e13))
    assert not bool(state.diverged) and np.isfinite(weights(state)).all()


@pytest.mark.parametrize("name", METHODS)
def test_no_key_is_used_twice(name: str) -> None:
    with jax.debug_key_reuse(True):
        life(METHODS[name](1.0), steps=2)


def test_one_quadratic_equals_the_list_of_springs() -> None:
    """After three boundaries EWC's penalty is the sum over tasks of its own springs, value and gradient."""
    method = ewc(MODEL, 7.0, kind="empirical")
    params = MODEL.init(jax.random.key(0), examples(0).x)
    state = method.init(jax.random.key(0), params, examples(0))
    springs = []
    for task in range(3):
        params = jax.tree.map(lambda leaf, task=task: leaf + 0.1 * (task + 1), params)
        finished = Task(jnp.int32(task), examples(task), jnp.ones((40,), bool))
        alone = method.end_task(
            jax.random.key(1), method.init(jax.random.key(0), params, examples(0)), params, finished
        )
        springs.append((alone.fisher, params))
        state = method.end_task(jax.random.key(1), state, params, finished)
    probe = jax.tree.map(lambda leaf: leaf - 0.37, params)

    def listed(p: Any) -> jax.Array:
        terms = [
            jnp.sum(f * (v - a) ** 2)
            for fisher, anchor in springs
            for v, f, a in zip(jax.tree.leaves(p), jax.tree.leaves(fisher), jax.tree.leaves(anchor), strict=True)
        ]
        return 3.5 * jnp.sum(jnp.stack(terms))

    value, gradient = jax.value_and_grad(lambda p: method.penalty(state, p, examples(0)))(probe)
    expected, expected_gradient = jax.value_and_grad(listed)(probe)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    chex.assert_trees_all_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-3


def test_lora_starts_as_no_op_and_is_base_plus_product() -> None:
    params = MODEL.init(jax.random.key(0), examples(0).x)
    adapter = lora(2, 8.0)
    base, trainable = adapter.init(jax.random.key(1), params)
    chex.assert_trees_all_equal(adapter.effective(base, trainable), params)
    moved = jax.tree.map(lambda leaf: leaf + 0.5, trainable)
    a, b = (np.asarray(moved.factors["dense_0/kernel"][name], np.float64) for name in "ab")
    expected = np.asarray(params["dense_0"]["kernel"], np.float64) + 8.0 / 2 * a @ b
    np.testing.assert_allclose(adapter.effective(base, moved)["dense_0"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_array_equal(adapter.effective(base, moved)["dense_0"]["bias"], params["dense_0"]["bias"])


def test_lora_merge_keeps_the_function() -> None:
    params = MODEL.init(jax.random.key(0), examples(0).x)
    adapter = lora(2, 8.0, merge=True)
    base, trainable = adapter.init(jax.random.key(1), params)
    moved = jax.tree.map(lambda leaf: leaf + 0.5, trainable)
    merged = adapter.end_task(jax.random.key(2), base, moved)
    chex.assert_trees_all_close(adapter.effective(*merged), adapter.effective(base, moved), rtol=1e-6)


def test_freeze_holds_its_leaves_bitwise() -> None:
    after = life(Method(), adapter=freeze("dense_0/"))
    once = life(Method(), adapter=freeze("dense_0/", from_task=0))
    start = MODEL.init(train.stream_key(jax.random.key(0), "model"), examples(0).x)
    chex.assert_trees_all_equal(once.trainable["dense_0"], start["dense_0"])
    assert np.abs(np.asarray(after.trainable["dense_0"]["kernel"] - start["dense_0"]["kernel"])).max() > 1e-4


@pytest.mark.parametrize("name", ["lora", "lora-full", "freeze"])
def test_adapters_compose_with_ewc_and_replay(name: str) -> None:
    adapter = {"lora": lora(2), "lora-full": lora(2, first_task="full"), "freeze": freeze("dense_0/")}[name]
    state = life(METHODS["ewc+replay"](1.0), adapter=adapter)
    assert np.isfinite(weights(state)).all() and not bool(state.diverged)


def test_divergence_freezes_the_member() -> None:
    subject = train.Learner(MODEL, optax.scale(-1e6), Method())
    state = train.init(subject, jax.random.key(0), examples(0))
    for step in range(5):
        state, _ = train.train_step(subject, jax.random.key(step), state, examples(0))
    assert bool(state.diverged)
    after, _ = train.train_step(subject, jax.random.key(9), state, examples(0))
    chex.assert_trees_all_equal(after, state)

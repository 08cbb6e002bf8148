"""Synaptic intelligence against a whole life in NumPy: softmax regression, SGD with momentum, three tasks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.batch import Batch, Task, whole_task
from cl_jax.errors import UserError
from cl_jax.method import StepInfo
from cl_jax.methods.si import si
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
RATE, MOMENTUM, STRENGTH, XI, STEPS, TASKS = 0.5, 0.9, 0.7, 0.05, 6, 3
NUM, INPUTS, OUTPUTS = 8, 3, 4
MODEL = mlp((), OUTPUTS)
# float32 against float64 over 18 steps whose changes are up to 1.
ROUNDING = dict(rtol=2e-4, atol=2e-5)


def tasks() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(TASKS, NUM, INPUTS)), generator.integers(0, OUTPUTS, (TASKS, NUM))


def by_hand(weights: np.ndarray, clip: str, gradient: str) -> dict[str, Any]:
    """Weights [d_in + 1, C], the bias as a last row; what the paper's equations make of them."""
    importance, anchor, velocity = np.zeros_like(weights), weights.copy(), np.zeros_like(weights)
    terms = []
    for x, y in zip(*tasks(), strict=True):
        path, a = np.zeros_like(weights), np.concatenate([x, np.ones((NUM, 1))], axis=1)
        for _ in range(STEPS):
            p = np.exp(a @ weights)
            p /= p.sum(axis=1, keepdims=True)
            of_loss = a.T @ (p - np.eye(OUTPUTS)[y]) / NUM
            of_penalty = 2 * STRENGTH * importance * (weights - anchor)
            velocity = MOMENTUM * velocity + of_loss + of_penalty
            change = -RATE * velocity
            path += -(of_loss + of_penalty if gradient == "total" else of_loss) * change
            weights = weights + change
        term = path / ((weights - anchor) ** 2 + XI)
        terms.append(term)
        if clip == "sum":
            importance = np.maximum(importance + term, 0)
        elif clip == "task":
            importance = importance + np.maximum(term, 0)
        else:
            importance = importance + term
        anchor = weights.copy()
    return {"weights": weights, "importance": importance, "anchor": anchor, "terms": np.stack(terms)}


def joined(params: Any) -> np.ndarray:
    return np.concatenate([params["dense_0"]["kernel"], params["dense_0"]["bias"][None]])


@functools.cache
def start() -> Any:
    return MODEL.init(KEY, jnp.zeros((1, INPUTS)))


def trained(clip: str, gradient: str) -> train.TrainState:
    method = si(STRENGTH, xi=XI, clip=clip, gradient=gradient)
    optimizer = optax.chain(optax.trace(MOMENTUM), optax.scale(-RATE))
    learner = train.Learner(MODEL, optimizer, method)
    x, y = tasks()
    batches = Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))

    def one_task(state: train.TrainState, item: tuple[jax.Array, Batch]) -> tuple[train.TrainState, None]:
        number, batch = item

        def one(state: train.TrainState, _: None) -> tuple[train.TrainState, None]:
            return train.train_step(learner, KEY, state, batch)[0], None

        state, _ = jax.lax.scan(one, state, None, length=STEPS)
        return train.end_task(learner, KEY, state, Task(number, batch, jnp.ones(NUM, bool))), None

    def run(params: Any) -> train.TrainState:
        state = train.init(learner, KEY, jax.tree.map(lambda leaf: leaf[0], batches), params)
        return jax.lax.scan(one_task, state, (jnp.arange(TASKS, dtype=jnp.int32), batches))[0]

    return jax.jit(run)(start())


@pytest.mark.parametrize(("clip", "gradient"), [("sum", "task"), ("task", "task"), ("none", "task"), ("none", "total")])
def test_equals_the_equations(clip: str, gradient: str) -> None:
    state = trained(clip, gradient)
    expected = by_hand(joined(start()).astype(np.float64), clip, gradient)
    np.testing.assert_allclose(joined(state.trainable), expected["weights"], **ROUNDING)
    np.testing.assert_allclose(joined(state.method.importance), expected["importance"], **ROUNDING)
    np.testing.assert_array_equal(joined(state.method.anchor), joined(state.trainable))
    assert not joined(state.method.path).any()


def test_the_choices_differ_in_this_life() -> None:
    """Else the test above could not tell them apart."""
    weights = joined(start()).astype(np.float64)
    lives = {choice: by_hand(weights, *choice) for choice in [("sum", "task"), ("task", "task"), ("none", "task")]}
    lives |= {("none", "total"): by_hand(weights, "none", "total")}
    found = [life["importance"] for life in lives.values()]
    assert min(np.abs(a - b).max() for i, a in enumerate(found) for b in found[:i]) > 0.01
    assert (lives["none", "task"]["importance"] < 0).any() and (lives["sum", "task"]["importance"] >= 0).all()


def test_penalty_has_no_half() -> None:
    method = si(STRENGTH)
    zeros = method.init(KEY, start(), Batch(jnp.zeros((1, INPUTS)), jnp.zeros(1, jnp.int32)))
    state = zeros._replace(importance=jax.tree.map(lambda leaf: jnp.full_like(leaf, 3.0), start()))
    moved = jax.tree.map(lambda leaf: leaf + 0.5, start())
    value, slope = jax.value_and_grad(lambda p: method.penalty(state, p, Batch(None, jnp.zeros(1))))(moved)
    count = (INPUTS + 1) * OUTPUTS
    np.testing.assert_allclose(value, STRENGTH * 3.0 * 0.25 * count, rtol=1e-6)
    np.testing.assert_allclose(joined(slope), 2 * STRENGTH * 3.0 * 0.5, rtol=1e-6)


def test_the_first_boundary_measures_from_the_initial_weights() -> None:
    """One step by hand: omega = 2 * 0.4, moved by 0.4, so Omega = 0.8 / (0.16 + 0.04)."""
    method, params = si(1.0, xi=0.04), {"w": jnp.ones(2)}
    batch = Batch(jnp.zeros((1, 1)), jnp.zeros(1, jnp.int32))
    after = {"w": jnp.array([0.6, 1.0])}
    info = StepInfo(batch, batch, {"w": jnp.array([2.0, 5.0])}, params, after, jnp.zeros((1, 1)))
    state = method.after_step(KEY, method.init(KEY, params, batch), info)
    state = method.end_task(KEY, state, after, whole_task(0, batch))
    np.testing.assert_allclose(state.importance["w"], [4.0, 0.0], rtol=1e-5)


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="unknown SI clip 'all'; known: none, sum, task"):
        si(1.0, clip="all")
    with pytest.raises(UserError, match="unknown SI gradient 'taks'; known: task, total"):
        si(1.0, gradient="taks")

"""Riemannian walk against the paper's equations in NumPy, over steps made up and over real ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch, Task
from cl_jax.errors import UserError
from cl_jax.method import StepInfo
from cl_jax.methods.rwalk import rwalk
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
ALPHA, DAMPING, STRENGTH, INTERVAL = 0.6, 0.01, 0.7, 3
STEPS = (5, 4, 6)  # of three tasks: with and without a rest
MODEL = mlp((), 2)
SHAPES = {"dense_0": {"bias": (2,), "kernel": (3, 2)}}
SIZE = 8
# float32 sums of a dozen quotients against float64.
ROUNDING = dict(rtol=1e-4, atol=1e-6)
NOTHING = Batch(jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32))


def as_params(vector):
    """bias [2] and kernel [3, 2] out of [8]."""
    leaf = jnp.asarray(vector, jnp.float32)
    return {"dense_0": {"bias": leaf[:2], "kernel": leaf[2:].reshape(3, 2)}}


def as_vector(params):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)])


def steps():
    """Gradients and weights before and after each step [3 tasks][steps][8]; changes mostly, not always, downhill."""
    generator, theta, tasks = np.random.default_rng(0), np.zeros(SIZE), []
    for count in STEPS:
        task = []
        for _ in range(count):
            g = generator.normal(size=SIZE)
            after = theta - 0.3 * g + 0.3 * generator.normal(size=SIZE)
            task.append((g, theta, after))
            theta = after
        tasks.append(task)
    return tasks


def by_hand(normalize):
    """The penalty's weights after each task."""
    fisher, score, found = None, None, []
    for task in steps():
        total = np.zeros(SIZE)
        for first in range(0, len(task), INTERVAL):
            part = task[first : first + INTERVAL]
            now = np.mean([g**2 for g, _, _ in part], axis=0)
            fisher = now if fisher is None else ALPHA * now + (1 - ALPHA) * fisher
            fall = -sum(g * (after - before) for g, before, after in part)
            total += fall / (0.5 * fisher * (part[-1][2] - part[0][1]) ** 2 + DAMPING)
        assert (total < 0).any() and (total > 0).any()
        new = np.maximum(total, 0)
        score = new if score is None else (score + new) / 2
        parts = [fisher, score]
        if normalize:
            parts = [(x - x.min()) / (x.max() - x.min()) for x in parts]
        found.append(sum(parts))
    return found


def infos(task):
    for g, before, after in task:
        yield StepInfo(NOTHING, NOTHING, as_params(g), as_params(before), as_params(after), jnp.zeros((1, 2)))


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_equations(normalize):
    method = rwalk(MODEL, STRENGTH, alpha=ALPHA, interval=INTERVAL, damping=DAMPING, normalize=normalize)
    after_step, end_task = jax.jit(method.after_step), jax.jit(method.end_task)
    state = method.init(KEY, as_params(np.zeros(SIZE)), NOTHING)
    for number, (task, expected) in enumerate(zip(steps(), by_hand(normalize), strict=True)):
        for info in infos(task):
            state = after_step(KEY, state, info)
        theta = as_params(task[-1][2])
        state = end_task(KEY, state, theta, Task(jnp.int32(number), NOTHING, jnp.ones(1, bool)))
        np.testing.assert_allclose(as_vector(state.importance), expected, **ROUNDING)
        np.testing.assert_array_equal(as_vector(state.anchor), as_vector(theta))
        moved = jax.tree.map(lambda leaf: leaf + 0.5, theta)
        value = method.penalty(state, moved, NOTHING)
        np.testing.assert_allclose(value, STRENGTH * 0.25 * expected.sum(), rtol=1e-4)


def test_importance_is_held_through_a_task():
    method = rwalk(MODEL, STRENGTH, interval=1)
    state = method.init(KEY, as_params(np.zeros(SIZE)), NOTHING)
    after_step = jax.jit(method.after_step)
    for info in infos(steps()[0]):
        state = after_step(KEY, state, info)
    assert not as_vector(state.importance).any() and as_vector(state.fisher).all()
    end = method.end_task(KEY, state, info.after, Task(jnp.int32(0), NOTHING, jnp.ones(1, bool)))
    later = after_step(KEY, end, next(infos(steps()[1])))
    np.testing.assert_array_equal(as_vector(later.importance), as_vector(end.importance))
    assert (as_vector(later.fisher) != as_vector(end.fisher)).all()


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_fisher_of_single_examples(kind):
    """Softmax regression: F of the bias is the mean of p (1 - p), or of (y - p)^2; a row of weight 0 does not count."""
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(5, 3)), generator.integers(0, 2, 5)
    params = as_params(generator.normal(size=SIZE))
    weight = jnp.array([0.25, 0.25, 0.25, 0.25, 0.0])
    batch = Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32), weight=weight)
    method = rwalk(MODEL, 1.0, interval=1, kind=kind)
    info = StepInfo(batch, batch, params, params, params, jnp.zeros((5, 2)))
    step = jax.jit(functools.partial(method.after_step, KEY))
    found = step(method.init(KEY, params, batch), info).fisher["dense_0"]
    z = x @ np.asarray(params["dense_0"]["kernel"], np.float64) + np.asarray(params["dense_0"]["bias"], np.float64)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    squares = p * (1 - p) if kind == "exact" else (np.eye(2)[y] - p) ** 2
    np.testing.assert_allclose(found["bias"], squares[:4].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["kernel"], (x[:4] ** 2).T @ squares[:4] / 4, rtol=1e-5)


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"unknown Fisher kind 'batchd'; known: .*Did you mean 'batched'"):
        rwalk(MODEL, 1.0, kind="batchd")
    with pytest.raises(UserError, match="rwalk interval = 0; allowed: 1 or more"):
        rwalk(MODEL, 1.0, interval=0)

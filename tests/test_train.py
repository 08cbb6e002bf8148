"""Training steps against NumPy, and streams whose outcome is known."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import metrics, train
from cl_jax.batch import Batch, Task
from cl_jax.method import Method
from cl_jax.methods.ewc import ewc
from cl_jax.methods.l2 import l2
from cl_jax.models.mlp import mlp
from cl_jax.optimizers import Adagrad, Adam, AdamW, Clip, RmsProp, Sgd

KEY = jax.random.key(0)
OUTPUTS = 3
MODEL = mlp((), OUTPUTS)  # softmax regression: its gradient fits in one line
OPTIMIZERS = {
    "sgd": Sgd(),
    "momentum": Sgd(momentum=0.9, use_momentum=True),
    "clipped": Sgd(clip=Clip(most=0.02)),
    "clipped momentum": Sgd(momentum=0.9, use_momentum=True, clip=Clip(most=0.02)),
    "adam": Adam(beta1=0.8, beta2=0.95, epsilon=1e-3),
    "adamw": AdamW(beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.3),
    "rmsprop": RmsProp(decay=0.8, epsilon=1e-3),
    "adagrad": Adagrad(epsilon=1e-3),
}


def build(name: str) -> optax.GradientTransformation:
    """The optimizer; optax's Adam raises a float to an integer power, which strict promotion forbids."""
    made = OPTIMIZERS[name].build()

    def update(gradient, state, params=None):
        with jax.numpy_dtype_promotion("standard" if name.startswith("adam") else "strict"):
            return made.update(gradient, state, params)

    return optax.GradientTransformation(made.init, update)


def examples(seed: int = 0, num: int = 60) -> Batch:
    """Classes that overlap, so that the optimum is finite."""
    generator = np.random.default_rng(seed)
    x, w = generator.normal(size=(num, 2)), generator.normal(size=(2, OUTPUTS))
    y = np.argmax(x @ w + generator.gumbel(size=(num, OUTPUTS)), axis=1)
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))


def task_of(batch: Batch, number: int = 0) -> Task:
    return Task(jnp.int32(number), batch, jnp.ones(len(batch.y), bool))


def pair(params):
    return tuple(np.asarray(params["dense_0"][name], np.float64) for name in ("kernel", "bias"))


def loss_and_gradient(w, b, batch):
    """sum_i u_i (-log p_y) and its gradient, float64."""
    x, y, num = np.asarray(batch.x, np.float64), np.asarray(batch.y), len(batch.y)
    logits = x @ w + b
    if batch.active is not None:
        logits = np.where(np.asarray(batch.active), logits, -np.inf)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    u = np.full(num, 1 / num) if batch.weight is None else np.asarray(batch.weight, np.float64)
    g = u[:, None] * (p - np.eye(OUTPUTS)[y])
    return -np.sum(u * np.log(p[np.arange(num), y])), (x.T @ g, g.sum(axis=0)), p


def steps_by_hand(name, params, batch, rate, num):
    """Parameters after `num` steps as the optimizers' docstrings say."""
    theta, losses = list(pair(params)), []
    m, v = [np.zeros_like(t) for t in theta], [np.zeros_like(t) for t in theta]
    for step in range(1, num + 1):
        loss, gradient, _ = loss_and_gradient(*theta, batch)
        losses.append(loss)
        for i, g in enumerate(gradient):
            g = np.clip(g, -0.02, 0.02) if name.startswith("clipped") else g
            if name.startswith("adam"):
                m[i], v[i] = 0.8 * m[i] + 0.2 * g, 0.95 * v[i] + 0.05 * g**2
                direction = (m[i] / (1 - 0.8**step)) / (np.sqrt(v[i] / (1 - 0.95**step)) + 1e-3)
                theta[i] = theta[i] - rate * (direction + (0.3 * theta[i] if name == "adamw" else 0.0))
            elif name == "rmsprop":
                v[i] = 0.8 * v[i] + 0.2 * g**2
                theta[i] = theta[i] - rate * g / (np.sqrt(v[i]) + 1e-3)
            elif name == "adagrad":
                v[i] = v[i] + g**2
                theta[i] = theta[i] - rate * g / np.sqrt(v[i] + 1e-3)
            else:
                m[i] = (0.9 if name.endswith("momentum") else 0.0) * m[i] + g
                theta[i] = theta[i] - rate * m[i]
    return theta, losses


@functools.partial(jax.jit, static_argnames=("learner", "num"))
def run(learner, state, batch, rate, num, task=0):
    """`num` steps on the whole batch."""

    def one(state, step):
        return train.train_step(learner, jax.random.fold_in(KEY, step), state, batch, rate, task)

    return jax.lax.scan(one, state, jnp.arange(num))


@pytest.mark.parametrize("kind", ["plain", "masked and weighted"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_by_hand(name, kind):
    """A golden step: change it only with the equation in the optimizer's docstring."""
    batch, learner = examples(), train.Learner(MODEL, build(name))
    if kind != "plain":
        active = np.ones((60, OUTPUTS), bool)
        active[np.arange(0, 60, 2), (np.asarray(batch.y)[::2] + 1) % OUTPUTS] = False
        batch = batch._replace(active=jnp.asarray(active), weight=jnp.linspace(0, 0.04, 60))
    start = train.init(learner, KEY, batch)
    end, info = run(learner, start, batch, 0.3, 4)
    expected, losses = steps_by_hand(name, start.trainable, batch, 0.3, 4)
    for found, hand in zip(pair(end.trainable), expected, strict=True):
        np.testing.assert_allclose(found, hand, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(info.loss, losses, rtol=1e-5)
    np.testing.assert_array_equal(info.penalty, 0.0)


def test_penalty_is_in_the_gradient():
    """Trap 4: strength / 2 * |theta - anchor|^2 adds strength * (theta - anchor)."""
    learner, batch = train.Learner(MODEL, optax.scale(-1.0), l2(3.0)), examples()
    state = train.end_task(learner, KEY, train.init(learner, KEY, batch), task_of(batch))
    moved = state._replace(trainable=jax.tree.map(lambda leaf: leaf + 0.5, state.trainable))
    end, info = run(learner, moved, batch, 0.1, 1)
    for found, start, g in zip(*map(pair, (end.trainable, moved.trainable)),
                               loss_and_gradient(*pair(moved.trainable), batch)[1], strict=True):  # fmt: skip
        np.testing.assert_allclose(found, start - 0.1 * (g + 3.0 * 0.5), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(info.penalty[0], 0.5 * 3.0 * 9 * 0.25, rtol=1e-5)
    np.testing.assert_allclose(info.loss[0], loss_and_gradient(*pair(moved.trainable), batch)[0], rtol=1e-5)


def test_methods_see_the_task_loss_alone_and_the_step():
    spy = Method(
        init=lambda key, params, batch: {"info": None, "gradient": params, "before": params, "after": params},
        penalty=lambda state, params, batch: 5.0 * jnp.sum(params["dense_0"]["bias"]),
        gradients=lambda key, state, values, params, batch: jax.tree.map(lambda leaf: 2.0 * leaf, values),
        after_step=lambda key, state, info: {
            **state,
            "gradient": info.gradient,
            "before": info.before,
            "after": info.after,
        },
    )
    learner, batch = train.Learner(MODEL, optax.scale(-1.0), spy), examples()
    start = train.init(learner, KEY, batch)
    end, _ = run(learner, start, batch, 0.1, 1)
    w, b = loss_and_gradient(*pair(start.trainable), batch)[1]
    for found, hand in zip(pair(end.method["gradient"]), (w, b), strict=True):
        np.testing.assert_allclose(found, hand, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(end.method["before"], start.trainable)
    chex.assert_trees_all_equal(end.method["after"], end.trainable)
    found = pair(end.trainable)[1]
    np.testing.assert_allclose(found, pair(start.trainable)[1] - 0.1 * 2 * (b + 5.0), rtol=1e-5)


def test_learning_rate_scales_the_update():
    for name in OPTIMIZERS:
        learner, batch = train.Learner(MODEL, build(name)), examples()
        start = train.init(learner, KEY, batch)
        half, whole = (run(learner, start, batch, rate, 1)[0].trainable for rate in (0.25, 0.5))
        for a, b, c in zip(*map(pair, (start.trainable, half, whole)), strict=True):
            np.testing.assert_allclose(c - a, 2 * (b - a), rtol=1e-4, atol=1e-6, err_msg=name)
        chex.assert_trees_all_equal(run(learner, start, batch, 0.0, 1)[0].trainable, start.trainable)


def test_the_optimizer_is_reset_only_if_asked():
    learner, batch = train.Learner(MODEL, build("adam")), examples()
    state, _ = run(learner, train.init(learner, KEY, batch), batch, 0.1, 3)
    kept, reset = (train.end_task(learner, KEY, state, task_of(batch), reset_optimizer=flag) for flag in (False, True))
    chex.assert_trees_all_equal(kept, state)
    chex.assert_trees_all_equal(reset.optimizer, learner.optimizer.init(state.trainable))
    chex.assert_trees_all_equal(reset.trainable, state.trainable)


@pytest.mark.parametrize("scale", [jnp.nan, jnp.inf, 1e7])
def test_a_diverged_member_stands_still(scale):
    """The last scale gives a finite loss above every reasonable one."""
    learner, batch = train.Learner(MODEL, build("momentum"), l2(1.0)), examples()
    state, _ = run(learner, train.init(learner, KEY, batch), batch, 0.1, 2)
    bad, _ = run(learner, state, batch._replace(x=batch.x * scale), 0.1, 1)
    assert not bool(state.diverged) and bool(bad.diverged)
    chex.assert_trees_all_equal(bad._replace(diverged=state.diverged), state)
    chex.assert_trees_all_equal(run(learner, bad, batch, 0.1, 2)[0], bad)  # for good
    chex.assert_trees_all_equal(train.end_task(learner, KEY, bad, task_of(batch), reset_optimizer=True), bad)


def test_given_parameters_are_the_start():
    learner, params = train.Learner(MODEL, optax.scale(-1.0), l2(1.0)), MODEL.init(jax.random.key(5), examples().x)
    state = train.init(learner, KEY, examples(), params)
    chex.assert_trees_all_equal(state.trainable, params)
    chex.assert_trees_all_equal(state.method.anchor, params)
    assert (pair(train.init(learner, KEY, examples()).trainable)[0] != pair(params)[0]).all()


def ewc_optimum(w, b, fisher, strength, batch):
    """argmin of the task loss + strength / 2 * sum F (theta - anchor)^2 by gradient descent in float64."""
    anchor, theta = (w, b), [w, b]
    for _ in range(3000):
        gradient = loss_and_gradient(*theta, batch)[1]
        theta = [
            t - 0.2 * (g + strength * f * (t - a)) for t, g, f, a in zip(theta, gradient, fisher, anchor, strict=True)
        ]
    return theta


@pytest.mark.parametrize("form", [dict(), dict(anchors="online"), dict(proximal=True)], ids=str)
def test_ewc_finds_the_optimum_of_two_convex_tasks(form):
    first, second, strength = examples(1), examples(2), 5.0
    learner = train.Learner(MODEL, optax.scale(-1.0), ewc(MODEL, strength, **form))
    state, _ = run(learner, train.init(learner, KEY, first), first, 0.2, 2000)
    w, b = pair(state.trainable)
    _, gradient, p = loss_and_gradient(w, b, first)
    assert max(np.abs(g).max() for g in gradient) < 1e-4
    # The diagonal Fisher of softmax regression in closed form.
    fisher = ((np.asarray(first.x) ** 2).T @ (p * (1 - p)) / 60, np.mean(p * (1 - p), axis=0))
    state = train.end_task(learner, KEY, state, task_of(first))
    state, _ = run(learner, state, second, 0.2, 2000, 1)
    for found, hand in zip(pair(state.trainable), ewc_optimum(w, b, fisher, strength, second), strict=True):
        np.testing.assert_allclose(found, hand, atol=1e-3)  # float32 gradients stall at about 1e-4
    free = ewc_optimum(w, b, fisher, 0.0, second)
    assert np.abs(free[0] - pair(state.trainable)[0]).max() > 0.2


def accuracy_matrix(method, tasks):
    learner = train.Learner(MODEL, optax.scale(-1.0), method)
    state, rows = train.init(learner, KEY, tasks[0]), []
    for number, batch in enumerate(tasks):
        state, _ = run(learner, state, batch, 0.5, 300, number)
        state = train.end_task(learner, KEY, state, task_of(batch, number))
        logits = [MODEL.apply(train.effective(learner, state), task.x) for task in tasks]
        rows.append([float(np.mean(np.argmax(z, 1) == t.y)) for z, t in zip(logits, tasks, strict=True)])
    return np.array(rows)


def separable(flip: bool = False) -> Batch:
    x = np.random.default_rng(0).normal(size=(40, 2)) + np.where(np.arange(40)[:, None] < 20, 4.0, -4.0)
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray((np.arange(40) < 20) ^ flip, jnp.int32))


def test_identical_tasks_are_not_forgotten():
    matrix = accuracy_matrix(Method(), [separable(), separable()])
    np.testing.assert_array_equal(matrix, 1.0)
    assert metrics.forgetting(matrix) == 0


def test_contradictory_tasks_are_forgotten_unless_held():
    tasks = [separable(), separable(flip=True)]
    matrix = accuracy_matrix(Method(), tasks)
    np.testing.assert_array_equal(matrix, [[1, 0], [0, 1]])
    assert metrics.forgetting(matrix) == 1 and metrics.backward_transfer(matrix) == -1
    held = accuracy_matrix(ewc(MODEL, 1e6, proximal=True), tasks)
    np.testing.assert_array_equal(held, [[1, 0], [1, 0]])
    assert metrics.forgetting(held) == 0


@pytest.mark.parametrize("weight", [jnp.nan, jnp.inf, 1e30])
def test_what_the_last_step_ruined_is_flagged_at_the_boundary(weight):
    learner, batch = train.Learner(MODEL, build("momentum"), l2(1.0)), examples()
    state, _ = run(learner, train.init(learner, KEY, batch), batch, 0.1, 2)
    assert not bool(train.end_task(learner, KEY, state, task_of(batch)).diverged)
    ruined = state._replace(trainable=jax.tree.map(lambda leaf: leaf.at[0].set(weight), state.trainable))
    after = train.end_task(learner, KEY, ruined, task_of(batch))
    assert bool(after.diverged)
    chex.assert_trees_all_equal(after._replace(diverged=state.diverged), ruined)

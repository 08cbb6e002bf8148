"""Online Laplace against whole matrices, one for each layer, that NumPy makes of the paper's equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch, Task
from cl_jax.errors import UserError
from cl_jax.fisher import diagonal_fisher
from cl_jax.methods.laplace import ACCUMULATIONS, laplace
from cl_jax.model import Model
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
NUM, INPUTS, HIDDEN, OUTPUTS, TASKS = 7, 3, 4, 3, 3
STRENGTH = 5.0
MODEL = mlp((HIDDEN,), OUTPUTS)
VALID = jnp.arange(NUM) < NUM - 1
# float32 sums of a few hundred terms of both signs against float64.
ROUNDING = dict(rtol=1e-4, atol=1e-6)


def data() -> Batch:
    """Three tasks, inputs of growing size, so that their factors differ."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(TASKS, NUM, INPUTS)) * np.array([1.0, 2.0, 0.5])[:, None, None]
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(generator.integers(0, OUTPUTS, (TASKS, NUM)), jnp.int32))


@functools.cache
def optima():
    """What the weights are at each boundary."""
    first = MODEL.init(jax.random.key(1), data().x[0])
    return [jax.tree.map(lambda leaf, k=k: (2.0 - 0.5 * k) * leaf, first) for k in range(TASKS)]


def joined(layer) -> np.ndarray:
    return np.concatenate([layer["kernel"], layer["bias"][None]]).astype(np.float64)


def factors_by_hand(x, params):
    """A and G of both layers: means over the examples, expectation over the model's own labels."""
    w0, w1 = (joined(layer) for layer in params.values())
    found = {name: [0.0, 0.0] for name in params}
    for row in np.asarray(x, np.float64)[: NUM - 1]:
        a0 = np.append(row, 1.0)
        h = np.maximum(a0 @ w0, 0)
        a1 = np.append(h, 1.0)
        p = np.exp(a1 @ w1)
        p /= p.sum()
        found["dense_0"][0] += np.outer(a0, a0) / (NUM - 1)
        found["dense_1"][0] += np.outer(a1, a1) / (NUM - 1)
        for c in range(OUTPUTS):
            g1 = np.eye(OUTPUTS)[c] - p
            g0 = (w1[:-1] @ g1) * (h > 0)
            found["dense_0"][1] += p[c] * np.outer(g0, g0) / (NUM - 1)
            found["dense_1"][1] += p[c] * np.outer(g1, g1) / (NUM - 1)
    return found


def precision(tasks, accumulation, decay):
    """H of one layer from its tasks' (A, G), oldest first, as the docstring writes it."""
    weights = [decay ** (len(tasks) - 1 - k) for k in range(len(tasks))]
    if accumulation == "per_task":
        return sum(w * np.kron(a, g) for w, (a, g) in zip(weights, tasks, strict=True))
    if accumulation == "pooled":
        a = sum(w * a for w, (a, _) in zip(weights, tasks, strict=True)) / sum(weights)
        return np.kron(a, sum(w * g for w, (_, g) in zip(weights, tasks, strict=True)))
    (a, g), *others = tasks
    for new_a, new_g in others:
        a = decay * a
        c = np.sqrt(np.trace(g) * np.trace(new_a) / (np.trace(new_g) * np.trace(a)))
        a, g = a + new_a / c, g + c * new_g
    return np.kron(a, g)


@functools.cache
def end_task(accumulation, decay):
    method = laplace(MODEL, STRENGTH, accumulation=accumulation, num_tasks=TASKS, decay=decay)
    return method, jax.jit(lambda state, params, task: method.end_task(KEY, state, params, task))


def after(accumulation, decay, which=range(TASKS)):
    """The state after boundaries at these tasks' optima, with these tasks' data."""
    method, end = end_task(accumulation, decay)
    state = method.init(KEY, optima()[0], jax.tree.map(lambda leaf: leaf[0], data()))
    for number, k in enumerate(which):
        batch = jax.tree.map(lambda leaf, k=k: leaf[k], data())
        state = end(state, optima()[k], Task(jnp.int32(number), batch, VALID))
    return method, state


def moved(params):
    generator = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), params)


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_equals_the_whole_matrix(accumulation, decay):
    """Value and gradient: the latter is not derived from the former, but written down."""
    method, state = after(accumulation, decay)
    theta, each = moved(optima()[-1]), [factors_by_hand(data().x[k], optima()[k]) for k in range(TASKS)]
    value, slope = jax.jit(jax.value_and_grad(lambda p: method.penalty(state, p, data())))(theta)
    expected = 0.0
    for name, layer in theta.items():
        matrix = precision([one[name] for one in each], accumulation, decay)
        d = (joined(layer) - joined(optima()[-1][name])).ravel()
        expected += 0.5 * STRENGTH * d @ matrix @ d
        np.testing.assert_allclose(joined(slope[name]).ravel(), STRENGTH * matrix @ d, **ROUNDING)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize(("accumulation", "times"), [("pooled", 1.0), ("nearest", 2.0)])
def test_two_equal_tasks(accumulation, times):
    """Pooled is exact there; nearest has as much in its mixed terms."""
    penalties = []
    for choice in (accumulation, "per_task"):
        method, state = after(choice, 1.0, (1, 1))
        penalties.append(method.penalty(state, moved(optima()[1]), data()))
    np.testing.assert_allclose(penalties[0], times * penalties[1], rtol=1e-5)


def test_nothing_before_the_first_boundary():
    for accumulation in ACCUMULATIONS:
        method, state = after(accumulation, 1.0, ())
        value, slope = jax.value_and_grad(lambda p, m=method, s=state: m.penalty(s, p, data()))(moved(optima()[0]))
        assert value == 0 and not any(leaf.any() for leaf in jax.tree.leaves(slope))


def test_a_task_without_examples_adds_nothing():
    for accumulation in ("nearest", "per_task"):
        method, state = after(accumulation, 1.0, (1,))
        batch = jax.tree.map(lambda leaf: leaf[2], data())
        end = end_task(accumulation, 1.0)[1]
        again = end(state, optima()[1], Task(jnp.int32(1), batch, jnp.zeros(NUM, bool)))
        theta = moved(optima()[1])
        now, then = (method.penalty(one, theta, data()) for one in (again, state))
        assert then > 0
        np.testing.assert_allclose(now, then, rtol=1e-6)


def test_layers_without_factors_have_the_diagonal():
    def tap(params, probes, x):
        h = x * params["gain"]["scale"][None] + (probes["gain"] if probes else 0.0)
        return h @ params["head"]["kernel"] + (probes["head"] if probes else 0.0), {"gain": x, "head": h}

    kernel = jnp.asarray(np.random.default_rng(3).normal(size=(INPUTS, OUTPUTS)), jnp.float32)
    params = {"gain": {"scale": jnp.array([1.0, -0.5, 2.0])}, "head": {"kernel": kernel}}
    model = Model(lambda key, x: params, lambda params, x: tap(params, {}, x)[0], tap)
    method, batch = laplace(model, 2.0), jax.tree.map(lambda leaf: leaf[0], data())
    task = Task(jnp.int32(0), batch, VALID)
    state = jax.jit(lambda p: method.end_task(KEY, method.init(KEY, p, batch), p, task))(params)
    assert set(state.factors) == {"head"} and set(state.rest) == {"gain"}
    fisher = diagonal_fisher(KEY, model, params, batch, valid=VALID)["gain"]["scale"]
    assert fisher.min() > 1e-3
    shifted = params | {"gain": {"scale": params["gain"]["scale"] + 0.5}}
    np.testing.assert_allclose(method.penalty(state, shifted, batch), 0.5 * 2.0 * 0.25 * fisher.sum(), rtol=1e-5)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="unknown Laplace accumulation 'sum'; known: nearest, per_task, pooled"):
        laplace(MODEL, 1.0, accumulation="sum")
    with pytest.raises(UserError, match="unknown Fisher kind 'batched'; known: argmax, empirical, exact, sampled"):
        laplace(MODEL, 1.0, kind="batched")
    with pytest.raises(UserError, match="num_tasks = None: per_task needs the number of tasks"):
        laplace(MODEL, 1.0, accumulation="per_task")
    with pytest.raises(UserError, match="Kronecker factors need a model with a `tap`"):
        method = laplace(Model(MODEL.init, MODEL.apply), 1.0)
        method.init(KEY, optima()[0], jax.tree.map(lambda leaf: leaf[0], data()))

"""Memory aware synapses against loops over single examples, with gradients worked out by hand or one by one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch, Task
from cl_jax.methods.mas import mas, output_sensitivity
from cl_jax.model import Model
from cl_jax.models.mlp import mlp
from tests import test_layer_gradients as models

KEY = jax.random.key(0)
NUM, OUTPUTS = 9, 3
DENSE = mlp((5,), OUTPUTS)
MODELS = {"dense": DENSE, "general": Model(DENSE.init, DENSE.apply)}
VALID = jnp.array([1, 1, 0, 1, 1, 1, 0, 1, 1], bool)
# float32 sums of a few dozen positive terms against float64.
ROUNDING = dict(rtol=1e-5, atol=1e-7)


def data(masked: bool = True) -> Batch:
    generator = np.random.default_rng(0)
    active = jnp.asarray(generator.random((NUM, OUTPUTS)) < 0.7) if masked else None
    x, y = generator.normal(size=(NUM, 4)), generator.integers(0, OUTPUTS, NUM)
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32), active)


PARAMS = jax.tree.map(lambda leaf: 2 * leaf, DENSE.init(jax.random.key(1), data().x))


def by_hand(batch: Batch, rows, params=PARAMS):
    """1/n sum_i |d sum_c f_c(x_i)^2 / d theta|, backwards through the two layers in float64."""
    (w0, b0), (w1, b1) = ([np.asarray(layer[k], np.float64) for k in ("kernel", "bias")] for layer in params.values())
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    for i in rows:
        x = np.asarray(batch.x[i], np.float64)
        h = np.maximum(x @ w0 + b0, 0)
        f = h @ w1 + b1
        if batch.active is not None:
            f = f * np.asarray(batch.active[i])
        g1 = 2 * f
        g0 = (w1 @ g1) * (h > 0)
        each = {"dense_0": {"kernel": np.outer(x, g0), "bias": g0}, "dense_1": {"kernel": np.outer(h, g1), "bias": g1}}
        total = jax.tree.map(lambda t, g: t + np.abs(g) / len(rows), total, each)
    return total


@functools.partial(jax.jit, static_argnames="path")
def sensitivity(batch, valid=VALID, params=PARAMS, path="dense"):
    return output_sensitivity(MODELS[path], params, batch, valid=valid)


@pytest.mark.parametrize("path", MODELS)
@pytest.mark.parametrize("masked", [True, False])
def test_equals_the_loop(path, masked):
    found = sensitivity(data(masked), path=path)
    chex.assert_trees_all_close(found, by_hand(data(masked), np.flatnonzero(VALID)), **ROUNDING)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, PARAMS)
    assert min(np.max(leaf) for leaf in jax.tree.leaves(found)) > 0.1


@pytest.mark.parametrize("name", ["sequence", "cnn"])
def test_of_every_kind_of_layer(name):
    """Positions are summed before the absolute value, examples after it."""
    model, batch = models.MODELS[name], models.data(name)._replace(active=None)
    params = model.init(jax.random.key(1), batch.x)

    def norm(params, x):
        return jnp.sum(model.apply(params, x[None]) ** 2)

    each = jax.jit(jax.vmap(jax.grad(norm), in_axes=(None, 0)))(params, batch.x)
    expected = jax.tree.map(lambda leaf: np.mean(np.abs(np.asarray(leaf, np.float64)), axis=0), each)
    found = jax.jit(lambda params: output_sensitivity(model, params, batch))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * other.max())


def test_opposite_gradients_do_not_cancel():
    """Of (b - x)^2 at b = 0: -2 x, of either sign."""
    model = Model(lambda key, x: {"b": jnp.zeros(1)}, lambda params, x: params["b"][None] - x)
    batch = Batch(jnp.array([[1.0], [-1.0]]), jnp.zeros(2, jnp.int32))
    np.testing.assert_allclose(output_sensitivity(model, {"b": jnp.zeros(1)}, batch)["b"], [2.0])


def test_labels_weights_and_invalid_rows_do_not_matter():
    other = data()._replace(y=(data().y + 1) % OUTPUTS, weight=jnp.linspace(0.0, 5.0, NUM))
    chex.assert_trees_all_equal(sensitivity(other), sensitivity(data()))
    bad = data()._replace(x=jnp.where(VALID[:, None], data().x, jnp.nan))
    chex.assert_trees_all_equal(sensitivity(bad), sensitivity(data()))
    chex.assert_trees_all_equal(sensitivity(bad, ~jnp.ones(NUM, bool)), jax.tree.map(jnp.zeros_like, PARAMS))


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_importance_adds_up_and_the_penalty_has_no_half(decay):
    method = mas(DENSE, 3.0, decay=decay)
    later = jax.tree.map(lambda leaf: 0.8 * leaf, PARAMS)
    end_task = jax.jit(lambda state, params: method.end_task(KEY, state, params, Task(jnp.int32(0), data(), VALID)))
    state = end_task(end_task(method.init(KEY, PARAMS, data()), PARAMS), later)
    rows = np.flatnonzero(VALID)
    old, new = by_hand(data(), rows), by_hand(data(), rows, later)
    expected = jax.tree.map(lambda a, b: decay * a + b, old, new)
    chex.assert_trees_all_close(state.importance, expected, **ROUNDING)
    chex.assert_trees_all_equal(state.anchor, later)
    moved = jax.tree.map(lambda leaf: leaf + 0.25, later)
    total = sum(leaf.sum() for leaf in jax.tree.leaves(expected))
    np.testing.assert_allclose(method.penalty(state, moved, data()), 3.0 * 0.25**2 * total, rtol=1e-5)


def test_a_subset_of_the_task():
    method = mas(DENSE, 1.0, num_examples=1)
    valid = jnp.arange(NUM) < 3
    task = Task(jnp.int32(0), data(), valid)
    start = method.init(KEY, PARAMS, data())
    draw = jax.jit(lambda key: method.end_task(key, start, PARAMS, task).importance["dense_1"]["bias"])
    single = [by_hand(data(), [i])["dense_1"]["bias"] for i in range(3)]
    hits = set()
    for seed in range(8):
        (hit,) = [i for i, one in enumerate(single) if np.allclose(draw(jax.random.key(seed)), one, atol=1e-5)]
        hits.add(hit)
    assert len(hits) > 1

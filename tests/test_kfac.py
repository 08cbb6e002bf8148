"""Kronecker factors against explicit expectations over examples, classes and positions in NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cl_jax.batch import Batch
from cl_jax.errors import UserError
from cl_jax.fisher import diagonal_fisher
from cl_jax.kfac import kronecker_factors
from cl_jax.model import Model
from cl_jax.models.cnn import cnn
from cl_jax.models.conv import global_average_pool
from cl_jax.models.layers import Layers
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
NUM, OUTPUTS = 6, 3
MODEL = cnn((2,), (8,), OUTPUTS, "he")
VALID = jnp.array([1, 0, 1, 1, 1, 1], bool)


def data() -> Batch:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(NUM, 5, 4, 1)), generator.integers(0, OUTPUTS, NUM)
    active = np.ones((NUM, OUTPUTS), bool)
    active[np.arange(NUM), (y + 1) % OUTPUTS] = np.arange(NUM) % 3 != 1
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32), jnp.asarray(active))


PARAMS = jax.tree.map(lambda leaf: leaf + 0.1, MODEL.init(jax.random.key(1), data().x))


def assert_close(found, expected):
    """To 1e-5 of each matrix's largest entry: float32 sums of a few hundred terms of both signs."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(np.abs(other).max()))


@functools.partial(jax.jit, static_argnames=("kind", "chunk", "samples"))
def factors(batch, valid=None, kind="exact", params=PARAMS, **options):
    return kronecker_factors(KEY, MODEL, params, batch, valid=valid, kind=kind, **options)


def outputs(offsets, x, active):
    """The network again, with XLA's convolution: log p, and every layer's output with an offset added."""
    hwio = PARAMS["conv_0"]["kernel"].reshape(3, 3, 1, 2)
    h = lax.conv_general_dilated(x[None], hwio, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
    h = h + PARAMS["conv_0"]["bias"][None, None] + offsets["conv_0"]
    h = jax.nn.relu(h[:4].reshape(2, 2, 2, 2, 2).max(axis=(1, 3))).ravel()
    received = {"dense_0": h}
    h = jax.nn.relu(h @ PARAMS["dense_0"]["kernel"] + PARAMS["dense_0"]["bias"] + offsets["dense_0"])
    received["dense_1"] = h
    h = h @ PARAMS["dense_1"]["kernel"] + PARAMS["dense_1"]["bias"] + offsets["dense_1"]
    return jax.nn.log_softmax(jnp.where(active, h, -1e30)), received


@functools.cache
def explicit():
    """For every example: p [C], what each layer received [P, d_in + 1], and the derivatives [C, P, d_out]."""
    batch, each = data(), []
    offsets = {"conv_0": jnp.zeros((5, 4, 2)), "dense_0": jnp.zeros(8), "dense_1": jnp.zeros(OUTPUTS)}
    run = jax.jit(jax.jacrev(lambda *args: (outputs(*args)[0], outputs(*args)), has_aux=True))
    for x, active in zip(batch.x, batch.active, strict=True):
        g, (log_p, a) = run(offsets, x, active)
        padded = np.pad(np.asarray(x[:, :, 0], np.float64), 1)
        a = {name: np.asarray(leaf, np.float64)[None] for name, leaf in a.items()}
        a["conv_0"] = np.array([padded[i : i + 3, j : j + 3].ravel() for i in range(5) for j in range(4)])
        a = {name: np.concatenate([leaf, np.ones((len(leaf), 1))], axis=1) for name, leaf in a.items()}
        g = {name: np.asarray(leaf, np.float64).reshape(OUTPUTS, -1, leaf.shape[-1]) for name, leaf in g.items()}
        each.append((np.exp(np.asarray(log_p, np.float64)), a, g))
    return each


@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_equals_the_explicit_expectation(kind):
    found = factors(data(), VALID, kind, samples=2)
    rows = np.flatnonzero(VALID)
    assert set(found) == {"conv_0", "dense_0", "dense_1"}
    for name in found:
        activations, gradients = 0.0, 0.0
        for i in rows:
            p, a, g = explicit()[i]
            log_p = jnp.log(jnp.asarray(p, jnp.float32))
            draws = jax.random.categorical(jax.random.fold_in(KEY, i), log_p, shape=(2,))
            q = p if kind == "exact" else np.eye(OUTPUTS)[draws].mean(axis=0)
            activations += sum(np.outer(row, row) for row in a[name])
            positions = g[name].shape[1]
            gradients += sum(
                q[c] * np.outer(row, row) / positions for c in range(OUTPUTS) if q[c] > 0 for row in g[name][c]
            )
        assert_close(found[name].activations, activations / len(rows))
        assert_close(found[name].gradients, gradients / len(rows))


def test_exact_for_softmax_regression_of_one_example():
    """A (x) G is the Fisher matrix sum_c p_c grad grad^T, with the parameters flattened kernel first, bias last."""
    model, x = mlp((), OUTPUTS), jnp.array([[0.5, -1.0, 2.0]])
    params = model.init(KEY, x)
    found = kronecker_factors(KEY, model, params, Batch(x, jnp.zeros(1, jnp.int32)))["dense_0"]
    a = np.array([0.5, -1.0, 2.0, 1.0])
    z = a @ np.concatenate([params["dense_0"]["kernel"], params["dense_0"]["bias"][None]])
    p = np.exp(z) / np.exp(z).sum()
    gradients = [np.outer(a, np.eye(OUTPUTS)[c] - p).ravel() for c in range(OUTPUTS)]
    expected = sum(p[c] * np.outer(gradients[c], gradients[c]) for c in range(OUTPUTS))
    np.testing.assert_allclose(np.kron(found.activations, found.gradients), expected, rtol=1e-5, atol=1e-7)


def test_factors_are_symmetric_and_positive_semidefinite():
    for layer in factors(data(), VALID).values():
        for factor in layer:
            np.testing.assert_allclose(factor, factor.T, rtol=1e-6, atol=1e-7)
            values = np.linalg.eigvalsh(factor)
            assert values.min() > -1e-5 * values.max() and values.max() > 1e-2


def test_chunks_copies_and_invalid_rows_change_nothing():
    once = factors(data(), VALID)
    assert_close(factors(data(), VALID, chunk=4), once)
    batch, valid = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), (data(), VALID))
    assert_close(factors(batch, valid), once)
    bad = data()._replace(x=jnp.where(VALID[:, None, None, None], data().x, jnp.nan))
    chex.assert_trees_all_equal(factors(bad, VALID), once)
    chex.assert_trees_all_equal(factors(bad, ~jnp.ones(NUM, bool)), jax.tree.map(jnp.zeros_like, once))


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_of_one_example_the_diagonal_is_the_diagonal_fisher_s(kind):
    """Where an example is alone, a dense layer's a and g cannot depend on each other."""
    one = jax.tree.map(lambda leaf: leaf[1:2], data())
    found = factors(one, kind=kind)
    diagonal = diagonal_fisher(KEY, MODEL, PARAMS, one, kind=kind)
    for name in ("dense_0", "dense_1"):
        product = np.outer(np.diag(found[name].activations), np.diag(found[name].gradients))
        expected = np.concatenate([diagonal[name]["kernel"], diagonal[name]["bias"][None]])
        assert_close(product, expected)


def test_members_side_by_side():
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), PARAMS)
    found = jax.vmap(lambda params: factors(data(), VALID, params=params))(both)
    assert_close(jax.tree.map(lambda leaf: leaf[0], found), factors(data(), VALID))
    assert (found["dense_0"].gradients[1] != found["dense_0"].gradients[0]).any()


def test_layers_without_bias_or_kernel():
    def tap(params, probes, x):
        layers = Layers(params, probes)
        h = layers.group_norm("norm", layers.conv("conv", x, 3, 2, "patches"), 2)
        return layers.dense("head", global_average_pool(h)), layers.inputs

    leaves = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    head = {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}
    params = {"conv": {"kernel": jnp.ones((27, 4))}, "norm": leaves, "head": head}
    model = Model(lambda key, x: params, lambda params, x: tap(params, {}, x)[0], tap)
    batch = Batch(jnp.zeros((3, 8, 8, 3)), jnp.zeros(3, jnp.int32))
    shapes = jax.eval_shape(lambda params: kronecker_factors(KEY, model, params, batch), params)
    assert {name: (a.shape, g.shape) for name, (a, g) in shapes.items()} == {
        "conv": ((27, 27), (4, 4)),
        "head": ((5, 5), (5, 5)),
    }


def test_mistakes_are_told():
    with pytest.raises(UserError, match="unknown Fisher kind 'batched'; known: argmax, empirical, exact, sampled"):
        kronecker_factors(KEY, MODEL, PARAMS, data(), kind="batched")
    with pytest.raises(UserError, match="Fisher chunk = 0; allowed: 1 or more"):
        kronecker_factors(KEY, MODEL, PARAMS, data(), chunk=0)
    with pytest.raises(UserError, match="Kronecker factors need a model with a `tap`"):
        kronecker_factors(KEY, Model(MODEL.init, MODEL.apply), PARAMS, data())

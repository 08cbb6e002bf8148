"""Every kind of Fisher against NumPy loops over examples and classes, with gradients worked out by hand."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch, Task
from cl_jax.errors import UserError
from cl_jax.fisher import KINDS, diagonal_fisher
from cl_jax.methods.ewc import ewc
from cl_jax.model import Model
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
NUM, OUTPUTS = 11, 3
DENSE = mlp((7, 6), OUTPUTS)
MODELS = {"dense": DENSE, "general": Model(DENSE.init, DENSE.apply)}
OPTIONS = {kind: {} for kind in KINDS} | {"sampled": dict(samples=2), "batched": dict(batch_size=4)}
# float32 sums of a few dozen positive terms against float64.
ROUNDING = dict(rtol=1e-5, atol=1e-9)


def data(masked: bool = True) -> Batch:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(NUM, 2, 3)), generator.integers(0, OUTPUTS, NUM)
    active = np.ones((NUM, OUTPUTS), bool)  # at least two everywhere: alone, the right output has no gradient
    active[np.arange(NUM), (y + 1 + np.arange(NUM) % 2) % OUTPUTS] = np.arange(NUM) % 4 == 3
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32), jnp.asarray(active) if masked else None)


PARAMS = jax.tree.map(lambda leaf: 2 * leaf, DENSE.init(jax.random.key(1), data().x))
ALL = jnp.ones(NUM, bool)
VALID = jnp.array([0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1], bool)


@functools.partial(jax.jit, static_argnames=("path", "kind", "samples", "batch_size", "chunk"))
def fisher(kind, batch, valid=ALL, params=PARAMS, key=KEY, path="dense", **options):
    return diagonal_fisher(key, MODELS[path], params, batch, valid=valid, kind=kind, **options)


def forward(params, batch, i):
    """Inputs of every layer, p and log p of example i in float64; p = 0 at inactive outputs."""
    h, inputs = np.asarray(batch.x[i], np.float64).ravel(), []
    for depth, layer in enumerate(params.values()):
        inputs.append(h)
        h = h @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
        if depth < len(params) - 1:
            h = np.maximum(h, 0)
    if batch.active is not None:
        h = np.where(np.asarray(batch.active[i]), h, -np.inf)
    log_p = h - h.max() - np.log(np.sum(np.exp(h - h.max())))
    return inputs, np.exp(log_p), log_p


def gradient(params, batch, i, label):
    """d log p_label(x_i) / d theta, backwards through the layers."""
    inputs, p, _ = forward(params, batch, i)
    g, tree = np.eye(len(p))[label] - p, {}
    for name, a in reversed(list(zip(params, inputs, strict=True))):
        tree[name] = {"kernel": np.outer(a, g), "bias": g}
        g = np.asarray(params[name]["kernel"], np.float64) @ g * (a > 0)
    return tree


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(trees), *trees)


def squared(tree, weight=1.0):
    return jax.tree.map(lambda leaf: weight * leaf**2, tree)


def total(tree):
    return sum(float(np.sum(leaf)) for leaf in jax.tree.leaves(tree))


def reference(batch, q, rows=range(NUM), params=PARAMS):
    """1/n sum_i sum_c q(i, c) (d log p_c(x_i) / d theta)^2."""
    each = []
    for i in rows:
        terms = [squared(gradient(params, batch, i, c), q(i, c)) for c in range(OUTPUTS) if q(i, c) > 0]
        each.append(jax.tree.map(lambda *leaves: sum(leaves), *terms))
    return mean(each)


def probability(batch, params=PARAMS):
    return lambda i, c: forward(params, batch, i)[1][c]


def drawn(batch, samples):
    """The documented rule: example i draws its labels with fold_in(key, i)."""
    log_p = [jnp.asarray(forward(PARAMS, batch, i)[2], jnp.float32) for i in range(NUM)]
    draws = [jax.random.categorical(jax.random.fold_in(KEY, i), log_p[i], shape=(samples,)) for i in range(NUM)]
    return lambda i, c: np.mean(np.asarray(draws[i]) == c)


def batched_reference(batch, size, valid):
    groups = [[i for i in range(start, min(start + size, NUM)) if valid[i]] for start in range(0, NUM, size)]
    return mean([squared(mean([gradient(PARAMS, batch, i, int(batch.y[i])) for i in g])) for g in groups if g])


@pytest.mark.parametrize("path", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_loop(kind, path):
    batch = data()
    found = fisher(kind, batch, VALID, path=path, **OPTIONS[kind])
    weights = {
        "exact": lambda: probability(batch),
        "sampled": lambda: drawn(batch, 2),
        "empirical": lambda: lambda i, c: float(batch.y[i] == c),
        "argmax": lambda: lambda i, c: float(np.argmax(forward(PARAMS, batch, i)[1]) == c),
    }
    if kind == "batched":
        expected = batched_reference(batch, 4, VALID)
    else:
        expected = reference(batch, weights[kind](), np.flatnonzero(VALID))
    chex.assert_trees_all_close(found, expected, **ROUNDING)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, PARAMS)
    assert min(np.max(leaf) for leaf in jax.tree.leaves(found)) > 1e-3


@pytest.mark.parametrize("path", MODELS)
def test_without_a_mask_all_outputs_count(path):
    batch = data(masked=False)
    chex.assert_trees_all_close(fisher("exact", batch, path=path), reference(batch, probability(batch)), **ROUNDING)


@pytest.mark.parametrize("path", MODELS)
def test_inactive_outputs_get_nothing(path):
    batch = data()._replace(active=jnp.tile(jnp.array([[True, False, True]]), (NUM, 1)), y=jnp.zeros(NUM, jnp.int32))
    for kind in KINDS:
        head = fisher(kind, batch, VALID, path=path, **OPTIONS[kind])["dense_2"]
        assert not head["bias"][1] and not head["kernel"][:, 1].any()
        assert head["bias"][0] > 0


@pytest.mark.parametrize(("samples", "path"), [(1, "general"), (5, "dense"), (5, "general")])
def test_given_the_drawn_labels_sampled_is_exact(samples, path):
    """From C draws on they are counted per output: the same sum."""
    expected = reference(data(), drawn(data(), samples))
    chex.assert_trees_all_close(fisher("sampled", data(), path=path, samples=samples), expected, **ROUNDING)


@pytest.mark.parametrize("samples", [1, 4000])
def test_sampled_approaches_exact(samples):
    batch = data(masked=False)
    keys = jax.random.split(KEY, 4000 // samples)
    many = jax.vmap(lambda key: fisher("sampled", batch, key=key, samples=samples))(keys)
    variance = jax.tree.map(np.zeros_like, PARAMS)
    for i in range(NUM):
        squares = [squared(gradient(PARAMS, batch, i, c)) for c in range(OUTPUTS)]
        p = forward(PARAMS, batch, i)[1]
        centre = jax.tree.map(lambda *s, p=p: sum(p[c] * s[c] for c in range(OUTPUTS)), *squares)
        spread = jax.tree.map(lambda m, *s, p=p: sum(p[c] * (s[c] - m) ** 2 for c in range(OUTPUTS)), centre, *squares)
        variance = jax.tree.map(lambda sums, one: sums + one / NUM**2, variance, spread)
    trees = many, reference(batch, probability(batch)), variance
    # Five standard errors: a right implementation leaves them in any of the 118 entries for 1 key in 15 000.
    for found, exact, var in zip(*map(jax.tree.leaves, trees), strict=True):
        assert np.all(np.abs(np.mean(found, axis=0) - exact) <= 5 * np.sqrt(var / 4000) + 1e-6)


@pytest.mark.parametrize(("size", "valid"), [(1, VALID), (5, ALL), (50, VALID)])
def test_batched_by_sizes(size, valid):
    found = fisher("batched", data(), valid, batch_size=size)
    chex.assert_trees_all_close(found, batched_reference(data(), size, valid), **ROUNDING)


def test_batch_size_one_alone_makes_the_shortcut_a_fisher():
    """The squared gradient of a batch mean (trap 1) shrinks with the batch; the mean of squared gradients does not."""
    empirical = fisher("empirical", data(), VALID)
    chex.assert_trees_all_close(fisher("batched", data(), VALID, batch_size=1), empirical, **ROUNDING)
    shortcut = {size: total(fisher("batched", data(), VALID, batch_size=size)) for size in (4, 50)}
    assert shortcut[50] < shortcut[4] < 0.8 * total(empirical)


@pytest.mark.parametrize("path", MODELS)
@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_chunks_change_nothing(kind, path):
    whole, part = (fisher(kind, data(), VALID, path=path, **OPTIONS[kind], **chunk) for chunk in ({}, dict(chunk=3)))
    chex.assert_trees_all_close(part, whole, **ROUNDING)


def test_softmax_regression_in_closed_form():
    """F of W[d, c] is the mean of x_d^2 p_c (1 - p_c): no 1/2 and nothing else."""
    model, x = mlp((), OUTPUTS), data().x.reshape(NUM, -1)
    params = model.init(KEY, x)
    weights, bias = (np.asarray(params["dense_0"][name], np.float64) for name in ("kernel", "bias"))
    p = np.exp(np.asarray(x, np.float64) @ weights + bias)
    p /= p.sum(axis=1, keepdims=True)
    found = diagonal_fisher(KEY, model, params, Batch(x, data().y))["dense_0"]
    np.testing.assert_allclose(found["bias"], np.mean(p * (1 - p), axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["kernel"], (np.asarray(x) ** 2).T @ (p * (1 - p)) / NUM, rtol=1e-5)


@pytest.mark.parametrize(("kind", "path"), [("exact", "dense"), ("exact", "general"), ("empirical", "dense")])
def test_two_copies_of_the_data_give_the_same(kind, path):
    twice, valid = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), (data(), VALID))
    once = fisher(kind, data(), VALID, path=path)
    chex.assert_trees_all_close(fisher(kind, twice, valid, path=path), once, **ROUNDING)


@pytest.mark.parametrize("path", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_invalid_rows_may_hold_anything(kind, path):
    find = functools.partial(fisher, kind, path=path, **OPTIONS[kind])
    bad = data()._replace(x=jnp.where(VALID[:, None, None], data().x, jnp.nan))
    chex.assert_trees_all_equal(find(bad, VALID), find(data(), VALID))
    chex.assert_trees_all_equal(find(bad, ~ALL), jax.tree.map(jnp.zeros_like, PARAMS))


def end_task(method, state, params=PARAMS, key=KEY, batch=None, valid=ALL):
    return method.end_task(key, state, params, Task(jnp.int32(0), data() if batch is None else batch, valid))


def test_a_subset_is_drawn_without_replacement():
    batch, valid = data(masked=False), jnp.arange(NUM) < 5
    subsets = [reference(batch, probability(batch), rows) for rows in itertools.combinations(range(5), 3)]
    some = ewc(DENSE, 1.0, num_examples=3)
    start, hits = some.init(KEY, PARAMS, batch), set()
    draw = jax.jit(lambda key: end_task(some, start, key=key, batch=batch, valid=valid).fisher)
    for seed in range(6):
        found = jax.tree.leaves(draw(jax.random.key(seed)))
        off = [max(np.abs(f - s).max() for f, s in zip(found, jax.tree.leaves(one), strict=True)) for one in subsets]
        assert np.sum(np.array(off) < 1e-5) == 1
        hits.add(int(np.argmin(off)))
    assert len(hits) > 2


def test_a_subset_larger_than_the_task_is_the_task():
    valid = jnp.arange(NUM) < 5
    expected = fisher("exact", data(), valid)
    for num_examples in (5, 8):
        method = ewc(DENSE, 1.0, num_examples=num_examples)
        start = method.init(KEY, PARAMS, data())
        found = jax.jit(lambda start, method=method: end_task(method, start, valid=valid).fisher)(start)
        chex.assert_trees_all_close(found, expected, **ROUNDING)


def test_penalty_has_the_half_and_the_strength():
    """Trap 2: strength / 2 * sum F (theta - anchor)^2, in numbers."""
    method = ewc(DENSE, 6.0)
    state = end_task(method, method.init(KEY, PARAMS, data()))
    moved = jax.tree.map(lambda leaf: leaf + 0.25, PARAMS)
    expected = 0.5 * 6.0 * 0.25**2 * total(reference(data(), probability(data())))
    np.testing.assert_allclose(method.penalty(state, moved, data()), expected, rtol=1e-5)


@pytest.mark.parametrize(("anchors", "decay"), [("per_task", 1.0), ("online", 0.5)])
def test_fisher_is_of_the_likelihood_alone_and_adds_up(anchors, decay):
    """Trap 3: neither the penalty nor the batch's weights are in a task's Fisher, and no task overwrites another's."""
    method = ewc(DENSE, 1e3, anchors=anchors, decay=decay)
    first = end_task(method, method.init(KEY, PARAMS, data()))
    later = jax.tree.map(lambda leaf: 0.8 * leaf, PARAMS)
    second = end_task(method, first, later, batch=data()._replace(weight=jnp.linspace(0, 5, NUM)))
    old, new = (reference(data(), probability(data(), params), params=params) for params in (PARAMS, later))
    chex.assert_trees_all_close(second.fisher, jax.tree.map(lambda a, b: decay * a + b, old, new), **ROUNDING)


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"unknown Fisher kind 'exakt'; known: argmax, batched.*Did you mean 'exact'"):
        diagonal_fisher(KEY, DENSE, PARAMS, data(), kind="exakt")
    for name in ("samples", "batch_size", "chunk"):
        with pytest.raises(UserError, match=rf"Fisher {name} = 0; allowed: 1 or more"):
            diagonal_fisher(KEY, DENSE, PARAMS, data(), **{name: 0})

"""OGD: the stored gradients by hand, their basis against NumPy's, and what a projected step leaves as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from cl_jax.batch import Batch, Task
from cl_jax.errors import UserError
from cl_jax.methods.ogd import logit_gradients, ogd, orthonormalized
from cl_jax.models.mlp import mlp
from tests.methods.softmax_regression import INPUTS, MODEL, OUTPUTS, PARAMS, examples, flat, tree_of
from tests.methods.test_agem import KEY, compiled, finished

ANGLE = 2e-6  # float32: products of unit vectors of some dozen entries
gradients_of = jax.jit(lambda params, batch: logit_gradients(MODEL, params, batch))


def projector(rows):
    """On the span of some vectors, float64, from their singular vectors."""
    _, s, vh = np.linalg.svd(np.asarray(rows, np.float64), full_matrices=False)
    kept = vh[s > 1e-6 * s[0]]
    return kept.T @ kept


def test_the_gradient_of_the_true_labels_logit_by_hand():
    """z_y = x . W_y + b_y: ones at the bias, x in the kernel's column y."""
    batch = examples(range(6))
    found = gradients_of(PARAMS, batch)
    for row, x, y in zip(np.asarray(found), np.asarray(batch.x), np.asarray(batch.y), strict=True):
        kernel = np.zeros((INPUTS, OUTPUTS))
        kernel[:, y] = x
        np.testing.assert_allclose(row, flat({"bias": np.eye(OUTPUTS)[y], "kernel": kernel}), rtol=1e-6)


def test_orthonormal_and_of_the_same_span():
    generator = np.random.default_rng(0)
    basis = np.zeros((8, 40))
    basis[:3] = np.linalg.qr(generator.normal(size=(40, 3)))[0].T
    new = generator.normal(size=(9, 40))
    new[1] = 2.0 * new[0] - 3.0 * basis[1]  # depends on what comes before it
    new[4] = new[3] + 1e-2 * generator.normal(size=40)  # nearly does
    new[5] = 0.0
    new[6] *= 1e-4
    found = np.asarray(jax.jit(orthonormalized)(jnp.asarray(new, jnp.float32), jnp.asarray(basis, jnp.float32)))
    empty = [1, 5]
    assert not found[empty].any()
    kept = np.delete(found, empty, axis=0)
    np.testing.assert_allclose(kept @ kept.T, np.eye(7), atol=ANGLE)
    np.testing.assert_allclose(kept @ basis.T, np.zeros((7, 8)), atol=ANGLE)
    both = projector(np.concatenate([basis[:3], np.delete(new, empty, axis=0)]))
    np.testing.assert_allclose(projector(np.concatenate([basis[:3], kept])), both, atol=1e-4)  # row 4: 1e-7 / 1e-2


def test_the_gradient_is_projected_on_the_complement():
    """Two boundaries of three tasks; the third has no room and changes nothing."""
    method = compiled(ogd(MODEL, 3, 4))
    parts = [examples(np.arange(10 * i, 10 * i + 4)) for i in range(3)]
    state = method.init(KEY, PARAMS, parts[0])
    g = np.random.default_rng(1).normal(size=24)
    np.testing.assert_array_equal(flat(method.gradients(KEY, state, tree_of(g), PARAMS, parts[0])), np.float32(g))
    rows = np.zeros((0, 24))
    for number, part in enumerate(parts):
        state = finished(method, state, number, part)
        if number < 2:
            rows = np.concatenate([rows, np.asarray(gradients_of(PARAMS, part))])
        expected = g - projector(rows) @ g
        found = flat(method.gradients(KEY, state, tree_of(g), PARAMS, part))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert state.basis.shape == (8, 24) and int(state.finished) == 3
    empty = finished(method, method.init(KEY, PARAMS, parts[0]), 0, parts[0], jnp.zeros(4, bool))
    assert not empty.basis.any()


def test_a_projected_step_leaves_the_logits_of_the_stored_examples():
    """Exactly for softmax regression, whose logits are linear in the parameters; the others move."""
    method = compiled(ogd(MODEL, 2, 3))
    past, valid = examples(range(5)), jnp.arange(5) < 3  # three valid rows: all of them are drawn
    state = method.init(KEY, PARAMS, past)
    state = finished(method, state, 0, past, valid)
    g = tree_of(np.random.default_rng(2).normal(size=24))
    step = method.gradients(KEY, state, g, PARAMS, past)
    after = jax.tree.map(lambda p, d: p - d, PARAMS, step)
    moved = np.asarray(MODEL.apply(after, past.x) - MODEL.apply(PARAMS, past.x))
    kept = np.zeros((5, OUTPUTS), bool)
    kept[np.arange(3), np.asarray(past.y)[:3]] = True
    assert np.abs(moved[kept]).max() < 1e-5 and np.abs(moved[~kept]).min() > 1e-3


def test_a_network_to_first_order():
    """A step ten times as small moves the stored logits a hundred times less, where a plain one ten times."""
    model = mlp((7,), 3)
    generator = np.random.default_rng(3)
    batch = Batch(jnp.asarray(generator.normal(size=(6, 4)), jnp.float32), jnp.asarray([0, 1, 2] * 2, jnp.int32))
    params = model.init(KEY, batch.x)
    method = compiled(ogd(model, 2, 6))
    state = method.end_task(KEY, method.init(KEY, params, batch), params, Task(jnp.int32(0), batch, jnp.ones(6, bool)))
    vector, tree = ravel_pytree(params)
    g = tree(jnp.asarray(generator.normal(size=vector.size), jnp.float32))
    projected = method.gradients(KEY, state, g, params, batch)

    @jax.jit
    def moves(direction, size):
        after = jax.tree.map(lambda p, d: p - size * d, params, direction)
        change = model.apply(after, batch.x) - model.apply(params, batch.x)
        return jnp.linalg.norm(change[jnp.arange(6), batch.y])

    assert moves(projected, 0.01) < 0.02 * moves(projected, 0.1) and moves(g, 0.01) > 0.05 * moves(g, 0.1)


def test_mistakes_are_told_before_anything_runs():
    with pytest.raises(UserError, match="num_examples 0"):
        ogd(MODEL, 2, 0)

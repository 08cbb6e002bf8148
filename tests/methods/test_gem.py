"""GEM: the projection against SciPy's solutions of its programme, and its reference gradients by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from cl_jax.errors import UserError
from cl_jax.methods.gem import Gem, gem, nearest_without_conflict
from tests.methods.softmax_regression import MODEL, PARAMS, examples, flat, gradient, tree_of
from tests.methods.test_agem import KEY, compiled, finished, stepped

project = jax.jit(nearest_without_conflict)
SIZE, ROWS = 30, 6


def dual(g, references, margin=0.0, ridge=0.0):
    """z from the dual, in float64, by a bounded quasi-Newton method."""
    matrix = references @ references.T + ridge * np.eye(len(references))
    products = references @ g
    found = minimize(
        lambda v: (0.5 * v @ matrix @ v + products @ v, matrix @ v + products),
        np.full(len(references), margin + 1.0),
        jac=True,
        bounds=[(margin, None)] * len(references),
        method="L-BFGS-B",
        options=dict(ftol=1e-15, gtol=1e-9, maxiter=10000, maxfun=10000),
    )
    return g + found.x @ references


def primal(g, references):
    """z from the programme itself, by sequential quadratic programming."""
    found = minimize(
        lambda z: (0.5 * np.sum((z - g) ** 2), z - g),
        g,
        jac=True,
        constraints=dict(type="ineq", fun=lambda z: references @ z, jac=lambda z: references),
        method="SLSQP",
        options=dict(ftol=1e-12, maxiter=500),
    )
    assert found.success
    return found.x


def random_case(seed, kind):
    generator = np.random.default_rng(seed)
    references = generator.normal(size=(ROWS, SIZE)) + (0.7 if kind == "alike" else 0.0)
    g = generator.normal(size=SIZE) - 0.5 * references.sum(axis=0)
    if kind == "repeated":
        references[3:] = 2.0 * references[:3]
    if kind == "opposed":
        references[3] = -references[0]
    if kind == "zero":
        references[2] = 0.0
    return g, references


def found_for(g, references, valid=None, margin=0.0, ridge=0.0):
    valid = np.ones(len(references), bool) if valid is None else valid
    args = (jnp.asarray(leaf, jnp.float32) for leaf in (g, references))
    return np.asarray(project(*args, jnp.asarray(valid), jnp.float32(margin), jnp.float32(ridge)), np.float64)


@pytest.mark.parametrize("kind", ["plain", "alike", "repeated", "opposed", "zero"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_programme(kind, seed):
    g, references = random_case(seed, kind)
    assert (references @ g).min() < 0
    found = found_for(g, references)
    np.testing.assert_allclose(found, primal(g, references), atol=2e-3)
    assert (references @ found).min() > -1e-3


@pytest.mark.parametrize("kind", ["plain", "alike", "repeated"])
@pytest.mark.parametrize(("margin", "ridge"), [(0.5, 1e-3), (0.0, 1e-3), (0.0, 5.0)])
def test_margin_and_ridge_as_in_the_authors_code(kind, margin, ridge):
    g, references = random_case(7, kind)
    np.testing.assert_allclose(
        found_for(g, references, None, margin, ridge), dual(g, references, margin, ridge), atol=5e-3
    )


def test_one_reference_is_agem():
    g, references = random_case(1, "plain")
    r = references[0]
    found = found_for(g, references, np.arange(ROWS) == 0)
    np.testing.assert_allclose(found, g - min(g @ r / (r @ r), 0.0) * r, atol=1e-4)


def test_rows_that_do_not_count():
    g, references = random_case(2, "plain")
    valid = np.array([True, False, True, True, False, False])
    expected = dual(g, references[valid], 0.5, 1e-3)
    np.testing.assert_allclose(found_for(g, references, valid, 0.5, 1e-3), expected, atol=5e-3)


def test_no_conflict_no_change():
    """Bitwise, whatever the margin; and without any row that counts."""
    g, references = random_case(3, "plain")
    agreeing = references * np.sign(references @ g)[:, None]
    np.testing.assert_array_equal(found_for(g, agreeing, None, 3.0), np.asarray(g, np.float32))
    np.testing.assert_array_equal(found_for(g, references, np.zeros(ROWS, bool), 3.0), np.asarray(g, np.float32))


@pytest.mark.parametrize(("heads", "insert"), [(False, "boundary"), (True, "step")])
def test_references_are_the_gradients_of_each_finished_task(heads, insert):
    """Of two finished tasks, one with unfilled slots; a third one is in training and must not count."""
    method = compiled(gem(MODEL, 4, 24, margin=0.5, insert=insert))  # 6 slots a task
    parts = [examples(np.arange(10 * i, 10 * i + 6 - 2 * i), i % 2 if heads else None) for i in range(3)]
    state = method.init(KEY, PARAMS, parts[0])
    away = tree_of(-gradient(PARAMS, parts[0]))
    first = stepped(method, state, parts[0])  # stored, if at all, but its task is not over
    np.testing.assert_array_equal(flat(method.gradients(KEY, first, away, PARAMS, parts[0])), flat(away))
    for number, part in enumerate(parts[:2]):
        state = finished(method, stepped(method, state, part), number, part)
    state = stepped(method, state, parts[2])
    references = np.stack([gradient(PARAMS, part) for part in parts[:2]])
    g = np.random.default_rng(4).normal(size=24) - 3 * references.sum(axis=0)
    assert (references @ g).min() < 0
    found = flat(method.gradients(KEY, state, tree_of(g), PARAMS, parts[2]))
    np.testing.assert_allclose(found, dual(g, references, 0.5, 1e-3), atol=1e-4)


def test_the_number_of_the_task_only_saves_work():
    """Members side by side: what is known to be the same for all of them is a true branch in the program."""
    method, batch = compiled(gem(MODEL, 3, 12)), examples(range(4))
    state = finished(method, stepped(method, method.init(KEY, PARAMS, batch), batch), 0, batch)
    pair = jax.tree.map(lambda leaf: jnp.stack([-leaf, leaf]), tree_of(gradient(PARAMS, batch)))
    found = []
    for present in (None, jnp.int32(1)):
        project_one = gem(MODEL, 3, 12, present=present).gradients
        side_by_side = jax.vmap(lambda g, f=project_one: f(KEY, state, g, PARAMS, batch))
        found.append(jax.jit(side_by_side)(pair))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


def test_mistakes_are_told_before_anything_runs():
    with pytest.raises(UserError, match=r"unknown gem insertion 'shared'; known: boundary, step"):
        gem(MODEL, 4, 20, insert="shared")
    with pytest.raises(UserError, match="leaves a task without a slot"):
        gem(MODEL, 4, 3)
    assert [Gem(insert=insert).waits_for_boundary for insert in ("step", "boundary")] == [False, True]

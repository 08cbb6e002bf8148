"""Functional anchoring: what is stored when, whose answers they are, and the divergence in NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch, Reference, Task
from cl_jax.errors import UserError
from cl_jax.losses import weighted_loss
from cl_jax.method import Method
from cl_jax.methods.anchoring import anchoring
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
MODEL = mlp((), 4)  # softmax regression on 3 inputs, 4 outputs
# float32 sums of a few terms of order 1, against float64.
ROUNDING = dict(rtol=2e-5, atol=1e-6)
OLD = [1, 1, 1, 0]


def weights(seed):
    values = np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32)
    return {"dense_0": {"kernel": jnp.asarray(values[:3]), "bias": jnp.asarray(values[3])}}


def logits_of(params, x):
    return np.asarray(x, np.float64) @ np.asarray(params["dense_0"]["kernel"]) + np.asarray(params["dense_0"]["bias"])


def render(reference: Reference) -> Batch:
    """What the sweep engine does: inputs made of the row's number; outputs 0-2 compete, from row 100 on all four."""
    row = reference.row.astype(jnp.float32)
    active = jnp.ones((len(row), 4), bool).at[:, 3].set(reference.row >= 100)
    x = jnp.stack([jnp.sin(row), jnp.cos(row), row / 10], axis=-1)
    return Batch(x, reference.row % 3, active, reference=reference)


def references(rows) -> Reference:
    index = jnp.asarray(np.asarray(rows), jnp.int32)
    return Reference(index, jnp.zeros_like(index))


def task_of(number, rows, num_valid=None):
    valid = jnp.arange(len(rows)) < (len(rows) if num_valid is None else num_valid)
    return Task(jnp.int32(number), references(rows), valid)


def compiled(method: Method) -> Method:
    return Method(*(jax.jit(slot) for slot in method))


def of(capacity=8, strength=1.0, temperature=1.0, **options) -> Method:
    return compiled(
        anchoring(MODEL, capacity, strength, temperature, store=lambda b: b.reference, load=render, **options)
    )


def test_answers_are_those_of_the_last_boundary_on_all_that_is_stored():
    method = of(capacity=6)
    state = method.init(KEY, weights(0), render(references([0])))
    assert state.answers.shape == (6, 4)
    for number, rows in enumerate([[1, 2, 3], [11, 12]]):
        params = weights(number)
        state = method.end_task(KEY, state, params, task_of(number, rows, num_valid=2))
        full = np.asarray(state.past.buffer.occupied)
        stored = render(jax.tree.map(lambda leaf, full=full: leaf[full], state.past.buffer.items))
        np.testing.assert_allclose(state.answers[full], logits_of(params, stored.x), **ROUNDING)
    assert sorted(stored.reference.row.tolist()) == [1, 2, 11, 12]  # padding (row 3) is not stored


def by_hand(told, present, temperature, old, active):
    q = {k: np.exp(told[k] / temperature) for k in range(4) if old[k] and active[k]}
    p = {k: np.exp(present[k] / temperature) for k in range(4) if active[k]}
    q, p = ({k: value / sum(each.values()) for k, value in each.items()} for each in (q, p))
    return sum(q[k] * np.log(q[k] / p[k]) for k in q)


@pytest.mark.parametrize("known", [None, OLD])
@pytest.mark.parametrize(("rows", "active"), [([1, 2, 3, 4, 5], OLD), ([101, 102, 103, 104, 105], [1, 1, 1, 1])])
def test_loss_by_hand(known, rows, active):
    """Rows where the fourth output does not compete, and rows where it does: new to the teacher or not."""
    old = None if known is None else jnp.asarray(known, bool)
    method = of(strength=3.0, temperature=2.0, old_outputs=old, batch_size=7)
    incoming, present = render(references([21, 22])), weights(1)
    state = method.init(KEY, weights(0), incoming)
    state = method.end_task(KEY, state, weights(0), task_of(0, rows))
    drawn = method.draw(KEY, state, present, incoming)
    logits = MODEL.apply(present, drawn.x)

    replayed = np.asarray(drawn.reference.row[2:])
    assert set(replayed.tolist()) <= set(rows) and len(set(replayed.tolist())) > 1
    told, now = logits_of(weights(0), drawn.x[2:]), logits_of(present, drawn.x[2:])
    each = [by_hand(told[j], now[j], 2.0, known or [1] * 4, active) for j in range(7)]
    expected = 3.0 * 2.0**2 * sum(each) / 7
    assert expected > 0.1
    np.testing.assert_allclose(method.loss(state, logits, drawn), expected, **ROUNDING)
    # Labels of the replayed rows are not learned.
    np.testing.assert_allclose(
        weighted_loss(logits, drawn), weighted_loss(MODEL.apply(present, incoming.x), incoming), **ROUNDING
    )


def test_nothing_pulls_at_the_old_answers_and_something_does_elsewhere():
    method = of(old_outputs=jnp.asarray(OLD, bool))
    incoming = render(references([21, 22]))
    state = method.end_task(KEY, method.init(KEY, weights(0), incoming), weights(0), task_of(0, [1, 2, 3]))
    drawn = method.draw(KEY, state, weights(0), incoming)
    slope = jax.jit(jax.grad(lambda params: method.loss(state, MODEL.apply(params, drawn.x), drawn)))
    at, away = (slope(weights(seed))["dense_0"]["kernel"] for seed in (0, 1))
    assert float(jnp.abs(at).max()) < 1e-6 < 1e-2 < float(jnp.abs(away).max())


def test_an_empty_buffer_is_fine_tuning():
    method = of(strength=1e6)
    incoming = render(references([21, 22, 23]))
    state = method.init(KEY, weights(0), incoming)
    drawn = method.draw(KEY, state, weights(1), incoming._replace(weight=jnp.array([0.5, 0.25, 0.25])))
    assert float(method.loss(state, MODEL.apply(weights(1), drawn.x), drawn)) == 0.0
    assert drawn.weight.tolist() == [0.5, 0.25, 0.25, 0.0, 0.0, 0.0]


def test_mistakes_are_told():
    with pytest.raises(UserError, match="unknown buffer policy 'rings'"):
        anchoring(MODEL, 5, policy="rings")

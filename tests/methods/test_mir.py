"""MIR: the virtual step, the rise of each candidate's loss and the choice, in NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch
from cl_jax.errors import UserError
from cl_jax.method import Method, StepInfo
from cl_jax.methods.mir import Mir, mir
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
MODEL = mlp((), 3)  # softmax regression on 4 inputs, 3 outputs
DATA = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, 60)
RATE = 0.5


def examples(rows, active=None) -> Batch:
    """Row i of the data; its first input is i, so that a row can be told (the model sees it small)."""
    rows = np.asarray(rows)
    x = DATA[rows].copy()
    x[:, 0] = rows / 100
    if active is not None:
        active = jnp.broadcast_to(jnp.asarray(active, bool)[None, :], (len(rows), 3))
    return Batch(jnp.asarray(x), jnp.asarray(LABELS[rows], jnp.int32), active)


def rows_of(batch) -> list[int]:
    return [round(100 * float(first)) for first in batch.x[:, 0]]


def weights():
    values = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    return {"dense_0": {"kernel": jnp.asarray(values[:4]), "bias": jnp.asarray(values[4])}}


def of(capacity=20, **options) -> Method:
    return Method(*(jax.jit(slot) for slot in mir(MODEL, capacity, RATE, **options)))


def filled(method: Method, batch: Batch):
    info = StepInfo(batch, batch, jnp.ones(2), None, None, jnp.zeros((0, 3)))
    return method.after_step(KEY, method.init(KEY, None, batch), info)


def probabilities(theta, x, active):
    z = np.append(np.asarray(x, np.float64), 1.0) @ theta
    e = np.exp(z) * np.asarray(active)
    return e / e.sum()


def rises(incoming, stored, active, weight):
    """l_j(theta') - l_j(theta) for each stored row."""
    params = weights()["dense_0"]
    theta = np.concatenate([params["kernel"], params["bias"][None]]).astype(np.float64)
    gradient = np.zeros_like(theta)
    for x, y, u in zip(incoming.x, incoming.y, weight, strict=True):
        p = probabilities(theta, x, active)
        gradient += u * np.outer(np.append(np.asarray(x, np.float64), 1.0), p - np.eye(3)[int(y)])
    ahead = theta - RATE * gradient
    return [
        np.log(probabilities(theta, x, active)[int(y)] / probabilities(ahead, x, active)[int(y)])
        for x, y in zip(stored.x, stored.y, strict=True)
    ]


@pytest.mark.parametrize(("active", "weight"), [(None, [0.7, 0.1, 0.2]), ([1, 1, 1], None)])
def test_the_most_harmed_are_replayed(active, weight):
    """Candidates are all that is stored, so the choice is known."""
    method = of(candidates=20, batch_size=6)
    stored, incoming = examples(range(20), active), examples([30, 31, 32], active)
    if weight is not None:
        incoming = incoming._replace(weight=jnp.asarray(weight))
    drawn = method.draw(KEY, filled(method, stored), weights(), incoming)

    rise = rises(incoming, stored, [1, 1, 1], weight or [1 / 3] * 3)
    assert rows_of(drawn)[:3] == [30, 31, 32]
    assert rows_of(drawn)[3:] == np.argsort(rise)[::-1][:6].tolist()
    np.testing.assert_allclose(drawn.weight, (weight or [1 / 3] * 3) + [1 / 6] * 6, rtol=1e-6)
    np.testing.assert_array_equal(drawn.y[3:], LABELS[rows_of(drawn)[3:]])


def test_only_active_outputs_count():
    """Among the outputs that compete for it, a row can be harmed that otherwise would not be, and the reverse."""
    kept = [i for i in range(30) if LABELS[i] != 2]
    method = of(30, candidates=30, batch_size=5)
    chosen = {}
    for active in ([1, 1, 1], [1, 1, 0]):
        stored, incoming = examples(kept, active), examples([i for i in range(30, 40) if LABELS[i] != 2], active)
        drawn = method.draw(KEY, filled(method, stored), weights(), incoming)
        num = len(incoming.y)
        rise = rises(incoming, stored, active, [1 / num] * num)
        chosen[tuple(active)] = rows_of(drawn)[num:]
        assert chosen[tuple(active)] == [kept[j] for j in np.argsort(rise)[::-1][:5]]
    assert chosen[1, 1, 1] != chosen[1, 1, 0]


def test_candidates_are_a_random_part():
    """Replayed rows are always the worst of some subset: the very worst of all not always, the mildest never."""
    method = of(candidates=5, batch_size=1)
    stored, incoming = examples(range(20)), examples([30, 31, 32])
    state = filled(method, stored)
    draw = jax.jit(jax.vmap(lambda key: method.draw(key, state, weights(), incoming).x[3, 0]))
    found = np.rint(100 * np.asarray(draw(jax.random.split(KEY, 200)))).astype(int)
    order = np.argsort(rises(incoming, stored, [1, 1, 1], [1 / 3] * 3))[::-1]
    place = np.argsort(order)[found]  # 0: the most harmed of all 20
    # P(the worst is a candidate) = 5 / 20; the chosen one has four milder candidates below it.
    assert abs(np.mean(place == 0) - 0.25) < 0.12 and place.max() <= 15


def test_a_buffer_that_holds_few_gives_each_once():
    method = of(candidates=8, batch_size=6)
    drawn = method.draw(KEY, filled(method, examples([1, 2, 3])), weights(), examples([30, 31]))
    assert sorted(rows_of(drawn)[2:5]) == [1, 2, 3]
    np.testing.assert_allclose(drawn.weight, [0.5, 0.5, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0], rtol=1e-6)


def test_an_empty_buffer_is_fine_tuning():
    method = of()
    incoming = examples([30, 31])
    drawn = method.draw(KEY, method.init(KEY, None, incoming), weights(), incoming)
    assert drawn.weight.tolist() == [0.5, 0.5, 0.0, 0.0] and np.isfinite(drawn.x).all()


def test_mistakes_are_told():
    method = of(candidates=3, batch_size=4)
    with pytest.raises(UserError, match="MIR chooses 4 of 3 candidates"):
        method.draw(KEY, filled(method, examples([1, 2])), weights(), examples([30, 31]))


def test_it_needs_no_boundaries_unless_it_stores_there():
    assert not Mir().needs_boundaries and Mir(insert="boundary").needs_boundaries

"""ER-ACE: the asymmetric cross-entropy in NumPy loops, and which logits get no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch
from cl_jax.errors import UserError
from cl_jax.losses import weighted_loss
from cl_jax.method import Method, StepInfo
from cl_jax.methods.er_ace import ErAce, er_ace
from cl_jax.methods.replay import replay

KEY = jax.random.key(0)
# float32 sums of a few terms of order 1, against float64.
ROUNDING = dict(rtol=2e-5, atol=1e-6)
SEEN = [1, 1, 1, 1, 1, 0]  # of six outputs; 0-2 are of finished tasks, 3 and 4 of the present one
OLD = jnp.array([1, 1, 1, 0, 0, 0], bool)


def examples(labels, active=None) -> Batch:
    y = jnp.asarray(labels, jnp.int32)
    if active is not None:
        active = jnp.broadcast_to(jnp.asarray(active, bool)[None, :], (len(labels), 6))
    return Batch(y[:, None].astype(jnp.float32), y, active)


def drawn_by(method: Method, incoming: Batch) -> tuple[Batch, jax.Array]:
    """A batch mixed with stored rows of old and present classes, and logits for it."""
    past = examples([0, 1, 2, 2, 4], None if incoming.active is None else SEEN)
    state = method.init(KEY, None, incoming)
    state = jax.jit(method.after_step)(KEY, state, StepInfo(past, past, jnp.ones(2), None, None, jnp.zeros((5, 6))))
    drawn = jax.jit(method.draw)(KEY, state, None, incoming)
    assert set(drawn.y[len(incoming.y) :].tolist()) >= {0, 2}  # this key's draw
    logits = np.random.default_rng(0).normal(0, 2, (len(drawn.y), 6)).astype(np.float32)
    return drawn, jnp.asarray(logits)


def cross_entropy(logits, label, competing):
    z = np.asarray(logits, np.float64)
    return np.log(sum(np.exp(z[c]) for c in competing)) - z[label]


@pytest.mark.parametrize(
    ("competing", "old", "active", "labels", "new"),
    [
        ("batch", None, SEEN, [3, 3, 4], [3, 4]),
        ("batch", None, SEEN, [1, 3, 3], [1, 3]),  # an old class that comes back
        ("batch", None, None, [3, 3, 3], [3]),
        ("task", OLD, SEEN, [3, 3, 3], [3, 4]),
        ("task", OLD, None, [3, 3, 3], [3, 4, 5]),  # 5 was never trained, but nothing says so
        ("task", jnp.ones(6, bool), SEEN, [3, 3, 3], [0, 1, 2, 3, 4]),  # domain-incremental
        ("task", None, SEEN, [3, 3, 3], [0, 1, 2, 3, 4]),
    ],
)
def test_loss_by_hand(competing, old, active, labels, new):
    method = er_ace(10, 6, competing=competing, old_outputs=old, batch_size=8)
    drawn, logits = drawn_by(method, examples(labels, active))
    seen = range(5 if active else 6)
    expected = sum(cross_entropy(logits[i], labels[i], new) for i in range(3)) / 3
    expected += sum(cross_entropy(logits[j], int(drawn.y[j]), seen) for j in range(3, 11)) / 8
    np.testing.assert_allclose(weighted_loss(logits, drawn), expected, **ROUNDING)


def test_incoming_rows_leave_old_logits_alone():
    """The point of the method, and what replay does not do."""
    incoming = examples([3, 4, 3], SEEN)
    slopes = []
    for method in (er_ace(10, 6, batch_size=8), replay(10, batch_size=8)):
        drawn, logits = drawn_by(method, incoming)
        slopes.append(np.abs(jax.grad(weighted_loss)(logits, drawn)))
        assert slopes[-1][:3, 3:5].min() > 0 and slopes[-1][3:, :5].min() > 0
    assert not slopes[0][:3, :3].any() and slopes[1][:3, :3].min() > 0


def test_padding_brings_no_class():
    method = er_ace(10, 6, batch_size=8)
    drawn, logits = drawn_by(method, examples([3, 4, 1], SEEN)._replace(weight=jnp.array([0.5, 0.5, 0.0])))
    assert drawn.active[0].tolist() == [False, False, False, True, True, False]
    value, slope = jax.value_and_grad(weighted_loss)(logits, drawn)
    assert np.isfinite(value) and not np.asarray(slope[2]).any()


def test_an_empty_buffer_trains_on_the_new_rows_alone():
    method = er_ace(10, 6)
    incoming = examples([3, 4], SEEN)
    drawn = method.draw(KEY, method.init(KEY, None, incoming), None, incoming)
    assert drawn.weight.tolist() == [0.5, 0.5, 0.0, 0.0]


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"unknown ER-ACE competing 'tasks'.*Did you mean 'task'"):
        er_ace(10, 6, competing="tasks")
    with pytest.raises(UserError, match="capacity 0"):
        er_ace(0, 6)


def test_it_needs_no_boundaries_unless_it_goes_by_tasks():
    assert not ErAce().needs_boundaries and ErAce(competing="task").needs_boundaries

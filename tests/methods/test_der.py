"""DER and DER++: what is stored, both terms by hand, independent draws, and two whole steps in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.batch import Batch
from cl_jax.errors import UserError
from cl_jax.losses import weighted_loss
from cl_jax.method import Method, StepInfo
from cl_jax.methods.der import Answered, der
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
MODEL = mlp((), 3)  # softmax regression on 2 inputs, 3 outputs
# float32 sums of a few terms of order 1, against float64.
ROUNDING = dict(rtol=2e-5, atol=1e-6)


def examples(rows) -> Batch:
    """Row i: an input made of i, label i mod 3."""
    rows = np.asarray(rows)
    x = np.stack([np.sin(rows), rows], axis=-1).astype(np.float32)
    return Batch(jnp.asarray(x), jnp.asarray(rows % 3, jnp.int32))


def logits_for(rows) -> np.ndarray:
    """What the model is made to have answered: told from the row."""
    rows = np.asarray(rows, np.float32)
    return np.stack([rows, rows**2 / 100, -rows], axis=-1)


def filled(method: Method, rows):
    """State after one step that these rows came in with, and were trained on beside others."""
    batch = examples([*rows, 77, 78])
    info = StepInfo(examples(rows), batch, jnp.ones(2), None, None, jnp.asarray(logits_for([*rows, 77, 78])))
    return method.after_step(KEY, method.init(KEY, None, examples(rows)), info)


def compiled(method: Method) -> Method:
    return Method(*(jax.jit(slot) for slot in method))


def test_an_example_is_stored_with_the_logits_of_its_row():
    method = compiled(der(4, 3))
    state = filled(method, [5, 6, 8])
    assert isinstance(state.items, Answered) and state.occupied.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(state.items.item.x[:3], examples([5, 6, 8]).x)
    np.testing.assert_array_equal(state.items.logits[:3], logits_for([5, 6, 8]))


@pytest.mark.parametrize("beta", [None, 0.0, 0.7])
def test_both_terms_by_hand(beta):
    method = compiled(der(10, 3, 0.4, beta, batch_size=5))
    state = filled(method, [1, 2, 3, 4, 5, 6])
    incoming = examples([20, 21])._replace(weight=jnp.array([0.75, 0.25]))
    drawn = method.draw(KEY, state, None, incoming)
    assert drawn.y.shape == (7 if beta is None else 12,)
    logits = np.random.default_rng(0).normal(size=(len(drawn.y), 3)).astype(np.float32)

    rows = np.asarray(drawn.x[:, 1], int)
    squares = [(logits[j, c] - logits_for(rows)[j, c]) ** 2 for j in range(2, 7) for c in range(3)]
    expected = 0.4 * np.sum(np.asarray(squares, np.float64)) / (5 * 3)
    np.testing.assert_allclose(method.loss(state, jnp.asarray(logits), drawn), expected, **ROUNDING)

    def cross_entropy(j):
        z = logits[j].astype(np.float64)
        return np.log(np.exp(z).sum()) - z[rows[j] % 3]

    expected = 0.75 * cross_entropy(0) + 0.25 * cross_entropy(1)
    expected += (beta or 0.0) * sum(cross_entropy(k) for k in range(7, len(rows))) / 5
    np.testing.assert_allclose(weighted_loss(jnp.asarray(logits), drawn), expected, **ROUNDING)


def test_beta_zero_is_der():
    plain, zero = (compiled(der(10, 3, 0.4, beta, batch_size=5)) for beta in (None, 0.0))
    state, incoming = filled(plain, [1, 2, 3, 4, 5, 6]), examples([20, 21])
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)), jnp.float32)

    def total(method):
        drawn = method.draw(KEY, state, None, incoming)
        logits = drawn.x @ kernel
        return weighted_loss(logits, drawn), method.loss(state, logits, drawn)

    np.testing.assert_allclose(total(plain), total(zero), **ROUNDING)


def test_the_two_draws_are_independent():
    """Of two stored rows both draws take the same in half of all steps, not in all of them."""
    method = compiled(der(2, 3, beta=1.0, batch_size=1))
    state = filled(method, [4, 9])

    def same(key):
        x = method.draw(key, state, None, examples([20])).x[:, 1]
        return x[1] == x[2], x[1] == 4, x[2] == 4

    counts = np.asarray(jax.jit(jax.vmap(same))(jax.random.split(KEY, 400))).sum(axis=1)
    assert (np.abs(counts - 200) < 60).all()  # six standard deviations


def test_an_empty_buffer_is_fine_tuning():
    method = compiled(der(10, 3, 1e6, 1e6, batch_size=4))
    incoming = examples([20, 21])
    state = method.init(KEY, None, incoming)
    drawn = method.draw(KEY, state, None, incoming)
    assert drawn.weight.tolist() == [0.5, 0.5] + [0.0] * 8
    assert float(method.loss(state, jnp.ones((10, 3)), drawn)) == 0.0


def test_two_training_steps_by_hand():
    """One slot and one row a step: the second step has to match the logits from before the first step's update."""
    alpha, beta, rate = 0.6, 0.3, 0.1
    method = der(1, 3, alpha, beta)
    learner = train.Learner(MODEL, optax.sgd(rate), method)
    first, second = examples([4]), examples([8])
    params = MODEL.init(KEY, first.x)
    theta = np.concatenate([params["dense_0"]["kernel"], params["dense_0"]["bias"][None]]).astype(np.float64)
    state = train.init(learner, KEY, first, params)
    step = jax.jit(lambda state, key, batch: train.train_step(learner, key, state, batch)[0])
    for number, batch in enumerate((first, second)):
        state = step(state, jax.random.fold_in(KEY, number), batch)

    def descent(batch):
        """Gradient of the cross-entropy of one row."""
        x = np.append(np.asarray(batch.x[0], np.float64), 1.0)
        p = np.exp(x @ theta) / np.exp(x @ theta).sum()
        return np.outer(x, p - np.eye(3)[int(batch.y[0])])

    x_first = np.append(np.asarray(first.x[0], np.float64), 1.0)
    stored = x_first @ theta
    theta = theta - rate * descent(first)  # nothing was stored yet
    matching = np.outer(x_first, 2 * (x_first @ theta - stored) / 3)
    assert np.abs(matching).max() > 0.05
    theta = theta - rate * (descent(second) + alpha * matching + beta * descent(first))
    found = np.concatenate([state.trainable["dense_0"]["kernel"], state.trainable["dense_0"]["bias"][None]])
    np.testing.assert_allclose(found, theta, **ROUNDING)


@pytest.mark.parametrize(
    ("arguments", "message"), [(dict(capacity=0), "capacity 0"), (dict(capacity=4, batch_size=0), "DER batch_size 0")]
)
def test_mistakes_are_told(arguments, message):
    with pytest.raises(UserError, match=message):
        der(num_outputs=3, **arguments)

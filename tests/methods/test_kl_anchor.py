"""The tie to the base in NumPy loops: whose weights are kept, on which inputs, of images and of sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch, Task
from cl_jax.errors import UserError
from cl_jax.method import Method
from cl_jax.methods.kl_anchor import kl_anchor
from cl_jax.model import Model
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
MODEL = mlp((), 4)  # softmax regression on 3 inputs, 4 outputs
# A bigram table: the logits of the next token are the row of this one.
BIGRAMS = Model(init=lambda key, x: {"table": jnp.zeros((5, 5))}, apply=lambda params, x: params["table"][x])
ROUNDING = dict(rtol=2e-5, atol=1e-6)  # float32 sums of a few terms of order 1, against float64


def weights(seed: int) -> dict:
    values = np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32)
    return {"dense_0": {"kernel": jnp.asarray(values[:3]), "bias": jnp.asarray(values[3])}}


def table(seed: int) -> dict:
    return {"table": jnp.asarray(np.random.default_rng(seed).normal(size=(5, 5)).astype(np.float32))}


def batch(seed: int, rows: int = 6) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(jnp.asarray(rng.normal(size=(rows, 3)).astype(np.float32)), jnp.zeros((rows,), jnp.int32))


def kl(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    log_p, log_q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (teacher, student))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def logits_of(params: dict, x: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float64) @ np.asarray(params["dense_0"]["kernel"]) + np.asarray(params["dense_0"]["bias"])


def ended(method: Method, state, params: dict, number: int, examples: Batch):
    task = Task(jnp.int32(number), examples, jnp.ones((len(examples.y),), bool))
    return method.end_task(KEY, state, params, task)


@pytest.mark.parametrize(("anchor", "kept"), [("base", 1), ("previous", 2)])
def test_on_new_inputs_it_is_the_mean_kl_from_the_kept_model(anchor: str, kept: int) -> None:
    method = kl_anchor(MODEL, 3.0, anchor=anchor)
    state = method.init(KEY, weights(0), batch(0))
    now, seen = weights(9), batch(5)
    assert float(method.loss(state, MODEL.apply(now, seen.x), seen)) == 0.0, "nothing to keep before a boundary"
    for number in (1, 2):
        state = ended(method, state, weights(number), number - 1, batch(number))
    expected = 3.0 * kl(logits_of(weights(kept), seen.x), logits_of(now, seen.x)).mean()
    np.testing.assert_allclose(method.loss(state, MODEL.apply(now, seen.x), seen), expected, **ROUNDING)
    weighted = seen._replace(weight=jnp.asarray([0.5, 0.5, 0, 0, 0, 0], jnp.float32))
    expected = 3.0 * kl(logits_of(weights(kept), seen.x), logits_of(now, seen.x))[:2].mean()
    np.testing.assert_allclose(method.loss(state, MODEL.apply(now, seen.x), weighted), expected, **ROUNDING)


def test_of_sequences_it_is_the_mean_over_counted_targets() -> None:
    method = kl_anchor(BIGRAMS, 2.0)
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.integers(0, 5, (3, 7)), jnp.int32)
    counted = jnp.asarray(rng.integers(0, 2, (3, 7)), jnp.float32)
    seen = Batch(x, x, counted=counted)
    state = ended(method, method.init(KEY, table(0), seen), table(1), 0, seen)
    now = table(2)
    apart = kl(np.asarray(table(1)["table"], np.float64)[x], np.asarray(now["table"], np.float64)[x])
    expected = 2.0 * (apart * np.asarray(counted)).sum() / np.asarray(counted).sum()
    np.testing.assert_allclose(method.loss(state, BIGRAMS.apply(now, x), seen), expected, **ROUNDING)
    nothing = seen._replace(counted=jnp.zeros_like(counted))
    assert float(method.loss(state, BIGRAMS.apply(now, x), nothing)) == 0.0


def test_old_inputs_are_stored_ones_and_the_task_loss_sees_the_new_alone() -> None:
    method = kl_anchor(MODEL, 1.5, inputs="old", capacity=4, batch_size=5)
    old, seen, now = batch(1, 4), batch(5), weights(9)
    state = method.init(KEY, weights(0), seen)
    early = method.draw(KEY, state, now, seen)
    assert float(method.loss(state, MODEL.apply(now, early.x), early)) == 0.0
    state = ended(method, state, weights(1), 0, old)
    drawn = method.draw(KEY, state, now, seen)
    np.testing.assert_array_equal(drawn.x[:6], seen.x)
    stored = {tuple(row) for row in np.asarray(old.x).tolist()}
    assert {tuple(row) for row in np.asarray(drawn.x[6:]).tolist()} <= stored
    np.testing.assert_allclose(drawn.weight, [1 / 6] * 6 + [0] * 5)
    expected = 1.5 * kl(logits_of(weights(1), drawn.x[6:]), logits_of(now, drawn.x[6:])).mean()
    np.testing.assert_allclose(method.loss(state, MODEL.apply(now, drawn.x), drawn), expected, **ROUNDING)


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match=r"unknown KL anchor inputs 'odl'.*Did you mean 'old'"):
        kl_anchor(MODEL, 1.0, inputs="odl")
    with pytest.raises(UserError, match=r"unknown KL anchor 'bas'.*Did you mean 'base'"):
        kl_anchor(MODEL, 1.0, anchor="bas")

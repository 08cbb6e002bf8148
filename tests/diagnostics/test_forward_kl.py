"""Forward KL on new and old inputs against sums over labels."""

import jax.numpy as jnp
import numpy as np

from cl_jax.diagnostics import forward_kl
from cl_jax.losses import log_probabilities
from tests.diagnostics.by_hand import ALL_WEIGHTS, BATCHES, boundary, examples, forward, measured, softmax


def test_before_to_after_on_every_task_so_far() -> None:
    array, layers = measured(forward_kl, 2)["forward_kl"]
    assert layers == ("",) and array.shape == (1, 3, 1)
    for task in (0, 1):
        x, _ = examples(task)
        p, q = (softmax(forward(ALL_WEIGHTS[after], x)[1]) for after in (1, 2))  # before task 2, after it
        np.testing.assert_allclose(array[0, task, 0], np.mean(np.sum(p * np.log(p / q), axis=1)), rtol=1e-4)
    assert np.isnan(array[0, 2, 0])


def test_undefined_before_training_and_where_the_model_before_is_not_known() -> None:
    assert np.isnan(measured(forward_kl, 0)["forward_kl"][0]).all()
    assert np.isnan(measured(forward_kl, 2, since=2)["forward_kl"][0]).all()


def test_outputs_that_the_model_before_did_not_have_count_nothing() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    old, new = jnp.array([[True, True, False]] * 4), jnp.ones((4, 3), bool)
    found = forward_kl.kl(log_probabilities(logits, old), log_probabilities(2 * logits, new))
    p, q = softmax(np.asarray(logits[:, :2])), softmax(2 * np.asarray(logits))
    np.testing.assert_allclose(found, np.sum(p * np.log(p / q[:, :2]), axis=1), rtol=1e-4)


def test_each_model_answers_over_the_outputs_of_its_time() -> None:
    asked = []

    def probe(task, present):
        asked.append(present)
        return BATCHES[0]

    forward_kl.measure(boundary(3, probe=probe))
    assert sorted({int(each) for each in asked}) == [1, 2]

"""Answers lost and gained since the base, counted one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch
from cl_jax.diagnostics import transitions
from cl_jax.diagnostics.transitions import transitions as changed
from cl_jax.model import Model
from tests.diagnostics.by_hand import ALL_WEIGHTS, BATCHES, boundary, examples, forward, measured


def by_hand(right_before: np.ndarray, right_now: np.ndarray, num_outputs: int) -> tuple[float, float]:
    """One target after another."""
    lost = gained = before = now = 0
    for then, later in zip(right_before, right_now, strict=True):
        before, now = before + then, now + later
        lost, gained = lost + (then and not later), gained + (later and not then)
    n = len(right_before)
    guessed = (1 - max(before / n, now / n)) / num_outputs
    return lost / n - guessed, gained / n - guessed


def right(after: int, task: int) -> np.ndarray:
    x, y = examples(task)
    return forward(ALL_WEIGHTS[after], x)[1].argmax(axis=1) == y


def test_four_answers_by_hand() -> None:
    before, now = jnp.array([True, True, False, False]), jnp.array([False, True, True, False])
    weight = jnp.full((4,), 0.25, jnp.float32)
    # 1 of 4 each way; both are right half the time, so that guesses among 10 turn over 0.1 x 0.5.
    np.testing.assert_allclose(changed(before, now, weight, 10), [0.2, 0.2], rtol=1e-6)
    weight = jnp.array([0.5, 0.5, 0.0, 0.0], jnp.float32)  # the others are padding
    np.testing.assert_allclose(changed(before, now, weight, 10), [0.5, 0.0], rtol=1e-6)


def test_against_the_base_on_every_task() -> None:
    found = measured(transitions, 3)
    for quantity, place in (("lost", 0), ("gained", 1)):
        array, layers = found[quantity]
        assert layers == ("",) and array.shape == (1, 3, 1)
        expected = [by_hand(right(1, task), right(3, task), 3)[place] for task in range(3)]
        np.testing.assert_allclose(array[0, :, 0], expected, atol=1e-6)
    difference = [right(3, task).mean() - right(1, task).mean() for task in range(3)]
    np.testing.assert_allclose(found["gained"][0][0, :, 0] - found["lost"][0][0, :, 0], difference, atol=1e-6)


def test_undefined_until_something_follows_the_base_and_where_it_is_not_known() -> None:
    for after, since in ((0, 0), (1, 0), (3, 2)):
        assert all(np.isnan(array).all() for array, _ in measured(transitions, after, since=since).values())


def test_guessing_alone_loses_and_gains_nothing() -> None:
    draw = np.random.default_rng(0)
    answers, truth = draw.integers(20, size=(2, 400_000)), draw.integers(20, size=400_000)
    before, now = (jnp.asarray(each == truth) for each in answers)
    weight = jnp.full((400_000,), 1 / 400_000, jnp.float32)
    assert float(jnp.mean(before & ~now)) == pytest.approx(0.05, rel=0.1)  # not adjusted
    np.testing.assert_allclose(changed(before, now, weight, 20), 0.0, atol=0.002)


def test_a_task_whose_outputs_do_not_compete_yet_is_undefined() -> None:
    x, y, active, weight = BATCHES[0][:4]
    asked = []

    def probe(task, split, present=None):
        asked.append((split, present if present is None else int(present)))
        none = jnp.zeros(active.shape, bool)
        old = none.at[:, 0].set(True)
        new = jnp.where(task == 2, none.at[:, 0].set(True), jnp.ones(active.shape, bool))
        return Batch(x, jnp.where(task == 2, jnp.full_like(y, 2), y), old if present is not None else new, weight)

    lost, gained = (value.array[0, :, 0] for value in transitions.measure(boundary(3, probe=probe)))
    assert set(asked) == {("validation", 0), ("validation", None)}
    assert np.isnan(lost[2]) and np.isnan(gained[2]) and np.isfinite(lost[:2]).all()
    # The base answers 0 always, where that is right; of the other labels it had no outputs.
    _, truth = examples(0)
    np.testing.assert_allclose(lost[0], by_hand(truth == 0, right(3, 0), 3)[0], atol=1e-6)
    np.testing.assert_allclose(gained[0], by_hand(truth == 0, right(3, 0), 3)[1], atol=1e-6)


def test_of_text_by_counted_tokens() -> None:
    draw = np.random.default_rng(0)
    tables = draw.normal(size=(4, 5, 3)).astype(np.float32)  # by boundary: logits after each of 5 tokens
    x, y = draw.integers(5, size=(2, 30)).astype(np.int32), draw.integers(3, size=(2, 30)).astype(np.int32)
    counted = draw.integers(2, size=(2, 30))
    kept = jnp.asarray(tables)
    model = Model(init=lambda key, like: kept[0], apply=lambda params, ids: params[ids])
    batch = jax.tree.map(jnp.asarray, Batch(x, y))
    batch = batch._replace(counted=jnp.asarray(counted, jnp.float32), weight=jnp.full((2,), 0.5, jnp.float32))
    changes = {"model": model, "probe": lambda task, **about: batch, "params": lambda task: kept[3]}
    values = transitions.measure(boundary(3, earlier=lambda at, task: kept[at], **changes))
    before, now = ((tables[at, x].argmax(axis=-1) == y)[counted == 1] for at in (1, 3))
    expected = by_hand(before, now, 3)
    np.testing.assert_allclose([value.array[0, 0, 0] for value in values], expected, atol=1e-6)
    assert min(expected) > 0.03  # there is something to count

"""Replay of the model's own text: when it is written, by whom, and how much of a batch it is."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import train
from cl_jax.adapters.lora import lora
from cl_jax.batch import Batch, Reference, Task
from cl_jax.errors import UserError
from cl_jax.methods.context import Context
from cl_jax.methods.self_replay import SelfReplay, SelfReplayState, language_of, self_replay
from cl_jax.models.generate import Language, generate_documents
from cl_jax.models.mlp import mlp
from cl_jax.optimizers import Sgd
from cl_jax.text.format import TextFormat
from cl_jax.tokens import read_rows
from tests.test_decoder import built

KEY = jax.random.key(0)
LENGTH, CAPACITY = 8, 8
LANGUAGE = Language(start=10, end=9)
MODEL, PARAMS = built()
BYTES = TextFormat(
    num_tokens=256, context=LENGTH, domains=("a",), tokenizer="bytes", tokenizer_sha256="", start=255, end=255,
    manifest=(),
)  # fmt: skip


def batch(rows: int = 6) -> Batch:
    """Rows of one token 0, which the model of these tests writes too but never throughout."""
    text = jnp.stack([jnp.zeros((rows, LENGTH + 1)), jnp.full((rows, LENGTH + 1), 3), jnp.ones((rows, LENGTH + 1))], 2)
    tokens, targets = read_rows(text.astype(jnp.uint8))
    number = jnp.arange(rows, dtype=jnp.int32)
    return Batch(tokens, targets.ids, reference=Reference(number, number), counted=targets.counted)


def at_boundary(method, state, params, number, key=KEY) -> SelfReplayState:
    new = batch(4)
    return method.end_task(key, state, params, Task(jnp.int32(number), new.reference, jnp.ones((4,), bool)))


def written(**settings):
    method = self_replay(MODEL, 0.3, CAPACITY, LANGUAGE, **settings)
    return method, at_boundary(method, method.init(KEY, PARAMS, batch()), PARAMS, 0)


def test_the_share_of_written_rows_is_binomial_and_each_as_likely() -> None:
    method, state = written()
    rows, draws, share, new = 50, 300, 0.3, batch(50)
    drawn = jax.jit(jax.vmap(lambda key: method.draw(key, state, PARAMS, new)))(jax.random.split(KEY, draws))
    old = np.asarray(drawn.reference.row) == -1
    mean, deviation = share * rows, (share * (1 - share) * rows / draws) ** 0.5
    assert abs(old.sum(axis=1).mean() - mean) < 4 * deviation
    tokens, targets = read_rows(state.rows)
    ids, known = np.asarray(drawn.y)[old], np.asarray(targets.ids)
    which = (ids[:, None] == known[None]).all(axis=2)
    assert which.any(axis=1).all(), "each is one of those written"
    assert len(np.unique(known, axis=0)) == CAPACITY
    counts = which.sum(axis=0)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 24.3  # chi-squared of 7, 0.1 %
    place = which.argmax(axis=1)
    np.testing.assert_array_equal(np.asarray(drawn.counted)[old], np.asarray(targets.counted)[place])
    np.testing.assert_array_equal(np.asarray(drawn.x.segments)[old], np.asarray(tokens.segments)[place])
    np.testing.assert_array_equal(np.asarray(drawn.y)[~old], 0)


def test_nothing_is_replayed_before_a_boundary_or_without_a_share() -> None:
    new = batch()._replace(weight=jnp.full((6,), 1 / 6))
    method, state = written()
    none = self_replay(MODEL, 0.0, CAPACITY, LANGUAGE)
    chex.assert_trees_all_equal(method.draw(KEY, method.init(KEY, PARAMS, new), PARAMS, new), new)
    chex.assert_trees_all_equal(none.draw(KEY, state, PARAMS, new), new)
    whole = self_replay(MODEL, 1.0, CAPACITY, LANGUAGE).draw(KEY, state, PARAMS, new)
    assert (whole.reference.row == -1).all()
    chex.assert_trees_all_equal_shapes_and_dtypes(whole, new)


def test_the_base_writes_all_rows_once() -> None:
    method, state = written(windows=3, temperature=0.7)
    key_text, _ = jax.random.split(KEY)
    expected = generate_documents(MODEL, key_text, PARAMS, CAPACITY, LENGTH, LANGUAGE, windows=3, temperature=0.7)
    np.testing.assert_array_equal(state.rows, expected)
    assert state.rows.dtype == jnp.uint8
    later = at_boundary(method, state, jax.tree.map(lambda leaf: 2 * leaf, PARAMS), 1, jax.random.key(1))
    np.testing.assert_array_equal(later.rows, state.rows)
    assert int(later.tasks_finished) == 2


def test_each_boundary_has_an_equal_share() -> None:
    method = self_replay(MODEL, 0.3, 400, LANGUAGE, writer="each")
    end_task = jax.jit(lambda key, state, number: at_boundary(method, state, PARAMS, number, key))
    states = [method.init(KEY, PARAMS, batch())]
    for number in range(3):
        states.append(end_task(jax.random.key(number), states[-1], number))
    same = [np.asarray(a.rows) == np.asarray(b.rows) for a, b in itertools.pairwise(states[1:])]
    kept = [each.all(axis=(1, 2)).mean() for each in same]
    assert (np.asarray(states[1].rows)[:, 0, 0] == 10).any()
    np.testing.assert_allclose(kept, [1 / 2, 2 / 3], atol=4 * (0.25 / 400) ** 0.5)


def test_under_an_adapter_what_it_makes_of_the_weights_writes() -> None:
    method = self_replay(MODEL, 0.5, CAPACITY, LANGUAGE)
    learner = train.Learner(MODEL, Sgd(learning_rate=1.0).build(), method, lora(2, 2.0))
    state = train.init(learner, KEY, batch(), PARAMS)
    state = state._replace(trainable=jax.tree.map(lambda leaf: leaf + 0.3, state.trainable))
    examples = Task(jnp.int32(0), batch(4).reference, jnp.ones((4,), bool))
    after = jax.jit(lambda state: train.end_task(learner, KEY, state, examples))(state)
    by_hand = method.end_task(
        train.stream_key(KEY, "method"), state.method, train.effective(learner, state), examples
    )  # fmt: skip
    np.testing.assert_array_equal(after.method.rows, by_hand.rows)
    plain = method.end_task(train.stream_key(KEY, "method"), state.method, PARAMS, examples)
    assert (np.asarray(plain.rows) != np.asarray(after.method.rows)).any()
    moved, metrics = jax.jit(lambda state: train.train_step(learner, KEY, state, batch(), 0.1, 1))(after)
    assert np.isfinite(metrics.loss) and not bool(moved.diverged)


def test_what_cannot_be_is_told() -> None:
    for settings, message in (
        ({"writer": "bas"}, "Did you mean 'base'"), ({"windows": 0}, "windows 0"), ({"capacity": 0}, "capacity 0"),
        ({"model": mlp((3,), 4)}, "reads token by token"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            self_replay(**{"model": MODEL, "share": 0.5, "capacity": 3, "language": LANGUAGE, **settings})
    method = self_replay(MODEL, 0.5, 3, LANGUAGE)
    with pytest.raises(UserError, match="the examples are not text"):
        method.init(KEY, PARAMS, Batch(jnp.zeros((2, 3)), jnp.zeros((2,), jnp.int32)))


def test_the_text_says_which_tokens_part_documents() -> None:
    def context(text: TextFormat) -> Context:
        return Context(*(None,) * len(Context._fields))._replace(text=text, model=MODEL)

    told = language_of(context(BYTES))
    assert told[:2] == (255, 255) and int(told.sizes.sum()) == 255 and int(told.sizes[255]) == 0
    other = dataclasses.replace(BYTES, tokenizer="t.json", start=1, end=None)
    assert language_of(context(other)) == (1, None, None)
    with pytest.raises(UserError, match="start=<token>"):
        SelfReplay().build(context(dataclasses.replace(other, start=None)))

"""What a model writes: the distribution that it reads with, in rows that are packed as text is."""

from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.errors import UserError
from cl_jax.model import Model, Reader
from cl_jax.models.generate import Language, generate, generate_documents
from cl_jax.models.mlp import mlp
from cl_jax.models.rotary import Scaling
from cl_jax.text.packing import Encoded, pack
from cl_jax.tokens import read_rows
from tests.test_decoder import TOKENS, built

KEY = jax.random.key(3)
LENGTH = 12
ENDING = Language(start=10, end=9)
SWITCHES = {
    "plain": {},
    "grouped": {"kv_heads": 2, "tied": False},
    "qwen2": {"kv_heads": 1, "qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_width": 6},
    "scaled": {"rope_scaling": Scaling(8.0, 1.0, 4.0, 8), "rope_base": 50.0},
    "deep": {"layers": 9},
}


def both_ways(model: Model, params: chex.ArrayTree, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [N, L, V] of the whole rows at once, and token by token."""
    tokens, reader = read_rows(rows)[0], model.reader
    assert reader is not None
    began = jnp.concatenate(
        [jnp.ones_like(tokens.segments[:, :1], bool), tokens.segments[:, 1:] != tokens.segments[:, :-1]], axis=1
    )
    places = jnp.arange(tokens.ids.shape[1], dtype=jnp.int32)
    first = jax.lax.cummax(jnp.where(began, places[None], 0), axis=1)

    def one(cache, item):
        ids, place, begun = item
        return reader.step(params, cache, ids, place, begun)

    _, stepped = jax.lax.scan(one, reader.empty(*tokens.ids.shape), (tokens.ids.T, places, first.T))
    return model.apply(params, tokens), stepped.swapaxes(0, 1)


@pytest.mark.parametrize("name", SWITCHES)
def test_what_is_written_is_read_alike(name):
    model, params = built(**SWITCHES[name])

    @jax.jit
    def written(key):
        rows = generate(model, key, params, 6, LENGTH, ENDING)
        return rows, *both_ways(model, params, rows)

    rows, whole, stepped = written(KEY)
    mine = np.asarray(rows[:, :-1, 1]) > 0
    assert 6 < (np.asarray(rows[..., 1]) // 2).max(axis=1).sum() and mine.any(), "documents follow one another"
    whole, stepped = jax.nn.log_softmax(whole), jax.nn.log_softmax(stepped)
    np.testing.assert_allclose(np.asarray(stepped)[mine], np.asarray(whole)[mine], atol=1e-4)


def test_half_precision_reads_alike_to_its_rounding():
    model, params = built(compute="bfloat16")
    rows = generate(model, KEY, params, 4, LENGTH, ENDING)
    whole, stepped = both_ways(model, params, rows)
    assert model.reader.empty(1, 1).key.dtype == jnp.bfloat16 and stepped.dtype == jnp.float32
    np.testing.assert_allclose(stepped, whole, atol=0.15)  # 8 bits of numbers up to 10


def chain_of(temperature: float) -> tuple[Model, np.ndarray]:
    """A model whose next token depends on the last one alone, and its table of probabilities."""
    logits = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)

    def step(params, cache, ids, place, first):
        return cache, jnp.asarray(logits)[ids]

    model = Model(init=lambda key, x: (), apply=lambda params, x: jnp.asarray(logits)[x.ids],
                  reader=Reader(lambda num, length: (), step))  # fmt: skip
    table = np.exp(logits / temperature)
    return model, table / table.sum(axis=1, keepdims=True)


def texts(table: np.ndarray, last: int, left: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """What may follow a token of an unfinished document in the places left, and how likely it is."""
    if left == 0:
        yield (), 1.0
        return
    for token, likely in enumerate(table[last]):
        if token != 2:
            yield from (((token, *rest), likely * more) for rest, more in texts(table, token, left - 1))
        elif left > 2:
            yield from (((2, 2, *rest), likely * more) for rest, more in texts(table, 2, left - 2))
        else:
            yield (2, 0)[:left], likely  # no room for another document


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_texts_are_as_likely_as_the_model_says(temperature):
    model, table = chain_of(temperature)
    num = 20000
    made = jax.jit(lambda key, t: generate(model, key, (), num, 3, Language(start=2, end=2), temperature=t))
    rows = np.asarray(made(KEY, jnp.float32(temperature)))
    expected = dict(texts(table, 2, 3))
    assert abs(sum(expected.values()) - 1) < 1e-5
    counts = {text: 0 for text in expected}
    for text in map(tuple, rows[:, 1:, 0]):
        counts[text] += 1
    found, hoped = (np.array([each[text] for text in expected]) for each in (counts, expected))
    chi = ((found - num * hoped) ** 2 / (num * hoped)).sum()
    degrees = len(expected) - 1
    assert chi < degrees + 4 * (2 * degrees) ** 0.5, (chi, degrees)


def test_rows_are_packed_as_their_documents_would_be():
    model, params = built()
    sizes = np.arange(TOKENS) % 3
    for language in (ENDING._replace(sizes=sizes), Language(start=9, end=9, sizes=sizes)):
        rows = np.asarray(jax.jit(lambda key, it=language: generate(model, key, params, 64, LENGTH, it))(KEY))
        for row in rows:
            documents = []
            for segment in range(1, row[:, 1].max() // 2 + 1):
                ids, marks, _ = row[row[:, 1] // 2 == segment].T
                assert ids[0] == language.start and marks[0] % 2 == 0 and (marks[1:] % 2 == 1).all()
                assert (ids[1:-1] != language.end).all() and (language.start == language.end or 10 not in ids[1:])
                counted = np.arange(len(ids)) > 0
                documents.append(Encoded(ids, counted, np.where(counted, sizes[ids], 0)))
            np.testing.assert_array_equal(pack(documents, LENGTH, TOKENS), row[None].astype(np.uint8))


def test_a_row_has_no_more_documents_than_marks_can_tell():
    always = jnp.full((4,), -1e9).at[2].set(0.0)
    reader = Reader(lambda num, length: (), lambda params, cache, ids, *_: (cache, jnp.stack([always] * len(ids))))
    model = Model(init=lambda key, x: (), apply=lambda params, x: x, reader=reader)
    rows = np.asarray(generate(model, KEY, (), 1, 300, Language(start=2, end=2)))[0]
    assert rows[:, 1].max() == 255 and (rows[254:] == 0).all() and (rows[:254, 0] == 2).all()


def test_a_document_goes_on_in_the_next_row():
    model, params = built()
    windows, side_by_side = 3, 5
    for language in (ENDING, Language(start=9, end=9), Language(start=9, end=None)):
        rows = generate_documents(model, KEY, params, 14, LENGTH, language, windows=windows)
        assert rows.shape == (14, LENGTH + 1, 3)
        for at in range(side_by_side, 14):
            last, first = np.asarray(rows)[at - side_by_side, -1], np.asarray(rows)[at, 0]
            over = last[1] == 0 or last[0] == language.end
            assert tuple(first) == (language.start if over else last[0], 2, 0)
    assert (np.asarray(rows[side_by_side:, 0, 0]) != 9).any()


def test_side_by_side_is_one_by_one():
    model, params = built()
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.9 * leaf]), params)
    keys, heat = jax.random.split(KEY), jnp.array([1.0, 0.7])

    def write(key, params, heat):
        return generate(model, key, params, 5, LENGTH, ENDING, temperature=heat)

    together = jax.jit(jax.vmap(write))(keys, several, heat)
    for i in range(2):
        alone = jax.jit(write)(keys[i], jax.tree.map(lambda leaf, i=i: leaf[i], several), heat[i])
        np.testing.assert_array_equal(together[i], alone)
    assert (np.asarray(together[0]) != np.asarray(together[1])).any()


def test_what_cannot_write_is_told():
    with pytest.raises(UserError, match="reads token by token"):
        generate(mlp((3,), 4), KEY, {}, 1, 4, ENDING)
    with pytest.raises(UserError, match="windows 0"):
        generate_documents(built()[0], KEY, {}, 1, 4, ENDING, windows=0)

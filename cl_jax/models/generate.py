"""Text that a model writes by itself, as rows like those that it is trained on (see `cl_jax.tokens`).

Shapes: N rows, L tokens that a model sees at once, V tokens that there are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.errors import UserError
from cl_jax.model import Model, Params, Reader
from cl_jax.tokens import MOST_SEGMENTS


class Language(NamedTuple):
    """Which tokens part documents; static but for `sizes`."""

    start: int  # stands before each document
    end: int | None  # stands after it; None: a document has no end
    sizes: Any = None  # int32 [V], bytes that each token stands for; None: unknown, and 0 in the rows


class _Pen(NamedTuple):
    """Where each row stands."""

    cache: Any
    ids: jax.Array  # int32 [N], the newest token
    segment: jax.Array  # int32 [N], 0: nothing more can begin here
    first: jax.Array  # int32 [N], the place where the document began
    ended: jax.Array  # bool [N], the newest token was the document's end


def generate(
    model: Model,
    key: jax.Array,
    params: Params,
    num: int,
    length: int,
    language: Language,
    *,
    temperature: jax.Array | float = 1.0,
    first: jax.Array | None = None,
) -> jax.Array:
    """Rows of `length` + 1 tokens, each token drawn after those before it in its document: int32 [N, L + 1, 3].

        p(token = v at place t + 1) = softmax(logits_t / temperature)_v

    over all tokens, but for the start token where that is another than the end token. A row begins with a document.
    After an end token the next one begins, until place L or the 127th document of the row, and what is left is padding,
    as `cl_jax.text.packing.pack` has it. Every drawn token is counted. A token costs one step of `Model.reader`.

    Args:
        model: one with a `reader`, such as `cl_jax.models.decoder.decoder`.
        num: N. length: L, as many as the model was trained on; other lengths work.
        language: the text's tokens.
        temperature: above 0, may be traced.
        first: int32 [N], the token that each row begins with; None: the start token.

    Raises:
        UserError: the model has no reader.
    """
    reader = reader_of(model)
    start = jnp.full((num,), language.start, jnp.int32)
    begun = start if first is None else first.astype(jnp.int32)
    one = jnp.ones((num,), jnp.int32)

    def write(pen: _Pen, item: tuple[jax.Array, jax.Array]) -> tuple[_Pen, tuple[jax.Array, ...]]:
        key_token, place = item
        cache, logits = reader.step(params, pen.cache, pen.ids, place, pen.first)
        if language.start != language.end:
            logits = logits.at[:, language.start].set(-jnp.inf)
        drawn = jax.random.categorical(key_token, logits / temperature).astype(jnp.int32)
        # A document needs a place for a token after its start.
        over = (pen.segment == 0) | (pen.ended & ((place == length - 1) | (pen.segment == MOST_SEGMENTS)))
        ids = jnp.where(over, 0, jnp.where(pen.ended, start, drawn))
        segment = jnp.where(over, 0, pen.segment + pen.ended.astype(jnp.int32))
        counted = ~over & ~pen.ended
        ended = counted & (drawn == language.end) if language.end is not None else jnp.zeros((num,), bool)
        new = _Pen(cache, ids, segment, jnp.where(pen.ended, place + 1, pen.first), ended)
        return new, (ids, 2 * segment + counted.astype(jnp.int32), counted)

    pen = _Pen(reader.empty(num, length), begun, one, jnp.zeros((num,), jnp.int32), jnp.zeros((num,), bool))
    places = (jax.random.split(key, length), jnp.arange(length, dtype=jnp.int32))
    _, (ids, marks, counted) = lax.scan(write, pen, places)
    ids = jnp.concatenate([begun[None], ids])
    marks = jnp.concatenate([2 * one[None], marks])
    sizes = jnp.zeros_like(ids)
    if language.sizes is not None:
        counted = jnp.concatenate([jnp.zeros((1, num), bool), counted])
        sizes = jnp.where(counted, jnp.asarray(language.sizes, jnp.int32)[ids], 0)
    return jnp.stack([ids, marks, sizes], axis=-1).swapaxes(0, 1)


def generate_documents(
    model: Model,
    key: jax.Array,
    params: Params,
    num: int,
    length: int,
    language: Language,
    *,
    windows: int = 8,
    temperature: jax.Array | float = 1.0,
) -> jax.Array:
    """Rows int32 [N, L + 1, 3] of documents that may be longer than a row, `windows` rows one after the other.

    A document that its row does not end goes on in the next one from its last token, which is not counted again, as
    those of packed text do. With one window every row would be the beginning of a document, which few rows of long
    documents are.

    Args:
        windows: ceil(N / windows) rows are written side by side, which is what the cache has to hold.
        model, num, length, language, temperature: as `generate`'s.

    Raises:
        UserError: as `generate`; windows below 1.
    """
    if windows < 1:
        raise UserError(f"generate windows {windows}: must be at least 1")
    side_by_side = -(-num // windows)

    def write(first: jax.Array, key_rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = generate(
            model, key_rows, params, side_by_side, length, language, temperature=temperature, first=first
        )  # fmt: skip
        ids, marks = rows[:, -1, 0], rows[:, -1, 1]
        goes_on = marks > 0 if language.end is None else (marks > 0) & (ids != language.end)
        return jnp.where(goes_on, ids, language.start), rows

    beginning = jnp.full((side_by_side,), language.start, jnp.int32)
    _, rows = lax.scan(write, beginning, jax.random.split(key, windows))
    return rows.reshape(windows * side_by_side, length + 1, 3)[:num]


def reader_of(model: Model) -> Reader:
    """The model's reader. Raises UserError: it has none."""
    if model.reader is None:
        raise UserError(
            "generating text needs a model that reads token by token, which this one does not: use a Decoder() on "
            "text, or give yours a `reader` (see cl_jax.model.Reader)"
        )
    return model.reader

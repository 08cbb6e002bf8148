"""Documents to rows of tokens; for the channels of a row see `cl_jax.tokens`."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cl_jax.text.documents import Document
from cl_jax.text.tokenizer import Tokenizer
from cl_jax.tokens import CHANNELS, MOST_SEGMENTS, row_dtype


class Encoded(NamedTuple):
    """A document as tokens, with start and end."""

    ids: np.ndarray  # int32 [n]
    counted: np.ndarray  # bool [n], never the first: nothing predicts it
    sizes: np.ndarray  # int32 [n], bytes of counted text


def encode(document: Document, tokenizer: Tokenizer) -> Encoded:
    """The tokens of a document.

    The text is encoded as a whole. A token is counted if any of its bytes are, and stands for as many as are; a token
    without bytes is counted as the byte is that follows it. The end token is counted as the last piece is, with no
    bytes; the start token is not. Without a start token the first token of the text is not counted, nor its bytes.
    """
    pieces = [(len(text.encode()), counted) for text, counted in document.pieces]
    of_byte = np.repeat([counted for _, counted in pieces], [size for size, _ in pieces]).astype(bool)
    ids, sizes = tokenizer.encode(document.text)
    assert sizes.sum() == len(of_byte) or not len(ids)
    ends = np.cumsum(sizes, dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(of_byte)])
    stands_for = before[ends] - before[ends - sizes]
    counted = np.where(sizes > 0, stands_for > 0, of_byte[np.minimum(ends, len(of_byte) - 1)]) if len(ids) else ids > 0
    first = [] if tokenizer.start is None else [tokenizer.start]
    last = [] if tokenizer.end is None else [tokenizer.end]
    ids = np.concatenate([first, ids, last]).astype(np.int32)
    counted = np.concatenate([np.zeros(len(first), bool), counted, of_byte[-1:] if last else []]).astype(bool)
    sizes = np.concatenate([np.zeros(len(first)), stands_for, np.zeros(len(last))]).astype(np.int32)
    if len(ids):
        counted[0], sizes[0] = False, 0
    return Encoded(ids, counted, sizes)


def pack(documents: Iterable[Encoded], context: int, num_tokens: int) -> np.ndarray:
    """Rows of documents one after the other, cut into windows of `context` + 1 tokens.

    Where a document goes on in the next row, its last token here is the first one there, again, as the input of its
    first target; there it is neither counted nor of any bytes. So each counted token is a target exactly once, and
    predicted from its own document alone. The rest of a row is padding where only one token is left of it, where it
    has 127 documents, and at the end. A row without a counted target is left out.

    Args:
        documents: in their order.
        context: tokens that a model sees at once, at least 1.
        num_tokens: ids lie below it.

    Returns:
        Rows [N, context + 1, 3] of the smallest of uint8, uint16 and int32 that holds ids, and bytes of one token.
    """
    rows: list[np.ndarray] = []
    row, filled, segments, largest = np.zeros((context + 1, CHANNELS), np.int32), 0, 0, 0

    def next_row() -> None:
        nonlocal row, filled, segments
        if (row[:, 1] % 2).any():
            rows.append(row)
        row, filled, segments = np.zeros_like(row), 0, 0

    for ids, counted, sizes in documents:
        largest = max(largest, int(sizes.max(initial=0)))
        at = 0
        while at < len(ids) - 1:
            if filled >= context or segments == MOST_SEGMENTS:
                next_row()
            segments += 1
            count = min(context + 1 - filled, len(ids) - at)
            part, here = slice(at, at + count), row[filled : filled + count]
            here[:, 0], here[:, 1], here[:, 2] = ids[part], 2 * segments + counted[part], sizes[part]
            here[0, 1:] = 2 * segments, 0  # nothing predicts it here
            filled += count
            at += count - 1
    next_row()
    dtype = row_dtype(max(num_tokens, largest + 1))
    return np.stack(rows).astype(dtype) if rows else np.zeros((0, context + 1, CHANNELS), dtype)

"""Conversations in their order, as rows of tokens of one shape, a round of them at a time."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cl_jax.text import packing
from cl_jax.text.documents import Document
from cl_jax.text.packing import Encoded
from cl_jax.text.tokenizer import Bytes, Tokenizer
from cl_jax.tokens import CHANNELS, row_dtype


class Round(NamedTuple):
    """Some conversations, one after the other."""

    first: int  # number of the first, from 0
    number: int  # of conversations
    rows: np.ndarray  # [R, context + 1, 3], padding from `used` on; R and the dtype are those of every round
    used: int  # rows
    owner: np.ndarray  # int32 [R, context], whose each target is, 0 for the first; -1 for padding
    cut: list[int]  # of each conversation, tokens at its end that were left out
    sha256: str  # see `Conversations.sha256`


class Conversations:
    """A stream of conversations for a model that sees `context` tokens at once.

    A conversation that fits in a row is not cut in two, and one that does not begins a row of its own: what the model
    sees before each token does not depend on the conversations beside it. One longer than `longest` tokens ends there.

    Args:
        documents: in their order; the loss counts what the pieces say.
        tokenizer: the model's.
        context: tokens that the model sees at once.
        longest: tokens of a conversation, start and end among them.
        every: conversations in a round.
    """

    def __init__(
        self, documents: Sequence[Document], tokenizer: Tokenizer, *, context: int, longest: int, every: int
    ) -> None:
        self._documents, self._tokenizer = documents, tokenizer
        self.context, self.longest, self.every = context, longest, every
        self.most_rows = every * -(-(longest - 1) // context)

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def dtype(self) -> np.dtype:
        """Of every round's rows; that of bytes also holds their sizes, which are 0 and 1."""
        return row_dtype(256) if isinstance(self._tokenizer, Bytes) else np.dtype(np.int32)

    @property
    def num_tokens(self) -> int:
        """Ids lie below it."""
        return self._tokenizer.num_tokens

    def origin(self, number: int) -> str:
        """File of a conversation, and place in it."""
        return self._documents[number].origin

    def sha256(self, first: int, end: int) -> str:
        """Of what the model is shown of the conversations from number `first` to before `end`, however packed."""
        return _digest(self._shown(self._encoded(first, end)))

    def round(self, first: int) -> Round:
        """The conversations from number `first` on, `every` of them or as many as are left."""
        whole = self._encoded(first, first + self.every)
        shown = self._shown(whole)
        numbered = [each._replace(ids=np.full_like(each.ids, number)) for number, each in enumerate(shown)]
        rows = np.zeros((self.most_rows, self.context + 1, CHANNELS), self.dtype)
        owner = np.full((self.most_rows, self.context), -1, np.int32)
        used = 0
        for shelf in shelves([len(each.ids) for each in shown], self.context):
            packed = packing.pack([shown[i] for i in shelf], self.context, self._tokenizer.num_tokens)
            owners = packing.pack([numbered[i] for i in shelf], self.context, self.every).astype(np.int32)
            place = slice(used, used + len(packed))
            rows[place] = packed
            owner[place] = np.where(owners[:, 1:, 1] > 0, owners[:, 1:, 0], -1)
            used += len(packed)
        cut = [len(full.ids) - len(kept.ids) for full, kept in zip(whole, shown, strict=True)]
        return Round(first, len(shown), rows, used, owner, cut, _digest(shown))

    def _encoded(self, first: int, end: int) -> list[Encoded]:
        return [packing.encode(each, self._tokenizer) for each in self._documents[first:end]]

    def _shown(self, whole: Sequence[Encoded]) -> list[Encoded]:
        return [Encoded(*(part[: self.longest] for part in each)) for each in whole]


def shelves(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Numbers of conversations that follow one another in rows of `context` + 1 tokens, from a row's start.

    A conversation that does not fit in the rest of the last row begins a new shelf.
    """
    made: list[list[int]] = []
    filled = context + 1
    for number, length in enumerate(lengths):
        if filled + length > context + 1:
            made.append([])
            filled = 0
        made[-1].append(number)
        # A longer one fills rows, of which each begins with the last token of the one before.
        filled = filled + length if filled + length <= context + 1 else (length - 2) % context + 2
    return made


def _digest(shown: Sequence[Encoded]) -> str:
    sha = hashlib.sha256()
    for each in shown:
        for part in each:
            sha.update(f"{len(part)} ".encode() + np.ascontiguousarray(part, np.int32).tobytes())
    return sha.hexdigest()

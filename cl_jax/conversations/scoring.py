"""How well a model predicts rows of text: nats by target, summed over conversations, as bits per byte."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.batch import Batch
from cl_jax.conversations.stream import Round
from cl_jax.losses import cross_entropy
from cl_jax.model import Model, Params
from cl_jax.tokens import read_rows

CHUNK_ROWS = 16
CHUNK_LOGITS = 2**24  # numbers that a chunk's logits may take: a large vocabulary leaves room for few rows


class Score(NamedTuple):
    """What some text costs a model."""

    nats: float  # sum over counted targets of -ln p
    bytes: int  # that they stand for

    @property
    def bits_per_byte(self) -> float:
        """nats / ln 2 / bytes; NaN of no bytes."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


def batch_of(rows: jax.Array) -> Batch:
    """Rows [B, context + 1, 3] of tokens as a model and a loss see them."""
    tokens, targets = read_rows(rows)
    return Batch(x=tokens, y=targets.ids, counted=targets.counted)


def chunk_of(num_tokens: int, context: int) -> int:
    """Rows that are scored at once."""
    return max(1, min(CHUNK_ROWS, CHUNK_LOGITS // (num_tokens * context)))


def target_nats(model: Model, params: Params, rows: jax.Array, used: jax.Array | int, chunk: int) -> jax.Array:
    """-ln p of every counted target, 0 of the others: float32 [N, context].

    Args:
        rows: [N, context + 1, 3].
        used: int32 (), rows from here on are not looked at.
        chunk: rows at once, which bounds memory alone.
    """
    number, context = rows.shape[0], rows.shape[1] - 1
    rows = jnp.pad(rows, ((0, -number % chunk), (0, 0), (0, 0)))
    used = jnp.asarray(used, jnp.int32)

    def one(index: jax.Array, found: jax.Array) -> jax.Array:
        batch = batch_of(jax.lax.dynamic_slice_in_dim(rows, index * chunk, chunk))
        assert batch.counted is not None
        nats = jnp.where(batch.counted > 0, cross_entropy(model.apply(params, batch.x), batch.y), 0.0)
        return jax.lax.dynamic_update_slice_in_dim(found, nats, index * chunk, axis=0)

    found = jnp.zeros((rows.shape[0], context), jnp.float32)
    return jax.lax.fori_loop(0, (used + chunk - 1) // chunk, one, found)[:number]


def of_conversations(nats: np.ndarray, each: Round) -> list[Score]:
    """The scores of a round's conversations, in their order, from the nats of its targets [R, context]."""
    counted, sizes = counted_bytes(each.rows)
    owner = np.where(counted, each.owner, each.number).ravel()
    sums = np.bincount(owner, nats.astype(np.float64).ravel(), each.number + 1)
    total = np.bincount(owner, sizes.ravel(), each.number + 1)
    return [Score(float(sums[i]), int(total[i])) for i in range(each.number)]


def of_all(nats: np.ndarray, rows: np.ndarray) -> Score:
    """The score of rows [N, context + 1, 3] together, from the nats of their targets [N, context]."""
    return Score(float(nats.astype(np.float64).sum()), int(counted_bytes(rows)[1].sum()))


def counted_bytes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which targets count, bool [N, context], and the bytes that each stands for, int64 [N, context]: as `read_rows`
    has them, on the host."""
    segments, marks = rows[..., 1] // 2, rows[..., 1] % 2
    counted = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0) & (marks[:, 1:] == 1)
    return counted, np.where(counted, rows[:, 1:, 2], 0).astype(np.int64)

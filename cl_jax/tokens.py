"""Text as arrays: rows of tokens as a data set holds them, and what a sequence model and its loss make of them.

A row is an integer array [L + 1, 3] of one window:
    0: the token's id.
    1: its mark, 2 * segment + counted: segment 1, 2, ... numbers the documents within the row, 0 is padding; counted is
       1 where the loss counts how well this token is predicted.
    2: the UTF-8 bytes of counted text that it stands for, 0 for special, uncounted and padding tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CHANNELS = 3
MOST_SEGMENTS = 127  # marks of rows of bytes are bytes


class Tokens(NamedTuple):
    """What a sequence model reads. A position sees itself and earlier ones of its own segment."""

    ids: jax.Array  # int32 [B, L]
    segments: jax.Array  # int32 [B, L], 0: padding


class Targets(NamedTuple):
    """What a sequence model is to predict: at each position the next token."""

    ids: jax.Array  # int32 [B, L]
    counted: jax.Array  # float32 [B, L], 1 where the loss counts it, else 0
    bytes: jax.Array  # float32 [B, L], UTF-8 bytes of what is counted


def row_dtype(num_tokens: int) -> np.dtype:
    """The smallest of uint8, uint16 and int32 that holds ids below `num_tokens`."""
    return np.dtype(np.uint8 if num_tokens <= 256 else np.uint16 if num_tokens <= 65536 else np.int32)


def read_rows(rows: jax.Array) -> tuple[Tokens, Targets]:
    """Inputs and targets of rows [B, L + 1, 3]; a target counts only if its input is of the same document."""
    rows = rows.astype(jnp.int32)
    ids, marks, sizes = rows[..., 0], rows[..., 1], rows[..., 2]
    segments = marks // 2
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    counted = same & (marks[:, 1:] % 2 == 1)
    return (
        Tokens(ids[:, :-1], segments[:, :-1]),
        Targets(ids[:, 1:], counted.astype(jnp.float32), jnp.where(counted, sizes[:, 1:], 0).astype(jnp.float32)),
    )

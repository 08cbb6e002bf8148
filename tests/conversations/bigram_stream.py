"""A bigram model over bytes, and text for it: small enough to know every answer by hand."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.config import replace
from cl_jax.conversations import Adaptation, Adapted, Conversations, OldText, adapt
from cl_jax.conversations.standing import Standings
from cl_jax.model import Model
from cl_jax.optimizers import Sgd
from cl_jax.text import packing
from cl_jax.text.documents import Document
from cl_jax.text.tokenizer import Bytes
from cl_jax.tokens import Tokens
from cl_jax.train import TrainState

CONTEXT = 16
SETTINGS = Adaptation(
    optimizer=Sgd(learning_rate=2.0), every=2, steps=3, rows=4, context=CONTEXT, longest=60, old_every=2, old_rows=8,
    old_train=12,
)  # fmt: skip


def bigram() -> Model:
    """logits = kernel[token]."""

    def init(key: jax.Array, x: Tokens) -> Any:
        return {"head": {"kernel": 0.5 * jax.random.normal(key, (256, 256))}}

    return Model(init=init, apply=lambda params, x: params["head"]["kernel"][x.ids])


def bigram_params(seed: int = 0) -> Any:
    empty = jnp.zeros((1, 1), jnp.int32)
    return bigram().init(jax.random.key(seed), Tokens(empty, empty))


def talk(number: int, words: str = "abc") -> Document:
    """A question and an answer, of which the answer is counted; its length grows with its number, up to a point."""
    said = " ".join(words[(number + i) % len(words)] * (1 + (number * i) % 5) for i in range(3 + number % 4))
    return Document(((f"Customer: {number}?\nAgent:", False), (f" {said}\n", True)), f"talks#{number}")


def talks(number: int, words: str = "abc") -> list[Document]:
    return [talk(i, words) for i in range(number)]


def stream(documents: Sequence[Document], settings: Adaptation = SETTINGS) -> Conversations:
    return Conversations(
        documents, Bytes(), context=settings.context, longest=settings.longest, every=settings.every
    )  # fmt: skip


def rows_of(texts: Sequence[str]) -> np.ndarray:
    documents = [Document(((text, True),), "") for text in texts]
    return packing.pack([packing.encode(each, Bytes()) for each in documents], CONTEXT, 256)


def old_text() -> OldText:
    """Three different texts of one kind."""
    parts = [rows_of([f"def {name}(x): return x{sign}1\n" * 4 for sign in "+-*/"]) for name in ("f", "g", "h")]
    return OldText(*parts, name="made")


def contrary() -> tuple[OldText, Any]:
    """Old text in which the letters of the conversations go on otherwise, and a model that knows it."""
    parts = [rows_of([f"{one}{two}{one}{three} " * 8 for one in "abc" for two in "xyz"]) for three in "uvw"]
    counts = np.full((256, 256), 0.1)
    for rows in parts:
        np.add.at(counts, (rows[:, :-1, 0], rows[:, 1:, 0]), rows[:, 1:, 1] % 2)
    return OldText(*parts, name="made"), {"head": {"kernel": jnp.log(jnp.asarray(counts, jnp.float32))}}


def bits_per_byte(kernel: Any, rows: np.ndarray) -> float:
    """What rows cost the bigram table, target by target."""
    kernel = np.asarray(kernel, np.float64)
    log_p = kernel - np.log(np.exp(kernel).sum(1, keepdims=True))
    nats = size = 0.0
    for row in rows.astype(np.int64):
        for before, here in itertools.pairwise(row):
            if here[1] % 2 and here[1] // 2 == before[1] // 2:
                nats, size = nats - log_p[before[0], here[0]], size + here[2]
    return nats / np.log(2) / size


def run(out: Path, documents: Sequence[Document], changes: dict[str, Any] | None = None, **given: Any) -> Adapted:
    settings = replace(SETTINGS, changes or {})
    given = {"params": bigram_params(), "old": old_text(), "quiet": True} | given
    return adapt(bigram(), given.pop("params"), stream(documents, settings), given.pop("old"), settings, out, **given)


class Kept:
    """Every state that a run has saved, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.states: list[TrainState] = []
        save = Standings.save

        def saved(standings: Standings, number: int, state: TrainState) -> None:
            assert number == len(self.states)
            self.states.append(jax.device_get(state))
            save(standings, number, state)

        monkeypatch.setattr(Standings, "save", saved)

"""What a conversation costs: equal to a sum by hand, and by a model that has not seen it."""

import itertools
import math
from pathlib import Path

import bigram_stream as toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.conversations import POLICIES
from cl_jax.conversations.scoring import Score, chunk_of, target_nats
from cl_jax.text.documents import Document

FLOAT32 = 1e-5  # relative: a sum of some hundred float32 numbers


def by_hand(document: Document, kernel: np.ndarray) -> tuple[float, int]:
    """Nats and bytes of the counted tokens, from the text, by the bigram table."""
    text = [255]
    counted = [False]
    for piece, counts in document.pieces:
        text += piece.encode()
        counted += [counts] * len(piece.encode())
    text, counted = [*text, 255], [*counted, counted[-1]]
    log_p = kernel - np.log(np.exp(kernel).sum(1, keepdims=True))
    pairs = zip(itertools.pairwise(text), counted[1:], strict=True)
    nats = -sum(log_p[pair] for pair, counts in pairs if counts)
    return float(nats), sum(counted) - 1  # the end has no bytes


def test_scores_equal_sums_by_hand(tmp_path: Path) -> None:
    documents = [document for document in toys.talks(11) if len(document.text) < 58]
    done = toys.run(tmp_path, documents, {"policy": POLICIES["frozen"]()})
    kernel = np.asarray(toys.bigram_params()["head"]["kernel"], np.float64)
    scores = [score for line in done.lines for score in line.scores]
    assert len(scores) == len(documents) > 6
    for score, document in zip(scores, documents, strict=True):
        nats, size = by_hand(document, kernel)
        assert score.bytes == size
        np.testing.assert_allclose(score.nats, nats, rtol=FLOAT32)
    np.testing.assert_allclose(Score(math.log(2), 1).bits_per_byte, 1.0)
    assert math.isnan(Score(1.0, 0).bits_per_byte)


def test_a_conversation_is_scored_before_it_is_learned_from(tmp_path: Path) -> None:
    documents = toys.talks(10)
    first = toys.run(tmp_path / "one", documents)
    other = [*documents[:6], toys.talk(17, "xyz"), *documents[7:]]
    second = toys.run(tmp_path / "two", other)
    one, two = ([score.nats for line in done.lines for score in line.scores] for done in (first, second))
    assert one[:6] == two[:6], "a conversation was scored by a model that knew a later one"
    assert one[7] == two[7], "of the same round"
    assert one[6] != two[6] and all(a != b for a, b in zip(one[8:], two[8:], strict=True))
    untaught = [nats for line in first.lines for nats in line.untaught]
    assert untaught[:2] == one[:2] and sum(untaught[2:]) > sum(one[2:]), "it learns"
    frozen = toys.run(tmp_path / "frozen", documents, {"policy": POLICIES["frozen"]()})
    assert [score.nats for line in frozen.lines for score in line.scores] == untaught


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_chunks_and_unused_rows_change_nothing(chunk: int) -> None:
    model, params, rows = toys.bigram(), toys.bigram_params(), toys.old_text().train
    whole = np.asarray(target_nats(model, params, jnp.asarray(rows), len(rows), len(rows)))
    found = np.asarray(jax.jit(target_nats, static_argnums=(0, 4))(model, params, jnp.asarray(rows), 4, chunk))
    assert (whole[:4] > 0).any() and not found[-(-4 // chunk) * chunk :].any()
    np.testing.assert_allclose(found[:4], whole[:4], rtol=FLOAT32)
    assert chunk_of(256, 128) == 16 and chunk_of(150_000, 2048) == 1

"""Conversations as rows: what a model sees of each, and that nothing of them is lost or counted twice."""

import bigram_stream as toys
import jax.numpy as jnp
import numpy as np

from cl_jax.conversations import Conversations
from cl_jax.conversations.scoring import counted_bytes, of_conversations
from cl_jax.conversations.stream import shelves
from cl_jax.text.documents import Document
from cl_jax.text.tokenizer import Bytes
from cl_jax.tokens import read_rows


def windows(stream: Conversations, first: int, at: int) -> list[tuple[bytes, ...]]:
    """Of a conversation, what stands before each of its counted targets in its row, in order, and the target."""
    each = stream.round(first)
    counted, _ = counted_bytes(each.rows)
    found = []
    for row, column in np.argwhere((each.owner == at) & counted):
        segments, ids = each.rows[row, :, 1] // 2, each.rows[row, :, 0]
        same = segments[: column + 1] == segments[column + 1]
        found.append((ids[: column + 1][same].tobytes(), ids[column + 1].tobytes()))
    return found


def test_what_is_seen_of_a_conversation_does_not_depend_on_its_neighbours() -> None:
    documents = toys.talks(12)
    together, alone = toys.stream(documents), Conversations(documents, Bytes(), context=16, longest=60, every=1)
    wide = Conversations(documents, Bytes(), context=16, longest=60, every=12)
    for number in range(12):
        seen = windows(alone, number, 0)
        assert seen and seen == windows(together, number - number % 2, number % 2) == windows(wide, 0, number)


def test_a_conversation_that_fits_in_a_row_is_not_cut() -> None:
    assert shelves([5, 5, 5, 5], 16) == [[0, 1, 2], [3]]  # a row has 17 tokens
    assert shelves([17, 17, 2], 16) == [[0], [1], [2]]
    assert shelves([20, 13, 1, 3], 16) == [[0, 1], [2, 3]]  # 20: a row of 17, then the last of these and 3 more
    assert shelves([33, 2], 16) == [[0], [1]]  # two full rows
    assert shelves([34, 15], 16) == [[0, 1]]  # and 2 tokens in a third


def test_a_row_by_hand() -> None:
    documents = [Document((("ab", True),), ""), Document((("c", True),), "")]
    each = Conversations(documents, Bytes(), context=8, longest=9, every=2).round(0)
    assert each.rows[0, :, 0].tolist() == [255, 97, 98, 255, 255, 99, 255, 0, 0] and each.used == 1
    assert each.owner[0].tolist() == [0, 0, 0, 1, 1, 1, -1, -1]


def test_the_host_counts_as_the_device_does() -> None:
    rows = np.random.default_rng(0).integers(0, 7, (5, 17, 3), np.uint8)  # any marks, also such as no packing makes
    targets = read_rows(jnp.asarray(rows))[1]
    counted, sizes = counted_bytes(rows)
    assert np.array_equal(counted, targets.counted) and np.array_equal(sizes, targets.bytes) and counted.any()


def test_every_reply_byte_counts_once_for_its_conversation() -> None:
    documents = toys.talks(9)
    stream = toys.stream(documents)
    sizes, rounds = [], []
    for first in range(0, 9, 2):
        each = stream.round(first)
        assert each.rows.shape == (stream.most_rows, 17, 3) and each.rows.dtype == np.uint8
        assert not each.rows[each.used :].any() and (each.owner[each.used :] == -1).all()
        rounds.append(each.number)
        sizes += [score.bytes for score in of_conversations(np.zeros(each.owner.shape), each)]
    assert rounds == [2, 2, 2, 2, 1]
    assert sizes == [document.counted_size for document in documents]


def test_the_bound_on_rows_is_met_and_no_lower_than_needed() -> None:
    long = Document((("x" * 500, True),), "")
    stream = Conversations([long] * 3, Bytes(), context=16, longest=65, every=3)
    each = stream.round(0)
    assert stream.most_rows == each.used == 12  # 64 targets each
    assert each.cut == [502 - 65] * 3


def test_a_cut_conversation_loses_its_end_alone() -> None:
    document = Document((("ab", False), ("cd" * 40, True)), "")
    stream = Conversations([document], Bytes(), context=16, longest=21, every=1)
    each = stream.round(0)
    assert each.cut == [84 - 21]
    assert of_conversations(np.zeros(each.owner.shape), each)[0].bytes == 18  # 21 less the start and "ab"
    nothing = Conversations([document], Bytes(), context=16, longest=3, every=1).round(0)
    assert nothing.used == 0 and nothing.cut == [81]  # only what is not counted is left


def test_the_digest_is_of_what_is_shown() -> None:
    documents = toys.talks(4)
    stream = toys.stream(documents)
    assert stream.sha256(0, 2) == stream.round(0).sha256 != stream.round(2).sha256
    asked = Document(((documents[1].text, True),), "")  # the same text, all of it counted
    assert toys.stream([documents[0], asked]).sha256(0, 2) != stream.sha256(0, 2)
    longer = [Document((*each.pieces, ("x" * 80, True)), "") for each in documents]
    longer_still = [Document((*each.pieces, ("x" * 90, True)), "") for each in documents]
    assert toys.stream(longer).sha256(0, 2) == toys.stream(longer_still).sha256(0, 2)  # cut before they differ

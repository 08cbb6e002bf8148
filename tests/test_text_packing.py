"""Documents to rows: every counted token is a target once, from its own document, and bytes sum exactly."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import tokens
from cl_jax.errors import UserError
from cl_jax.text import tokenizer
from cl_jax.text.documents import Document
from cl_jax.text.packing import Encoded, encode, pack
from cl_jax.text.tokenizer import Bytes, FromFile, Tokenizer

ALPHABET = "ab .\n\t éß日本語€😀👩‍🚀🇩🇪e\u0301\u00a0\u200d\0"
PIECES = ["", "a", "hello world", " the cat\n", "日本", "😀", "  ", "<|endoftext|>", "</s>", "\n\n", "ÿ"]


def random_text(rng: random.Random, length: int) -> str:
    return "".join(rng.choice(PIECES) if rng.random() < 0.3 else rng.choice(ALPHABET) for _ in range(length))


def random_document(rng: random.Random, longest: int) -> Document:
    pieces = [(random_text(rng, rng.randint(1, longest)), rng.random() < 0.6) for _ in range(rng.randint(1, 4))]
    return Document((*pieces, ("end", rng.random() < 0.5)), "")


def targets(rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(input, target, bytes) of each target that counts, read from the rows one by one."""
    for row in rows.tolist():
        for (before, mark_before, _), (token, mark, size) in itertools.pairwise(row):
            if mark % 2 and mark // 2 == mark_before // 2 and mark // 2 > 0:
                yield before, token, size


def expected(documents: Iterable[Encoded]) -> Iterator[tuple[int, int, int]]:
    for ids, counted, sizes in documents:
        for at in range(1, len(ids)):
            if counted[at]:
                yield int(ids[at - 1]), int(ids[at]), int(sizes[at])


@dataclasses.dataclass
class Bare:
    """Bytes, as a tokenizer without special tokens, or without one of them."""

    start: int | None = None
    end: int | None = None
    name = sha256 = "bare"
    num_tokens = 300
    encode = Bytes.encode
    decode = Bytes.decode


@pytest.mark.parametrize("to_ids", [Bytes(), Bare(), Bare(start=299), Bare(end=298)], ids=["bytes", "bare", "s", "e"])
@pytest.mark.parametrize("context", [1, 2, 7, 64])
@pytest.mark.parametrize("longest", [3, 40])
def test_every_counted_token_is_a_target_once(to_ids: Tokenizer, context: int, longest: int) -> None:
    rng = random.Random(f"{context} {longest}")
    documents = [random_document(rng, longest) for _ in range(60)]
    encoded = [encode(document, to_ids) for document in documents]
    rows = pack(encoded, context, to_ids.num_tokens)
    assert rows.shape[1:] == (context + 1, 3) and rows.dtype == (np.uint8 if to_ids.num_tokens == 256 else np.uint16)
    assert list(targets(rows)) == list(expected(encoded))
    assert not any(document.counted[0] or document.sizes[0] for document in encoded)
    # What is lost: without a start token nothing predicts a document's first.
    lost = [next(counted for text, counted in document.pieces if text) for document in documents]
    counted = sum(document.counted_size for document in documents)
    assert sum(size for _, _, size in targets(rows)) == counted - (sum(lost) if to_ids.start is None else 0)
    assert rows[..., 2].sum(dtype=np.int64) == sum(size for _, _, size in targets(rows))


def test_no_target_is_predicted_across_documents() -> None:
    """Ids number all tokens of all documents, so that a row tells which document each of its segments is of."""
    rng, encoded, first = random.Random(0), [], 0
    for number in range(400):
        length = rng.choice([1, 2, 3, 5, 30, 100])
        flags = np.array([False] + [rng.random() < 0.5 for _ in range(length - 1)])
        ids = np.arange(first, first + length, dtype=np.int32)
        encoded.append(Encoded(ids, flags, flags.astype(np.int32) * (number % 5)))
        first += length
    starts = np.array([document.ids[0] for document in encoded])
    rows = pack(encoded, 16, first)
    assert rows.dtype == np.uint16
    for row in rows.astype(int):
        ids, marks = row[:, 0], row[:, 1]
        segments = marks // 2
        used = segments[segments > 0]
        assert (np.diff(used) >= 0).all() and set(used) == set(range(1, used.max() + 1))
        assert (segments[: len(used)] > 0).all() and not row[len(used) :].any()
        for segment in range(1, used.max() + 1):
            mine = ids[segments == segment]
            assert len(mine) > 1 and (np.diff(mine) == 1).all()
            assert len(set(np.searchsorted(starts, mine, side="right"))) == 1
    assert list(targets(rows)) == list(expected(encoded))


def test_rows_by_hand() -> None:
    one = Document((("ab", False), ("cd", True)), "")
    two = Document((("é", True), ("f", False)), "")
    rows = pack([encode(one, Bytes()), encode(two, Bytes())], 4, 256)
    a, b, c, d, f = b"abcdf"
    assert rows.tolist() == [
        [[255, 2, 0], [a, 2, 0], [b, 2, 0], [c, 3, 1], [d, 3, 1]],
        [[d, 2, 0], [255, 3, 0], [255, 4, 0], [0xC3, 5, 1], [0xA9, 5, 1]],
        # The third row would begin with 0xA9 again and has no counted target: it is left out.
    ]
    assert f not in rows[..., 0]


def test_what_a_loss_reads_are_these_targets() -> None:
    rng = random.Random(3)
    encoded = [encode(random_document(rng, 20), Bytes()) for _ in range(20)]
    rows = pack(encoded, 32, 256)
    inputs, outputs = tokens.read_rows(jnp.asarray(rows))
    counted = np.asarray(outputs.counted) > 0
    found = [np.asarray(part)[counted].tolist() for part in (inputs.ids, outputs.ids, outputs.bytes)]
    assert list(zip(*found, strict=True)) == list(expected(encoded))


def test_at_most_127_documents_share_a_row() -> None:
    encoded = [encode(Document((("a", True),), ""), Bytes()) for _ in range(300)]
    rows = pack(encoded, 1000, 256)
    assert [row[:, 1].max() // 2 for row in rows] == [127, 127, 46] and rows.dtype == np.uint8
    assert list(targets(rows)) == list(expected(encoded))


def test_nothing_to_pack() -> None:
    assert pack([], 8, 256).shape == (0, 9, 3)
    assert pack([encode(Document((("a", False),), ""), Bytes())], 8, 256).shape == (0, 9, 3)


def test_the_closing_token_counts_as_the_last_piece_does() -> None:
    for last in (True, False):
        found = encode(Document((("a", not last), ("b", last)), ""), Bytes())
        assert found.ids.tolist() == [255, *b"ab", 255] and found.sizes.tolist() == [0, not last, last, 0]
        assert found.counted.tolist() == [False, not last, last, last]


def test_a_token_of_very_many_bytes_widens_the_rows() -> None:
    long = Encoded(np.array([0, 1]), np.array([False, True]), np.array([0, 300]))
    assert pack([long], 4, 256).dtype == np.uint16 and list(targets(pack([long], 4, 256))) == [(0, 1, 300)]
    assert pack([long], 4, 100_000).dtype == np.int32


def test_bytes_there_and_back() -> None:
    rng = random.Random(1)
    for _ in range(100):
        text = random_text(rng, 20)
        ids, sizes = Bytes().encode(text)
        assert bytes(ids.tolist()) == text.encode() and (sizes == 1).all()
        assert Bytes().decode([255, *ids.tolist(), 255]) == text
    assert Bytes().decode(b"\xc3") == "\ufffd"


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes a small tokenizer.json of a kind, made by the library itself."""
    library = pytest.importorskip("tokenizers", reason="the library 'tokenizers' is not installed")
    folder = tmp_path_factory.mktemp("tokenizers")

    def byte_level(special: list[str], **settings: Any) -> Any:
        made = library.Tokenizer(library.models.BPE())
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=settings.get("prefix", False))
        made.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, show_progress=False,
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        made.train_from_iterator(["hello world the cat\n\n", "日本語 😀😀 ß é", "  the the"] * 20, trainer)
        made.post_processor = library.processors.ByteLevel(trim_offsets=True)
        return made

    def pieces(special: list[str]) -> Any:
        """As the sentence pieces of the Llama family: a leading "▁", and bytes for what is not in the vocabulary."""
        names = ["<unk>", *special, "▁", *"abehlortw.", *(f"<0x{byte:02X}>" for byte in range(256)), "he", "▁the"]
        merges = [("h", "e")]
        made = library.Tokenizer(
            library.models.BPE({name: number for number, name in enumerate(dict.fromkeys(names))}, merges,
                               byte_fallback=True, unk_token="<unk>", fuse_unk=True)
        )  # fmt: skip
        made.add_special_tokens(special)
        kinds = library.normalizers
        made.normalizer = kinds.Sequence([kinds.Prepend("▁"), kinds.Replace(" ", "▁")])
        made.post_processor = library.processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
        return made

    def words() -> Any:
        made = library.Tokenizer(library.models.WordPiece({"[UNK]": 0, "hello": 1, "a": 2}, unk_token="[UNK]"))
        made.normalizer = library.normalizers.BertNormalizer()
        made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        return made

    def write(kind: str, special: tuple[str, ...] = (), cut: bool = False, **settings: Any) -> Path:
        made = {"bytes": lambda: byte_level(list(special), **settings), "pieces": lambda: pieces(list(special)),
                "words": words}[kind]()  # fmt: skip
        if cut:
            made.enable_truncation(4)
            made.enable_padding(length=9)
        path = folder / f"{kind}-{len(list(folder.iterdir()))}" / "tokenizer.json"
        path.parent.mkdir()
        made.save(str(path))
        return path

    return write


KINDS: dict[str, dict[str, Any]] = {
    "byte-level": {"kind": "bytes", "special": ("<|endoftext|>",)},
    "byte-level, cut": {"kind": "bytes", "special": ("<|endoftext|>",), "cut": True},
    "byte-level, prefix": {"kind": "bytes", "special": (), "prefix": True},
    "pieces": {"kind": "pieces", "special": ("<s>", "</s>")},
    "words": {"kind": "words"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_tokens_sum_to_those_of_the_text(make: Make, kind: str) -> None:
    to_ids, rng = FromFile(make(**KINDS[kind]), kind), random.Random(kind)
    for length in [1, 2, 3, 10, 100] * 20:
        text = random_text(rng, length)
        ids, sizes = to_ids.encode(text)
        assert len(ids) == len(sizes) and ids.dtype == sizes.dtype == np.int32
        assert sizes.sum() == (len(text.encode()) if len(ids) else 0) and (sizes >= 0).all()
        assert (ids < to_ids.num_tokens).all()
        if kind in ("byte-level", "byte-level, cut"):
            assert len(ids) or not text
            assert to_ids.end not in ids and to_ids.decode([to_ids.end, *ids, to_ids.end]) == text


def test_a_byte_level_token_stands_for_whole_characters(make: Make) -> None:
    """Against the library's own spelling of tokens: the bytes up to a token end where its last whole character does."""
    path = make(**KINDS["byte-level"])
    to_ids, rng = FromFile(path, ""), random.Random(5)
    library = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
    for _ in range(100):
        text = random_text(rng, 12)
        ids, sizes = to_ids.encode(text)
        spelled = np.cumsum([len(library.id_to_token(one)) for one in ids])  # a letter a byte
        whole = [sum(len(c.encode()) for c in text.encode()[:end].decode(errors="ignore")) for end in spelled]
        assert np.cumsum(sizes).tolist() == whole
    assert to_ids.encode("")[0].shape == (0,)


def test_bytes_of_tokens_whose_starts_go_back() -> None:
    """A token stands for what lies between its start and the least of those after it."""
    text = "aé😀b"  # of 1, 2, 4 and 1 bytes
    for starts, sizes in [([0, 1, 2, 3], [1, 2, 4, 1]), ([0, 2, 1, 3], [1, 0, 6, 1]), ([1, 4, 4], [8, 0, 0])]:
        assert tokenizer._sizes(text, starts).tolist() == sizes


@pytest.mark.parametrize("kind", ["byte-level", "byte-level, prefix", "pieces"])
@pytest.mark.parametrize("context", [5, 32])
def test_laws_of_rows_with_a_tokenizer(make: Make, kind: str, context: int) -> None:
    to_ids, rng = FromFile(make(**KINDS[kind]), kind), random.Random(kind)
    documents = [random_document(rng, 20) for _ in range(40)]
    encoded = [encode(document, to_ids) for document in documents]
    rows = pack(encoded, context, to_ids.num_tokens)
    assert list(targets(rows)) == list(expected(encoded))
    if to_ids.start is not None:
        counted = sum(document.counted_size for document in documents)
        assert sum(size for _, _, size in targets(rows)) == counted == rows[..., 2].sum(dtype=np.int64)


def test_a_token_is_counted_where_any_of_its_bytes_are(make: Make) -> None:
    to_ids = FromFile(make(**KINDS["byte-level"]), "")
    text = "x 😀 the"
    ids, sizes = to_ids.encode(text)
    for cut in range(len(text) + 1):
        found = encode(Document(((text[:cut], False), (text[cut:], True)), ""), to_ids)
        flags = [False] * len(text[:cut].encode()) + [True] * len(text[cut:].encode())
        ends = np.cumsum(sizes)
        for at, (end, size) in enumerate(zip(ends, sizes, strict=True)):
            of_token = flags[end - size : end] or flags[end : end + 1]
            assert found.counted[1 + at] == any(of_token) and found.sizes[1 + at] == sum(flags[end - size : end])
        assert found.ids.tolist() == [to_ids.end, *ids, to_ids.end] and found.counted[-1] == flags[-1]


def test_special_tokens_are_found_or_named(make: Make) -> None:
    def start_end(special: tuple[str, ...], **named: str) -> tuple[Any, Any]:
        path = make("pieces", special) if "<s>" in special else make("bytes", special)
        found, ids = FromFile(path, "", **named), {None: None}
        library = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
        ids |= {library.token_to_id(one): one for one in special}
        return ids[found.start], ids[found.end]

    assert start_end(("<s>", "</s>")) == ("<s>", "</s>")
    assert start_end(("<|endoftext|>",)) == ("<|endoftext|>", "<|endoftext|>")
    assert start_end(("<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>")) == ("<|begin_of_text|>", "<|end_of_text|>")
    assert start_end(("<|x|>",)) == (None, None)
    assert start_end(("<|x|>", "<|y|>"), start="<|x|>", end="<|y|>") == ("<|x|>", "<|y|>")
    assert start_end(("<s>", "</s>"), start="none") == (None, "</s>")
    assert start_end(("<|endoftext|>",), end="none") == (None, None)
    with pytest.raises(UserError, match=r"has no token '<|endoftxt|>'.*Did you mean '<\|endoftext\|>'"):
        start_end(("<|endoftext|>",), end="<|endoftxt|>")


def test_a_tokenizer_is_found_by_file_or_folder(make: Make) -> None:
    path = make("bytes", ("</s>",))
    found = tokenizer.load("tokenizer.json", path.parent)
    assert found.sha256 == tokenizer.load(str(path.parent)).sha256 != Bytes().sha256
    library = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
    assert found.num_tokens == library.get_vocab_size() and found.name == "tokenizer.json"
    assert isinstance(tokenizer.load("bytes"), Bytes)


def test_broken_tokenizers_are_refused(make: Make, tmp_path: Path) -> None:
    good, bad = make("bytes").read_text(), tmp_path / "tokenizer.json"
    contents = ["", "{}", "[" * 100_000, good[:2000], good.replace('"BPE"', '"XPE"'), "\0", '{"model": {"vocab": 3}}']
    for content in contents:
        bad.write_text(content)
        with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer.json: .+; give that of a model"):
            tokenizer.load(str(bad))
    bad.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"is not a tokenizer.json: .*codec"):
        tokenizer.load(str(bad))


def test_tokenizers_that_no_model_can_use_are_refused(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers", reason="the library 'tokenizers' is not installed")
    path = tmp_path / "tokenizer.json"
    for vocabulary, message in [({}, "has ids up to -1, expected 0 to"), ({"a": 2**31}, "has ids up to 2147483648")]:
        library.Tokenizer(library.models.WordLevel(vocabulary, unk_token="a")).save(str(path))
        with pytest.raises(UserError, match=message):
            tokenizer.load(str(path))
    library.Tokenizer(library.models.WordPiece({"a": 0}, unk_token="[UNK]")).save(str(path))
    with pytest.raises(UserError, match=r"cannot encode 'b': .*; give another"):
        tokenizer.load(str(path)).encode("b")


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is not there; tokenizer is 'bytes' or a file's path"):
        tokenizer.load("nothing", tmp_path)
    with pytest.raises(UserError, match=r"start and end name tokens of a tokenizer.json"):
        tokenizer.load("bytes", start="<s>")


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(
        UserError, match="needs the library 'tokenizers', which is not installed: pip install tokenizers"
    ):
        tokenizer.load(str(tmp_path))

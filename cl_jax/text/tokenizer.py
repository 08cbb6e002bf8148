"""Text to ids and back: bytes by default, or the `tokenizers` library with a `tokenizer.json`.

A tokenizer also tells how many UTF-8 bytes of the text each token stands for. They sum to the text's bytes exactly, so
that bits per byte compare between tokenizers.
"""

import hashlib
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cl_jax.errors import UserError, did_you_mean

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]", "<|im_end|>")
STARTS = ("<|begin_of_text|>", "<s>", "<bos>", "<|bos|>", "<|startoftext|>", "[BOS]", "[CLS]")
LARGEST = 256 << 20  # bytes of a tokenizer.json
MOST_TOKENS = 1 << 24  # a model has an embedding of each
NONE = "none"  # as the name of a start or end token


class Tokenizer(Protocol):
    """What text goes through on its way to a model."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str:
        """Of what defines it: equal digests, equal ids."""
        ...

    @property
    def num_tokens(self) -> int:
        """Ids lie below it."""
        ...

    @property
    def start(self) -> int | None:
        """The id to put before a document, from which its first token is predicted."""
        ...

    @property
    def end(self) -> int | None:
        """The id to put after a document."""
        ...

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n] and the bytes of the text that each stands for, int32 [n], in its order, summing to all.

        A character that spans several tokens goes to the last of them: they have 0 bytes before it. No token of it
        is special, whatever the text says. Both are empty for a text of which the tokenizer keeps nothing.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out; what is no valid UTF-8 becomes U+FFFD."""
        ...


class Bytes:
    """A token is a byte of UTF-8, and 255, which never occurs in it, stands before and after a document."""

    name = "bytes"
    sha256 = hashlib.sha256(b"bytes of UTF-8; 255 before and after a document").hexdigest()
    num_tokens = 256
    start = 255
    end = 255

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        return ids, np.ones_like(ids)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(one for one in ids if 0 <= one < 255).decode(errors="replace")


class FromFile:
    """A `tokenizer.json` of the `tokenizers` library, without the special tokens, padding and cuts that it asks for.

    What it normalises away counts to the bytes of the token before. Where it knows no token for a text ("<unk>"), bits
    per byte are lower than those of the text: byte-level and byte-fallback tokenizers know all.

    Args:
        path: the file.
        name: what to call it.
        start: the token before a document; None: the first of `STARTS` that it has, else as `end`; "none": none.
        end: the token after a document; None: the first of `ENDS` that it has; "none": none.

    Raises:
        UserError: the library is not installed, the file is not there or not a tokenizer's, or has no such token.
    """

    def __init__(self, path: Path, name: str, start: str | None = None, end: str | None = None):
        content = _content(path)
        self.name, self.sha256 = name, hashlib.sha256(content).hexdigest()
        self._tokenizer = tokenizer = _parsed(content, path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # a text that says "</s>" says it in letters
        tokenizer.post_processor = None  # it adds tokens, and cuts white space from offsets
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.num_tokens = 1 + max(vocabulary.values(), default=-1)
        if not 0 < self.num_tokens <= MOST_TOKENS:
            raise UserError(
                f"{path} has ids up to {self.num_tokens - 1}, expected 0 to {MOST_TOKENS - 1}; give the tokenizer.json "
                "of a model."
            )
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        self.end = _special(end, vocabulary, [one for one in ENDS if one in added], path)
        starts = [one for one in STARTS if one in added]
        self.start = self.end if start is None and not starts else _special(start, vocabulary, starts, path)

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # as where it needs a token for the unknown and has none
            raise UserError(f"tokenizer {self.name} cannot encode {text[:20]!r}: {error}; give another.") from error
        ids = np.asarray(found.ids, np.int32)
        if not len(ids):
            return ids, ids
        return ids, _sizes(text, [first for first, _ in found.offsets])

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(one) for one in ids], skip_special_tokens=True)


def load(name: str, folder: Path | None = None, start: str | None = None, end: str | None = None) -> Tokenizer:
    """A tokenizer by name: `bytes`, or the path of a tokenizer.json or of the folder that holds it.

    Args:
        name: as above.
        folder: what a relative path is relative to (default: where the process runs).
        start, end: see `FromFile`; bytes have their own.

    Raises:
        UserError: see `FromFile`.
    """
    if name == "bytes":
        if start is not None or end is not None:
            raise UserError(
                "start and end name tokens of a tokenizer.json; the tokenizer 'bytes' has its own: leave out."
            )
        return Bytes()
    path = (folder or Path()) / Path(name).expanduser()
    return FromFile(path / "tokenizer.json" if path.is_dir() else path, name, start, end)


def _sizes(text: str, starts: Sequence[int]) -> np.ndarray:
    """int32 [n], UTF-8 bytes between the starts of n tokens, given in characters; the first begins with the text."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    before = np.concatenate([[0], np.cumsum(widths)])
    # Backwards, because an offset before that of an earlier token (of a character in parts) begins no later.
    begins = np.minimum.accumulate(np.asarray(starts, np.int64)[::-1])[::-1].clip(0, len(points))
    begins[0] = 0
    return np.diff(before[np.append(begins, len(points))]).astype(np.int32)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(
            f"{path} is {'no file' if path.exists() else 'not there'}; tokenizer is 'bytes' or a file's path."
        )
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check it.") from error
    if len(content) > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST >> 20} MiB; give the tokenizer.json of a model.")
    return content


def _parsed(content: bytes, path: Path) -> Any:
    try:
        tokenizers: Any = importlib.import_module("tokenizers")
    except ImportError as error:
        raise UserError(
            f"{path} needs the library 'tokenizers', which is not installed: pip install tokenizers"
        ) from error
    try:
        return tokenizers.Tokenizer.from_str(content.decode())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library is Rust, whose panics are no Exception
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a tokenizer.json: {reason}; give that of a model.") from error


def _special(name: str | None, vocabulary: dict[str, int], found: list[str], path: Path) -> int | None:
    if name is None:
        return vocabulary[found[0]] if found else None
    if name == NONE:
        return None
    if name not in vocabulary:
        special = [one for one in vocabulary if one[:1] in "<[" and one[-1:] in ">]"]
        raise UserError(f"{path} has no token {name!r}; give one of its own, or {NONE!r}.{did_you_mean(name, special)}")
    return vocabulary[name]

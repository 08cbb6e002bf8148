"""Documents from files and folders: plain text here, records (JSON, CSV) in `cl_jax.text.records`.

The files are untrusted: links are not followed out of a folder, no file is read beyond a limit, nothing is executed.
"""

import dataclasses
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from cl_jax.errors import UserError, did_you_mean

PLAIN = (".txt", ".md", ".py")
RECORDS = (".jsonl", ".json", ".csv")
LARGEST = 64 << 20  # bytes of a file; parsed JSON takes many times that
MOST = 512 << 20  # bytes of all files of a folder
_COLLECTION = 16 << 10  # characters from which a .txt is taken for many documents
_PART = 4 << 10  # characters of each of these, or little more


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """Text in pieces, each with whether the loss counts how well it is predicted."""

    pieces: tuple[tuple[str, bool], ...]
    origin: str  # file, and place in it

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    @property
    def size(self) -> int:
        """UTF-8 bytes."""
        return sum(len(text.encode()) for text, _ in self.pieces)

    @property
    def counted_size(self) -> int:
        return sum(len(text.encode()) for text, counted in self.pieces if counted)


class Reading(NamedTuple):
    documents: list[Document]
    left_out: list[str]  # what was not read, and why


class PassedOver(Exception):
    """A file that is not text, or not documents: an error where it was asked for, else left out of its folder."""


def read(path: Path) -> Reading:
    """The documents of a file, or of all files of a folder and its folders, in order of their paths.

    .txt: a document, or where it is longer than 16 kB several of about 4 kB, cut at blank lines (at line ends where a
    paragraph is that long itself). .py, .md: a document each. .jsonl, .json, .csv: see `cl_jax.text.records`. Line ends
    become "\\n". Of a folder, hidden files, other suffixes, and links that lead out of it are not read; files that are
    not UTF-8 and documents without anything to predict are told in `left_out`.

    Raises:
        UserError: nothing to read there, a malformed or too large file.
    """
    if path.is_dir():
        reading = _read_folder(path)
    elif path.is_file():
        try:
            reading = Reading(_read_file(path, path.name), [])
        except PassedOver as error:
            raise UserError(f"{path} {error}") from error
    else:
        raise UserError(f"{path} is {'no file or folder' if path.exists() else 'not there'}; give a file or folder.")
    counting = [document for document in reading.documents if document.counted_size]
    nothing = [f"{document.origin}: nothing to predict" for document in reading.documents if not document.counted_size]
    if not counting:
        why = "; ".join([*reading.left_out, *nothing][:3]) or "there are none"
        raise UserError(f"{path} holds no documents ({why}); files are read by suffix: {', '.join(PLAIN + RECORDS)}.")
    return Reading(counting, reading.left_out + nothing)


def _read_folder(folder: Path) -> Reading:
    documents, left_out, size = [], [], 0
    for path in files(folder):
        size += path.stat().st_size
        if size > MOST:
            raise UserError(f"the files in {folder} are larger than {MOST >> 20} MiB together; give a smaller folder.")
        origin = path.relative_to(folder).as_posix()
        try:
            documents += _read_file(path, origin)
        except PassedOver as error:
            left_out.append(f"{origin} {error}")
    return Reading(documents, left_out)


def files(
    folder: Path, suffixes: Collection[str] = PLAIN + RECORDS, without: Collection[str] = ("__pycache__",)
) -> list[Path]:
    """Files of a folder and its folders by suffix, in order of their paths.

    None is hidden, in a folder of a name in `without`, or reached by a link to outside of the folder.
    """
    root, found = folder.resolve(), []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in without]
        for name in names:
            path = Path(place, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes or not path.is_file():
                continue
            if not path.is_symlink() or path.resolve().is_relative_to(root):
                found.append(path)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}; check it, or leave it out.") from error


def read_text(path: Path) -> str:
    """A file's text, with "\\n" at line ends.

    Raises:
        PassedOver: it is not UTF-8.
        UserError: it is larger than `LARGEST`, or the system refuses it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check it, or leave it out.") from error
    if len(content) > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST >> 20} MiB; split it into several files.")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise PassedOver(f"is not UTF-8 text (byte {error.start})") from error


def _read_file(path: Path, origin: str) -> list[Document]:
    suffix = path.suffix.lower()
    if suffix in RECORDS:
        from cl_jax.text import records

        return records.read(path, origin, suffix)
    if suffix not in PLAIN:
        hint = did_you_mean(suffix, PLAIN + RECORDS)
        raise PassedOver(f"is of no known kind; files are read by suffix: {', '.join(PLAIN + RECORDS)}.{hint}")
    return plain(read_text(path), origin, collection=suffix == ".txt")


def plain(text: str, origin: str, *, collection: bool) -> list[Document]:
    """Documents of plain text, all of it counted; one, or where a collection is long, its parts."""
    parts = split_up(text) if collection and len(text) > _COLLECTION else [text]
    return [
        Document(((part, True),), f"{origin}#{number}" if len(parts) > 1 else origin)
        for number, part in enumerate(parts, 1)
    ]


def split_up(text: str, cut: str = r"\n[ \t]*\n\s*") -> list[str]:
    """Parts that join to the text again, each up to the first `cut` that makes it long enough for a document."""
    parts, start = [], 0
    for end in [*(match.end() for match in re.finditer(cut, text)), len(text)]:
        if end - start >= _PART or end == len(text):
            part = text[start:end]
            parts += [part] if len(part) <= _COLLECTION or cut == "\n" else split_up(part, "\n")
            start = end
    return [part for part in parts if part]

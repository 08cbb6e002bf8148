"""What a step in a store consists of, in an object of its own beside it: path, bytes and sha256 of every file.

It is put last, and removed first, so that a step counts while its manifest is there. Whoever reads it believes nothing:
it may be of a torn upload, of other software, or made by somebody else.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SCHEMA = 1
MOST_BYTES, MOST_FILES = 2**24, 100_000
_PART = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9_.=+@,%~-]{1,200}"
_PATH = re.compile(rf"{_PART}(?:/{_PART}){{0,15}}")


class Refused(ValueError):
    """A step is not taken; the message says why."""


class File(NamedTuple):
    """One of a step's."""

    path: str  # below the step, with slashes
    size: int  # bytes
    sha256: str


def of_file(root: Path, file: Path) -> File:
    """A local one. Raises OSError: it cannot be read."""
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        return File(file.relative_to(root).as_posix(), opened.tell(), sha256)


def content(files: Iterable[File]) -> bytes:
    """What `parsed` reads."""
    held = [{"path": file.path, "bytes": file.size, "sha256": file.sha256} for file in files]
    return json.dumps({"schema": SCHEMA, "files": held}, indent=0).encode()


def parsed(content: bytes | None) -> list[File]:
    """The files of a manifest: relative paths without `..`, none twice, none inside another.

    Raises:
        Refused: it is none.
    """
    try:
        held = json.loads(content or b"")
        if held["schema"] != SCHEMA or not 0 < len(held["files"]) <= MOST_FILES:
            raise Refused("its manifest is of another version, or of no files")
        files = [File(each["path"], each["bytes"], each["sha256"]) for each in held["files"]]
    except Refused:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refused("its manifest is broken") from error
    for path, size, sha256 in files:
        if not isinstance(path, str) or _PATH.fullmatch(path) is None:
            raise Refused(f"its manifest names the file {path!r:.80}")
        if type(size) is not int or not 0 <= size < 2**62:
            raise Refused(f"its manifest gives {path} the size {size!r:.40}")
        if not isinstance(sha256, str) or re.fullmatch("[0-9a-f]{64}", sha256) is None:
            raise Refused(f"its manifest gives {path} no sha256")
    paths = {file.path for file in files}
    inside = any(path.rsplit("/", up)[0] in paths for path in paths for up in range(1, path.count("/") + 1))
    if len(paths) < len(files) or inside:
        raise Refused("its manifest names a file twice, or one inside another")
    return files

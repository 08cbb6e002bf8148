"""Domains by name: kinds of text that come with Python, lie in a data folder, are made, or are a user's own.

A data folder holds a folder for each set, with its files as published: banking77/train.csv and test.csv (Casanueva et
al. 2020, arXiv 2003.04807), sgd/ with dialogues_*.json (Rastogi et al. 2019, arXiv 1909.05855),
text/tinyshakespeare.txt (Karpathy's char-rnn), text/wikitext-2.*.txt (Merity et al. 2016, arXiv 1609.07843),
gsm8k/train.jsonl and test.jsonl (Cobbe et al. 2021, arXiv 2110.14168). The splits of these files are not kept: see
`cl_jax.text.source`.
"""

import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

from cl_jax import errors
from cl_jax.errors import UserError
from cl_jax.text import documents, made
from cl_jax.text.documents import Document, Reading

KNOWN = {
    "code": "the standard library of the Python that runs this, files up to 32 kB",
    "support": "banking77 and dialogues",
    "banking77": "questions of a bank's customers, each with its intent",
    "dialogues": "Schema-Guided Dialogue: customers and an assistant, whose replies are counted",
    "prose": "shakespeare and wikitext",
    "shakespeare": "plays",
    "wikitext": "articles of WikiText-2",
    "maths": "GSM8K: word problems, of which the answers are counted",
    "made_support": "made conversations with support, no files",
    "made_prose": "made tales, no files",
}
_FILES = {  # of a set: its folder in a data folder, patterns of its files
    "banking77": ("banking77", ("train.csv", "test.csv")),
    "dialogues": ("sgd", ("dialogues_*.json", "*/dialogues_*.json")),
    "shakespeare": ("text", ("tinyshakespeare.txt",)),
    "wikitext": ("text", ("wikitext-2.*.txt",)),
    "maths": ("gsm8k", ("train.jsonl", "test.jsonl")),
}
_UNIONS = {"support": ("banking77", "dialogues"), "prose": ("shakespeare", "wikitext")}
_MADE: dict[str, Callable[[int], list[Document]]] = {"made_support": made.support, "made_prose": made.prose}
_NO_CODE = {  # folders of the standard library with packages of others, tests, tables or texts
    "site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__", "encodings", "pydoc_data", "_bundled",
}  # fmt: skip
_LONGEST_CODE = 32 << 10  # bytes of a file; one longer would be most of a split


def read(name: str, path: str | None, folder: Path | None, num_bytes: int) -> Reading:
    """The documents of a domain, in an order of its own.

    Args:
        name: one of `KNOWN`, or with `path` any.
        path: a file or folder of the user's own, or `tfds:<name>...`, see `cl_jax.text.tfds`.
        folder: the data folder, or for a single set its own folder; what a relative `path` is relative to.
        num_bytes: how much text to make, for the made ones.

    Raises:
        UserError: an unknown name; files that are not there or malformed.
    """
    if path is not None and path.startswith("tfds:"):
        from cl_jax.text import tfds

        return tfds.read(path.removeprefix("tfds:"), folder)
    if path is not None:
        return documents.read((folder or Path()) / Path(path).expanduser())
    if name == "code":
        return _code()
    if name in _MADE:
        return Reading(_MADE[name](num_bytes), [])
    if name not in KNOWN:
        unknown = errors.unknown("text domain", name, KNOWN)
        raise UserError(f"{unknown} Text of your own: <name>=<file or folder>.")
    readings = [_read_set(one, folder) for one in _UNIONS.get(name, (name,))]
    return Reading([one for each in readings for one in each.documents], [one for each in readings for one in each[1]])


def _read_set(name: str, folder: Path | None) -> Reading:
    inner, patterns = _FILES[name]
    if folder is None:
        raise UserError(f"text domain {name!r} needs a data folder that holds {inner}/{patterns[0]}; give --data-dir.")
    for place in (folder / inner, folder):
        found = sorted({path for pattern in patterns for path in place.glob(pattern) if path.is_file()})
        if found:
            break
    else:
        raise UserError(f"text domain {name!r}: {folder} holds neither {inner}/{patterns[0]} nor {patterns[0]}.")
    if name == "wikitext":
        return Reading([article for path in found for article in _articles(path)], [])
    readings = [documents.read(path) for path in found]
    return Reading([one for each in readings for one in each.documents], [one for each in readings for one in each[1]])


def _articles(path: Path) -> list[Document]:
    try:
        text = documents.read_text(path)
    except documents.PassedOver as error:
        raise UserError(f"{path} {error}") from error
    titles = [match.start() for match in re.finditer(r"^ = [^=\n]+ = $", text, re.MULTILINE)]
    parts = [text[start:end] for start, end in zip([0, *titles], [*titles, len(text)], strict=True)]
    return [Document(((part, True),), f"{path.name}#{number}") for number, part in enumerate(parts) if part.strip()]


def _code() -> Reading:
    library = Path(sysconfig.get_path("stdlib"))
    found, left_out = [], []
    for path in documents.files(library, (".py",), _NO_CODE):
        origin = path.relative_to(library)
        if origin.name.startswith("_sysconfigdata"):  # written when Python is built, with the paths of that machine
            continue
        if path.stat().st_size > _LONGEST_CODE:
            continue
        try:
            found += documents.plain(documents.read_text(path), origin.as_posix(), collection=False)
        except documents.PassedOver as error:
            left_out.append(f"{origin.as_posix()} {error}")
    counting = [document for document in found if document.counted_size]
    if not counting:
        raise UserError(f"this Python comes without the source of its library ({library}); give code=<folder> instead.")
    return Reading(counting, left_out)

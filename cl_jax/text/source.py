"""A text source by name: domains read, split by document, turned to tokens and packed.

`text:<domain>,<domain>...?<option>=<value>&<option>=<value>...`, as `text:code,support,prose?context=256&bytes=200000`.
A domain is a name of `cl_jax.text.domains.KNOWN`, `<name>=<file or folder>` or `<name>=tfds:<set>`, see
`cl_jax.text.tfds`; paths contain no "," and no "?".
"""

import dataclasses
import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from cl_jax.errors import UserError, unknown
from cl_jax.sources import Source
from cl_jax.text import domains, packing, tokenizer
from cl_jax.text.documents import Document
from cl_jax.text.format import Domain, TextFormat

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.1  # share of the documents, of test and of validation
RANGES = {"context": (1, 1 << 17), "bytes": (1, 1 << 30), "heldout": (1, 1 << 30)}
DEFAULTS = {
    "context": "128", "bytes": "1000000", "heldout": str(1 << 30), "tokenizer": "bytes", "start": None, "end": None,
}  # fmt: skip
_TOLD = 10  # files and documents left out that a manifest names

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """A name of a text source, taken apart."""

    domains: tuple[tuple[str, str | None], ...]  # name, path of the user's own text
    context: int
    bytes: int
    heldout: int
    tokenizer: str
    start: str | None
    end: str | None


def load(name: str, folder: Path | None = None) -> Source:
    """Reads text as rows of tokens, see `cl_jax.tokens`; the label of a row is its domain's place in the name.

    Equal documents of a domain are taken once. The SHA-256 of its text decides the split of a document: 10 % test, 10 %
    validation, the rest training. So it is in the same split in whichever domain, beside whatever others. Of a domain
    that has more than `bytes`, each split takes documents in order of another part of the digest, a sample by chance,
    until the next one would exceed its share; test and validation at least one, which training makes up for. Each split
    is packed alone.

    Args:
        name: as above. Options:
            context: tokens that a model sees at once, 128 unless given;
            bytes: of each domain at most so many bytes of UTF-8, counted or not, 1000000 unless given;
            heldout: of each domain about so many bytes of test, and so many of validation, in rows spread evenly over
            all of the split, no bound unless given: what is there is evaluated after every task;
            tokenizer: `bytes`, or the path of a tokenizer.json or its folder;
            start, end: names of tokens to put before and after documents, `none` for none, where a tokenizer.json
            does not tell (see `cl_jax.text.tokenizer`).
        folder: the data folder that named domains are looked up in; what relative paths are relative to.

    Raises:
        UserError: an unknown domain or option; text that is not there, malformed, or too little for three splits.
    """
    spec = parse(name)
    to_ids = tokenizer.load(spec.tokenizer, folder, spec.start, spec.end)
    read = [_domain(one, path, spec, folder, to_ids) for one, path in spec.domains]
    # One dtype for all: a domain with a token of very many bytes may need a wider one.
    dtype = np.result_type(*(rows for _, parts in read for rows in parts))
    rows = [np.concatenate([parts[at] for _, parts in read]).astype(dtype) for at in range(len(SPLITS))]
    labels = [
        np.repeat(np.arange(len(read), dtype=np.int32), [len(parts[at]) for _, parts in read])
        for at in range(len(SPLITS))
    ]
    return Source(
        name=name,
        train_images=rows[0],
        train_labels=labels[0],
        validation_images=rows[1],
        validation_labels=labels[1],
        test_images=rows[2],
        test_labels=labels[2],
        num_classes=len(read),
        pixel_max=1,
        text=TextFormat(
            num_tokens=to_ids.num_tokens,
            context=spec.context,
            domains=tuple(one for one, _ in spec.domains),
            tokenizer=to_ids.name,
            tokenizer_sha256=to_ids.sha256,
            start=to_ids.start,
            end=to_ids.end,
            manifest=tuple(domain for domain, _ in read),
        ),
    )


def manifest(source: Source) -> dict[str, dict[str, Any]]:
    """Of a text source, by domain: documents, bytes, rows of each split, digest of the documents; for JSON."""
    if source.text is None:
        raise UserError(f"data source {source.name!r} is not of text; a manifest is of a source 'text:<domains>'.")
    found = {}
    for domain in source.text.manifest:
        told = dataclasses.asdict(domain)
        found[told.pop("name")] = told | {"rows": dict(zip(SPLITS, domain.rows, strict=True))}
    return found


def parse(name: str) -> Spec:
    """The parts of `text:<domains>[?<options>]`.

    Raises:
        UserError: no or equal domains, an unknown option, a value out of range.
    """
    listed, asked, options = name.removeprefix("text:").partition("?")
    given: dict[str, Any] = dict(DEFAULTS)
    for option in options.split("&") if asked else ():
        key, _, value = option.partition("=")
        if key not in DEFAULTS:
            raise unknown("option of a text source", key, DEFAULTS)
        if not value:
            raise UserError(f"{name!r}: option {key!r} has no value; write {key}=<value>, options parted by '&'.")
        given[key] = value
    for key, (low, high) in RANGES.items():
        if not re.fullmatch("[0-9]{1,10}", given[key]) or not low <= int(given[key]) <= high:
            raise UserError(f"{name!r}: {key} is {given[key]!r}, expected a whole number from {low} to {high}.")
        given[key] = int(given[key])
    chosen = [one.strip().partition("=") for one in listed.split(",")]
    names = [one.strip() for one, _, _ in chosen]
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise UserError(f"{name!r} names {', '.join(twice)} more than once; give each domain a name of its own.")
    for one, equals, path in chosen:
        if not one or (equals and not path.strip()):
            raise UserError(
                f"{name!r} has a domain without a {'path' if one else 'name'}; write text:<domain>,<domain>, each one "
                f"of {', '.join(domains.KNOWN)} or <name>=<file or folder>."
            )
    return Spec(domains=tuple((one.strip(), path.strip() or None) for one, _, path in chosen), **given)


def _domain(
    name: str, path: str | None, spec: Spec, folder: Path | None, to_ids: tokenizer.Tokenizer
) -> tuple[Domain, list[np.ndarray]]:
    found, left_out = domains.read(name, path, folder, spec.bytes)
    if left_out:
        left_out[_TOLD:] = [f"{len(left_out) - _TOLD} more"] if len(left_out) > _TOLD else []
        _LOG.warning("text domain %r leaves out: %s", name, "; ".join(left_out))
    by_digest = {hashlib.sha256(document.text.encode()).digest(): document for document in found}
    splits = _sample(by_digest, spec.bytes)
    taken, digest = [one for documents in splits for one in documents], hashlib.sha256()
    for document in taken:
        digest.update(repr(document.pieces).encode())
    rows = [
        packing.pack((packing.encode(one, to_ids) for one in documents), spec.context, to_ids.num_tokens)
        for documents in splits
    ]
    rows[1:] = [_spread(each, spec.heldout) for each in rows[1:]]
    if empty := [split for split, each in zip(SPLITS, rows, strict=True) if not len(each)]:
        raise UserError(
            f"text domain {name!r} has no rows for {' and '.join(empty)} within bytes={spec.bytes}: of its "
            f"{len(by_digest)} different documents each is by chance for {SPLITS[1]} or {SPLITS[2]}, a tenth each, or "
            "for training; give more documents or more bytes."
        )
    domain = Domain(
        name=name,
        documents=len(taken),
        bytes=sum(document.size for document in taken),
        counted_bytes=sum(document.counted_size for document in taken),
        rows=(len(rows[0]), len(rows[1]), len(rows[2])),
        sha256=digest.hexdigest(),
        left_out=tuple(left_out),
    )
    return domain, rows


def _sample(by_digest: dict[bytes, Document], most: int) -> list[list[Document]]:
    """The documents of each split, in order of their digests: all, or where they are too many bytes a share of each."""
    splits: list[list[Document]] = [[] for _ in SPLITS]
    for digest in sorted(by_digest):
        splits[split_of(digest)].append(by_digest[digest])
    sizes = [np.cumsum([0, *(document.size for document in documents)]) for documents in splits]
    if sum(of_split[-1] for of_split in sizes) <= most:
        return splits
    left = most
    for at in (2, 1, 0):
        share = HELD_OUT * most if at else left
        count = int(np.searchsorted(sizes[at], share, side="right")) - 1
        splits[at] = splits[at][: max(count, 1) if at else max(count, 0)]
        left -= int(sizes[at][len(splits[at])])
    return splits


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Rows [m, L + 1, 3] of about `most` bytes, at even distances; all where there are no more."""
    share = most / max(int(rows[..., 2].sum(dtype=np.int64)), 1)
    if share >= 1:
        return rows
    return rows[np.unique(np.linspace(0, len(rows) - 1, max(1, round(share * len(rows)))).round().astype(int))]


def split_of(digest: bytes) -> int:
    """The split of a document by the end of its digest, because its beginning decides whether it is taken at all."""
    place = int.from_bytes(digest[-8:], "big") / 2**64
    return 2 if place < HELD_OUT else 1 if place < 2 * HELD_OUT else 0

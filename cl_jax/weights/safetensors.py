"""The safetensors format, read without trusting the file and written so that others can read it.

A file is: 8 bytes, the little-endian length n of the header; n bytes of JSON, an object of
`name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}` and, if at all, `"__metadata__": {text: text}`;
then the data, little-endian and row-major, in which begin and end count bytes.

Source: the repository huggingface/safetensors, "Format".
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cl_jax.errors import UserError, unknown
from cl_jax.weights import strict_json
from cl_jax.weights.strict_json import shown

DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_MOST_DIMENSIONS = 8
_MOST_BYTES = 2**62  # of one tensor, zero sizes counted as ones: what numpy can stand


class File(NamedTuple):
    """What a file holds."""

    tensors: dict[str, np.ndarray]  # read-only views of the mapped file, in the order of the data; may be unaligned
    metadata: dict[str, str]


class _Entry(NamedTuple):
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int  # within the data
    end: int


def read(path: Path) -> File:
    """Maps a safetensors file, after everything that its header says has been checked against the file.

    The arrays are views: only what is looked at is read from disk, and nothing is copied. NaN and infinities in the
    data pass. Do not let anybody shorten the file while it is mapped.

    Raises:
        UserError: not a readable file; a header that is longer than the file or than 8 MiB, is not a JSON object of
            the format or says a thing twice; a dtype not in `DTYPES`; more than 8 dimensions; offsets outside of the
            data, that do not fit shape and dtype, overlap, or leave bytes that belong to no tensor; a BOOL that is
            neither 0 nor 1.
    """
    data = _mapped(path)
    header, start = _header(path, data)
    metadata = _metadata(path, header.pop(_METADATA, {}))
    entries = [_entry(path, name, fields, len(data) - start) for name, fields in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_cover(path, entries, len(data) - start)
    tensors = {}
    for name, dtype, shape, begin, end in entries:
        raw = data[start + begin : start + end]
        if dtype == np.bool_ and raw.size and raw.max() > 1:
            raise UserError(f"{path}: tensor {shown(name)} is of BOOL and has bytes that are neither 0 nor 1.")
        tensors[name] = raw.view(dtype).reshape(shape)
    return File(tensors, metadata)


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, all or nothing, whose tensors are aligned to their dtypes.

    Args:
        tensors: arrays of any layout, of the dtypes of `DTYPES`; they are copied one at a time.
        metadata: None: `{"format": "pt"}`, without which `transformers` takes no file.

    Raises:
        UserError: an array of a dtype that the format does not have, or a tensor called `__metadata__`.
    """
    from cl_jax.results import write_atomically

    for name, array in tensors.items():
        if array.dtype not in _NAMES:
            raise unknown(f"dtype of {name!r} for {path}:", str(array.dtype), [str(one) for one in _NAMES])
    if _METADATA in tensors:
        raise UserError(f"{path}: no tensor may be called {_METADATA}; rename it.")
    # Larger items first keep every tensor aligned without gaps, which the format does not allow.
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, Any] = {_METADATA: dict({"format": "pt"} if metadata is None else metadata)}
    begin = 0
    for name in names:
        array = tensors[name]
        end = begin + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[Any]:
        yield len(text).to_bytes(8, "little")
        yield text
        for name in names:
            yield np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data

    write_atomically(path, chunks())


def _mapped(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path} is {'not a file' if path.exists() else 'not there'}; expected a safetensors file.")
    try:
        with path.open("rb") as file:
            if len(file.read(8)) < 8:
                raise UserError(f"{path} has fewer than 8 bytes; it is no safetensors file. Download or copy it again.")
            return np.memmap(file, np.uint8, "r").view(np.ndarray)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {error}.") from error


def _header(path: Path, data: np.ndarray) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > len(data) - 8:
        raise UserError(
            f"{path} says that its header has {length} bytes, and has {len(data) - 8} after saying so: it is cut off, "
            "or no safetensors file. Download or copy it again."
        )
    if length > strict_json.LARGEST:
        raise UserError(f"{path} has a header of {length} bytes; the most allowed is {strict_json.LARGEST}.")
    content = data[8 : 8 + length].tobytes()
    if not content.startswith(b"{"):
        raise UserError(f"{path}: its header begins with {content[:8]!r}, not with '{{': it is no safetensors file.")
    return strict_json.parse(content, f"{path}: its header"), 8 + length


def _metadata(path: Path, held: Any) -> dict[str, str]:
    if not isinstance(held, dict) or not all(isinstance(value, str) for value in held.values()):
        raise UserError(f"{path}: {_METADATA} should be an object of texts, not {shown(held)}.")
    return held


def _entry(path: Path, name: str, fields: Any, size: int) -> _Entry:
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(fields, dict) or set(fields) != _FIELDS:
        raise UserError(f"{where} should have {', '.join(sorted(_FIELDS))} and nothing else, not {shown(fields)}.")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise unknown(f"dtype of {where[len(str(path)) + 2 :]} in {path}:", shown(dtype).strip("'"), DTYPES)
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise UserError(f"{where} has shape {shown(shape)}; allowed are up to {_MOST_DIMENSIONS} counts of 0 or more.")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise UserError(f"{where} has data_offsets {shown(offsets)}; expected two counts of 0 or more, begin and end.")
    if math.prod(max(count, 1) for count in shape) * DTYPES[dtype].itemsize > _MOST_BYTES:
        raise UserError(f"{where} has shape {shown(shape)}, larger than any array can be.")
    (begin, end), needed = offsets, math.prod(shape) * DTYPES[dtype].itemsize
    if not begin <= end <= size:
        raise UserError(f"{where} lies at bytes {begin} to {end} of data that has {size}. Download or copy it again.")
    if end - begin != needed:
        raise UserError(f"{where}, {dtype} of shape {shape}, needs {needed} bytes; data_offsets give {end - begin}.")
    return _Entry(name, DTYPES[dtype], tuple(shape), begin, end)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _check_cover(path: Path, entries: list[_Entry], size: int) -> None:
    reached, last = 0, "the beginning"
    for entry in entries:
        if entry.begin != reached:
            what = "overlap" if entry.begin < reached else f"leave {entry.begin - reached} bytes between them"
            raise UserError(f"{path}: {last} and tensor {shown(entry.name)} {what}; the file is not to be trusted.")
        reached, last = entry.end, f"tensor {shown(entry.name)}"
    if reached != size:
        raise UserError(f"{path}: {size - reached} bytes after {last} belong to no tensor; download or copy it again.")

"""JSON objects of files that nobody vouches for: one reading of each, bounded in size, depth and digits."""

import json
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_jax.errors import UserError

LARGEST = 8 << 20  # bytes: headers of 50000 tensors; what is parsed takes up to some 30 times as much memory
_MOST_DIGITS = 20  # of the largest uint64
_SHOWN = 120  # characters of a name or value that a message shows
_REPR = reprlib.Repr()  # never walks what it does not show: a value may be of any size and depth
_REPR.maxstring = _SHOWN


def shown(value: object) -> str:
    """What a file says, as a message may show it: escaped and short."""
    return _REPR.repr(value)


def parse(content: bytes, where: str) -> dict[str, Any]:
    """The object that UTF-8 JSON text holds.

    Stricter than the standard library: a name may be given once only, as readers differ in which of two they believe;
    no NaN or Infinity, which are not JSON; whole numbers have at most 20 digits.

    Args:
        content: at most `LARGEST` bytes.
        where: how messages begin.

    Raises:
        UserError: not such an object.
    """
    if len(content) > LARGEST:
        raise UserError(f"{where} has {len(content)} bytes of JSON; the most allowed is {LARGEST}.")
    try:
        held = json.loads(
            content.decode(), object_pairs_hook=_once, parse_int=_short_int, parse_constant=_no_constant
        )  # fmt: skip
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply to be what it should be.") from error
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {str(error)[: 2 * _SHOWN]}; download or copy it again.") from error
    if not isinstance(held, dict):
        raise UserError(f"{where} should hold a JSON object, not {shown(held)}.")
    return held


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file, see `parse`. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} is {'not a file' if path.exists() else 'not there'}; a JSON file is expected there.")
    try:
        with path.open("rb") as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, LARGEST) + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    return parse(content, str(path))


def check_values(path: Path, held: Mapping[str, Any], allowed: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Refuses keys that say what is not supported.

    Args:
        allowed: by key, the values it may have if it is there at all, and why no others.

    Raises:
        UserError: the first key of `allowed` with another value.
    """
    for key, (values, why) in allowed.items():
        given = held.get(key, values[0])
        if given not in values:
            supported = " or ".join(json.dumps(value) for value in values)
            raise UserError(f"{path}: {key} is {shown(given)}; supported is {supported}: {why}.")


def whole(path: Path, held: Mapping[str, Any], key: str, most: int) -> int:
    """The whole number from 1 to `most` that has to stand under a key. Raises UserError."""
    value = held.get(key, "missing")
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(f"{path}: {key} is {shown(value)}; expected a whole number from 1 to {most}.")
    return value


def number(path: Path, key: str, value: Any, low: float, high: float) -> float:
    """A value that stands under a key, as a float in the closed range. Raises UserError."""
    if type(value) not in (int, float) or not low <= value <= high:  # also true of NaN
        raise UserError(f"{path}: {key} is {shown(value)}; expected a number from {low:g} to {high:g}.")
    return float(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        names = set()
        for name, _ in pairs:
            if name in names:
                raise ValueError(f"{shown(name)} is given twice")
            names.add(name)
    return held


def _short_int(text: str) -> int:
    if len(text.removeprefix("-")) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")

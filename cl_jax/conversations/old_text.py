"""Text that stands for what the model can do already: to rehearse, to keep a budget on, and to measure on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from cl_jax.errors import UserError
from cl_jax.text import source


class OldText(NamedTuple):
    """Rows [N, context + 1, 3] of three sets of documents, no document in two of them."""

    train: np.ndarray  # what policies may learn from: replay, the Fisher of what is to be kept
    guard: np.ndarray  # what a guard keeps its budget on
    test: np.ndarray  # what is reported, and nothing else
    name: str


def load(name: str, *, context: int, tokenizer: str, most: int, train: int, folder: Path | None = None) -> OldText:
    """The splits train, validation and test of a text source, as `train`, `guard` and `test`.

    Args:
        name: a text source such as `text:code` or `text:code,maths?bytes=500000`, see `cl_jax.text.source`, without
            options `context` and `tokenizer`: those are the model's.
        context: tokens that the model sees at once.
        tokenizer: `bytes`, or the path of a tokenizer.json.
        most: rows of `guard` and of `test` at most, evenly spaced.
        train: rows of `train` at most, evenly spaced.
        folder: the data folder that named domains are looked up in.

    Raises:
        UserError: as `cl_jax.text.source.load`; another kind of source; an option that is the model's.
    """
    if not name.startswith("text:"):
        raise UserError(f"--old {name}: the old text is of a text source; give text:<domain>, such as text:code.")
    given = [option.partition("=")[0] for option in name.partition("?")[2].split("&")]
    for option in ("context", "tokenizer"):
        if option in given:
            raise UserError(f"--old {name}: {option} is the model's and the same for all text; leave it out there.")
    if "&" in tokenizer:
        raise UserError(f"{tokenizer}: a path with '&' cannot be named in a text source; move the model's folder.")
    mark = "&" if "?" in name else "?"
    read = source.load(f"{name}{mark}context={context}&tokenizer={tokenizer}", folder)
    assert read.validation_images is not None and read.test_images is not None
    return OldText(
        train=spaced(read.train_images, train),
        guard=spaced(read.validation_images, most),
        test=spaced(read.test_images, most),
        name=name,
    )


def spaced(rows: np.ndarray, most: int) -> np.ndarray:
    """The rows, or where they are too many `most` of them, evenly spaced: neighbours are of one document."""
    if len(rows) <= most:
        return rows
    return rows[np.arange(most) * len(rows) // most]

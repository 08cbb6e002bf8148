"""Texts of TensorFlow Datasets, read without TensorFlow where they are prepared as array_record."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cl_jax.errors import UserError, did_you_mean
from cl_jax.sources import tfds
from cl_jax.sources.tfds_prepare import brief
from cl_jax.text import documents
from cl_jax.text.documents import Reading

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def read(name: str, folder: Path | None = None) -> Reading:
    """The texts of a set, of all its splits, all counted; long ones are cut as a .txt file is.

    Args:
        name: `<name>[/config][:version][:feature]`, as `tiny_shakespeare` or `ag_news_subset:1.0.0:description`; the
            feature is a text, `text` unless given.
        folder: TFDS's data folder, see `cl_jax.sources.tfds`.

    Raises:
        UserError: an unknown set or feature; data that is not there and cannot be prepared; too much of it.
    """
    parts = name.split(":")
    feature = parts.pop() if len(parts) > 1 and not _VERSION.fullmatch(parts[-1]) else "text"
    with tfds.quiet():
        builder = tfds.prepared(":".join(parts), folder, _check(feature))
        try:
            texts = _texts(builder, feature)
        except UserError:
            raise
        except Exception as error:  # from the readers of files, of many kinds
            raise UserError(
                f"the TFDS data in {builder.data_dir} cannot be read: {brief(error)}; delete that folder, then load it "
                "again."
            ) from error
    return Reading(
        [
            document
            for place, text in texts
            for document in documents.plain(text, place, collection=True)
            if document.counted_size
        ],
        [],
    )


def _texts(builder: Any, feature: str) -> list[tuple[str, str]]:
    found, size = [], 0
    for split in builder.info.splits:
        for number, example in enumerate(builder.as_data_source(split)):
            content = bytes(example[feature])
            size += len(content)
            if size > documents.MOST:
                raise UserError(
                    f"TFDS set {builder.info.full_name!r} has more than {documents.MOST >> 20} MiB of text; "
                    "choose a smaller one."
                )
            found.append((f"{split}#{number}", content.decode(errors="replace").replace("\r\n", "\n")))
    return found


def _check(feature: str) -> Callable[[Any], None]:
    def check(builder: Any) -> None:
        from tensorflow_datasets import features as kinds

        held: Any = builder.info.features
        texts = [key for key, kind in held.items() if isinstance(kind, kinds.Text)] if hasattr(held, "items") else []
        if feature not in texts:
            raise UserError(
                f"TFDS set {builder.name!r} has no text {feature!r}; its texts: {', '.join(texts) or 'none'}; write "
                f"tfds:<name>:<text>.{did_you_mean(feature, texts)}"
            )

    return check

"""Image-classification sets of TensorFlow Datasets by name, read without TensorFlow.

A set already prepared as array_record is looked for in `folder`, in TFDS's own data folder ($TFDS_DATA_DIR, else
~/tensorflow_datasets) and in the cache ($XDG_CACHE_HOME/cl_jax/tfds, else ~/.cache/cl_jax/tfds), in this order. Data in
another file format is passed over, as is a $TFDS_DATA_DIR that is not a local folder. What is nowhere prepared is
prepared into $TFDS_DATA_DIR if that is set, else into the cache: see `cl_jax.sources.tfds_prepare`.
"""

import contextlib
import difflib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cl_jax import errors
from cl_jax.errors import UserError
from cl_jax.sources import Source, tfds_prepare
from cl_jax.sources.tfds_prepare import brief, file_format

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_CATALOG = "https://www.tensorflow.org/datasets/catalog/overview"
_BLOCK = 4096  # examples decoded at a time


def load(name: str, folder: Path | None = None) -> Source:
    """Reads, and if need be first prepares, `<name>[/config][:version]`, in TFDS's order (a hash shuffle).

    The splits are `train` and, where there is one, `test`; other splits are not read.

    Args:
        name: as in TFDS's catalogue, without keyword arguments.
        folder: prepared TFDS data, or original files, themselves or in a folder of the set's name.

    Raises:
        UserError: an unknown set, configuration or version; a set that is not images of one shape with one label; a
            broken file; data that is neither there nor to be had.
    """
    with quiet():
        return _read(prepared(name, folder, _image_shape))


def prepared(name: str, folder: Path | None, check: Callable[[Any], object]) -> Any:
    """The builder of a set whose data is prepared, and if need be was prepared for this; `check` may refuse it before.

    Raises:
        UserError: see `load`.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"'tfds:{name}' is not of the form 'tfds:<name>[/config][:version]', as 'tfds:mnist:3.0.1'.")
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder} is {'not a folder' if folder.exists() else 'not there'}; give a folder of data.")
    _check_name(match["name"], match["config"])
    named = os.environ.get("TFDS_DATA_DIR", "")
    named = Path(named).expanduser() if named and "://" not in named else None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cl_jax" / "tfds"
    places = [place for place in (folder, named or Path("~/tensorflow_datasets").expanduser(), cache) if place]
    # Made where nothing is prepared, because a builder fails at data in a format other than it was asked for.
    nowhere = cache / "none"
    builder = _builder(name, nowhere)
    check(builder)
    relative = Path(builder.data_dir).relative_to(nowhere)
    for place in places:
        if file_format(place / relative) == "array_record":
            return _builder(name, place)
    target = named if named and file_format(named / relative) is None else cache
    absent = f"TFDS set {name!r} is not prepared as array_record in {', '.join(map(str, places))}"
    tfds_prepare.prepare(builder, target, folder, absent)
    return _builder(name, target)


def _check_name(name: str, config: str | None) -> None:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
        raise UserError(f"unknown TFDS set {name!r}; the {len(known)} known ones: {_CATALOG}.{hint}")
    configs = tfds.builder_cls(name).builder_configs
    if config is not None and not configs:
        raise UserError(f"TFDS set {name!r} has no configurations, so no {config!r}; write 'tfds:{name}'.")
    if config is not None and config not in configs:
        raise errors.unknown(f"configuration of TFDS set {name!r}:", config, configs)


def _builder(name: str, place: Path) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=place, file_format="array_record")
    except ModuleNotFoundError as error:
        raise UserError(
            f"TFDS set {name!r} needs a module that is not installed: {brief(error)}; if it is TensorFlow: "
            f"{tfds_prepare.INSTALL}."
        ) from error
    except Exception as error:  # TFDS raises AssertionError, ValueError and others, as for an unknown version
        raise UserError(f"TFDS set {name!r} cannot be used: {brief(error)}") from error


def _image_shape(builder: Any) -> tuple[int, int, int]:
    """[H, W, C] of a set of uint8 images of one shape with one class each; any other set is refused."""
    from tensorflow_datasets import features as kinds

    features: Any = builder.info.features
    keyed: Any = features if isinstance(features, kinds.FeaturesDict) else {"example": features}
    image: Any = keyed["image"] if "image" in keyed else None
    label: Any = keyed["label"] if "label" in keyed else None
    shape: Any = image.shape if isinstance(image, kinds.Image) and image.np_dtype == np.uint8 else (None,)
    if None in shape or not isinstance(label, kinds.ClassLabel):
        found = "; ".join(f"{key}: {' '.join(repr(feature).split())}" for key, feature in keyed.items())
        raise UserError(
            f"TFDS set {builder.name!r} is not a set of uint8 images of one shape ('image') with one class ('label') "
            f"each; it has {found[:300]}. Choose an image-classification set: {_CATALOG}"
        )
    return shape


def _read(builder: Any) -> Source:
    shape, full_name = _image_shape(builder), builder.info.full_name
    held = builder.info.splits
    if "train" not in held:
        raise UserError(f"TFDS set {full_name!r} has no split 'train', only {', '.join(held)}; choose another set.")
    try:
        splits = {split: _split(builder, split, shape) for split in ("train", "test") if split in held}
    except Exception as error:  # from the readers of files and images, of many kinds
        raise UserError(
            f"the TFDS data in {builder.data_dir} cannot be read: {brief(error)}; delete that folder and load again."
        ) from error
    num_classes = builder.info.features["label"].num_classes
    for split, (_, labels) in splits.items():
        if not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
            raise UserError(
                f"split {split!r} of TFDS set {full_name!r} is empty or without labels; choose another set."
            )
    name = f"tfds:{full_name.rpartition('/')[0]}:{builder.version}"
    return Source(name, *splits["train"], *splits.get("test", (None, None)), num_classes=num_classes, pixel_max=255)


def _split(builder: Any, split: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    source = builder.as_data_source(split)
    images, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int32)
    for start in range(0, len(source), _BLOCK):
        block = source.__getitems__(range(start, min(start + _BLOCK, len(source))))
        for row, example in enumerate(block, start):
            images[row], labels[row] = example["image"], example["label"]
    return images, labels


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what TFDS prints, logs and draws that is not an error."""
    with contextlib.redirect_stdout(io.StringIO()):
        from absl import logging
        from tensorflow_datasets.core.utils import tqdm_utils

        verbosity, progress = logging.get_verbosity(), tqdm_utils._active
        logging.set_verbosity(logging.ERROR)
        tqdm_utils.display_progress_bar(False)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            tqdm_utils.display_progress_bar(progress)

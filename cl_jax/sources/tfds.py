"""Image-classification sets of TensorFlow Datasets by name, read without TensorFlow.

A set already prepared as array_record is looked for in `folder`, in TFDS's own data folder ($TFDS_DATA_DIR, else
~/tensorflow_datasets) and in the cache ($XDG_CACHE_HOME/cl_jax/tfds, else ~/.cache/cl_jax/tfds), in this order. Data in
another file format is passed over, as is a $TFDS_DATA_DIR that is not a local folder.

What is not prepared is prepared into $TFDS_DATA_DIR if set, else into the cache: from the original files in `folder` or
`folder/<name>`, checked against the sha256 that TFDS registered, and by download where they are not there. The MNIST
family needs no TensorFlow for this, every other set does. Processes that prepare one set at once do not disturb each
other: each writes a folder of its own and renames it, and the first to finish wins.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import io
import json
import os
import random
import re
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cl_jax import errors
from cl_jax.errors import UserError
from cl_jax.sources import Source, tfds_mnist

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_CATALOG = "https://www.tensorflow.org/datasets/catalog/overview"
_INSTALL = "pip install 'cl_jax[tensorflow]'"
_PROBE_SECONDS = 0.5
_PORTS = {"http": 80, "https": 443, "ftp": 21}
_BLOCK = 4096  # examples decoded at a time


def load(name: str, folder: Path | None = None) -> Source:
    """Reads, and if need be first prepares, `<name>[/config][:version]`, in TFDS's order (a hash shuffle).

    The splits are `train` and, where there is one, `test`; other splits are not read.

    Args:
        name: as in TFDS's catalogue, without keyword arguments.
        folder: prepared TFDS data or original files, see above.

    Raises:
        UserError: an unknown set, configuration or version; a set that is not images of one shape with one label; a
            broken file; data that is neither there nor to be had.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"'tfds:{name}' is not of the form 'tfds:<name>[/config][:version]', as 'tfds:mnist:3.0.1'.")
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder} is {'not a folder' if folder.exists() else 'not there'}; give a folder of data.")
    with _quiet():
        builder = _prepared(name, match["name"], match["config"], folder)
        return _read(builder)


def _prepared(name: str, plain: str, config: str | None, folder: Path | None) -> Any:
    stock = _stock(plain, config)
    named = os.environ.get("TFDS_DATA_DIR", "")
    named = Path(named).expanduser() if named and "://" not in named else None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cl_jax" / "tfds"
    places = [place for place in (folder, named or Path("~/tensorflow_datasets").expanduser(), cache) if place]
    # A data folder of its own kind: a builder reads what it finds prepared, whatever its format, and may fail at it.
    builder = _builder(name, cache / "none")
    _image_shape(builder)
    relative = Path(builder.data_dir).relative_to(cache / "none")
    for place in places:
        if _file_format(place / relative) == "array_record":
            return _builder(name, place)
    target = named if named and _file_format(named / relative) is None else cache
    _prepare(builder, stock, name, target, folder, places)
    return _builder(name, target)


def _stock(name: str, config: str | None) -> Any:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
        raise UserError(f"unknown TFDS set {name!r}; the {len(known)} known ones: {_CATALOG}.{hint}")
    stock = tfds.builder_cls(name)
    if config is not None and config not in stock.builder_configs:
        raise errors.unknown(f"configuration of TFDS set {name!r}", config, stock.builder_configs or ["(it has none)"])
    return stock


def _builder(name: str, place: Path) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=place, file_format="array_record")
    except ModuleNotFoundError as error:
        raise UserError(
            f"TFDS set {name!r} needs a module that is not installed: {error}; if it is TensorFlow: {_INSTALL}."
        ) from error
    except Exception as error:  # TFDS raises AssertionError, ValueError and others, as for an unknown version
        cause = error.__cause__ or error
        raise UserError(f"TFDS set {name!r} cannot be used: {_brief(cause)}") from error


def _image_shape(builder: Any) -> tuple[int, int, int]:
    import tensorflow_datasets as tfds

    features: Any = builder.info.features
    keyed = features if isinstance(features, tfds.features.FeaturesDict) else {"example": features}
    image: Any = keyed["image"] if "image" in keyed else None
    label = keyed["label"] if "label" in keyed else None
    fits = isinstance(image, tfds.features.Image) and None not in image.shape and image.np_dtype == np.uint8
    if not fits or not isinstance(label, tfds.features.ClassLabel):
        found = "; ".join(f"{key}: {' '.join(repr(feature).split())}" for key, feature in keyed.items())
        raise UserError(
            f"TFDS set {builder.name!r} is not a set of uint8 images of one shape ('image') with one class ('label') "
            f"each; it has {found[:300]}. Choose an image-classification set: {_CATALOG}"
        )
    return image.shape


def _file_format(data: Path) -> str | None:
    """Of the data prepared in a folder; None if none is. TFDS writes the file read here last, then renames."""
    try:
        return json.loads((data / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"the TFDS data in {data} is broken: {_brief(error)}; delete that folder.") from error


def _prepare(builder: Any, stock: Any, name: str, target: Path, folder: Path | None, places: list[Path]) -> None:
    import tensorflow_datasets as tfds

    where = f"TFDS set {name!r} is not prepared as array_record in {', '.join(map(str, places))}"
    if stock.name not in tfds_mnist.FAMILY and importlib.util.find_spec("tensorflow") is None:
        family = ", ".join(tfds_mnist.FAMILY)
        raise UserError(
            f"{where}; preparing it needs TensorFlow, which is not installed: {_INSTALL}. Only {family} need none."
        )
    originals = _originals(stock)
    manual = _manual_folder(stock.name, originals, folder)
    missing = {url: info for url, info in originals.items() if not (manual and (manual / info.filename).is_file())}
    for host in {urllib.parse.urlsplit(url)[:2]: url for url in missing}.values():
        if not _reachable(host):
            names = ", ".join(sorted(info.filename for info in missing.values()))
            raise UserError(
                f"{where}, {folder or 'no folder'} holds no {names}, and {urllib.parse.urlsplit(host).hostname} does "
                "not answer. Connect to the network, or download these files elsewhere and give their folder."
            )
    if stock.name in tfds_mnist.FAMILY:
        version = str(builder.version)
        builder = tfds_mnist.builder_class(stock, originals)(
            data_dir=target, file_format="array_record", version=version
        )
    else:
        builder = _builder(name, target)
    download = tfds.download.DownloadConfig(manual_dir=manual or folder, try_download_gcs=False)
    data = Path(builder.data_dir)
    try:
        with _fresh_random():
            # A folder for each set: what is extracted is kept by file name, which mnist and fashion_mnist share.
            builder.download_and_prepare(download_dir=target / "downloads" / stock.name, download_config=download)
    except UserError:
        raise
    except Exception as error:
        if _file_format(data) is None:  # else another process was faster, and the folder could not be renamed
            raise UserError(f"TFDS set {name!r} could not be prepared in {target}: {_brief(error)}") from error


def _originals(stock: Any) -> dict[str, Any]:
    return dict(stock.url_infos or {})


def _manual_folder(name: str, originals: dict[str, Any], folder: Path | None) -> Path | None:
    """`folder` or `folder/<name>`, whichever holds original files, all of which must be what TFDS registered."""
    for place in (folder, folder / name) if folder else ():
        held = [(url, info) for url, info in originals.items() if (place / info.filename).is_file()]
        for url, info in held:
            path = place / info.filename
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != info.checksum:
                raise UserError(
                    f"{path} is not the original of TFDS set {name!r}: {path.stat().st_size} bytes with sha256 {found}, "
                    f"expected {int(info.size)} bytes with {info.checksum}. It is damaged, or of another set (mnist and "
                    f"fashion_mnist share file names). Download it again: {url}"
                )
        if held:
            return place
    return None


def _reachable(url: str) -> bool:
    """Whether the host (or the proxy to it) takes a connection; TFDS alone would try again for minutes."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or _PORTS.get(parts.scheme)
    if port is None:
        return True
    answers = []

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()
            answers.append(True)

    thread = threading.Thread(target=connect, daemon=True)  # looking up a name knows no timeout
    thread.start()
    thread.join(2 * _PROBE_SECONDS)
    return bool(answers)


def _read(builder: Any) -> Source:
    shape, data = _image_shape(builder), builder.data_dir
    try:
        splits = {name: _split(builder, name, shape) for name in ("train", "test") if name in builder.info.splits}
    except Exception as error:  # from the readers of files and images, of many kinds
        raise UserError(f"the TFDS data in {data} cannot be read: {_brief(error)}; delete that folder.") from error
    if "train" not in splits:
        raise UserError(
            f"TFDS set {builder.info.full_name!r} has no split 'train', only {', '.join(builder.info.splits)}."
        )
    num_classes = builder.info.features["label"].num_classes
    for split, (_, labels) in splits.items():
        if not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
            raise UserError(f"TFDS set {builder.info.full_name!r} has no or unlabelled examples in split {split!r}.")
    name = f"tfds:{'/'.join(builder.info.full_name.split('/')[:-1])}:{builder.version}"
    return Source(name, *splits["train"], *splits.get("test", (None, None)), num_classes=num_classes, pixel_max=255)


def _split(builder: Any, name: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    source = builder.as_data_source(name)
    images, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int32)
    for start in range(0, len(source), _BLOCK):
        block = source.__getitems__(range(start, min(start + _BLOCK, len(source))))
        for row, example in enumerate(block, start):
            images[row], labels[row] = example["image"], example["label"]
    return images, labels


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars, prints and log lines of TFDS that are not errors; slow to import, hence inside."""
    with contextlib.redirect_stdout(io.StringIO()):
        from absl import logging
        from tensorflow_datasets.core.utils import tqdm_utils

        before = logging.get_verbosity(), tqdm_utils._active
        logging.set_verbosity(logging.ERROR)
        tqdm_utils.display_progress_bar(False)
        try:
            yield
        finally:
            logging.set_verbosity(before[0])
            tqdm_utils.display_progress_bar(before[1])


@contextlib.contextmanager
def _fresh_random() -> Iterator[None]:
    """TFDS names its unfinished folder by `random`: processes that seeded it alike would write into one folder."""
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def _brief(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:400]}"

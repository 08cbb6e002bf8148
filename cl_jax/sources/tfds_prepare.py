"""Prepares a set of TensorFlow Datasets as array_record, from files at hand or by download.

The original files are taken from `folder` or `folder/<name>`, checked against the sha256 that TFDS registered, and
downloaded where they are not there. The MNIST family needs no TensorFlow for this, every other set does. Processes that
prepare one set at once do not disturb each other: each writes into a folder of its own and renames it at the end; the
first to finish wins and the others read its data.
"""

import contextlib
import hashlib
import importlib.util
import json
import random
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cl_jax.errors import UserError
from cl_jax.sources import tfds_mnist

INSTALL = "pip install 'cl_jax[tensorflow]'"
_ARGUMENTS_END = "'file_format': 'array_record'}\": "  # TFDS puts a dump of its arguments before some messages
_PROBE_SECONDS = 0.5
_PORTS = {"http": 80, "https": 443, "ftp": 21}
_LISTED = 8  # file names that a message shows


def prepare(builder: Any, target: Path, folder: Path | None, absent: str) -> None:
    """Prepares a builder's set, of its configuration and version, in the TFDS data folder `target`.

    Args:
        builder: a builder of TFDS for the set, of any data folder.
        target: TFDS data folder, made if it is not there.
        folder: original files, or None.
        absent: what to say before the reason why it cannot be done.

    Raises:
        UserError: TensorFlow is needed and not installed; a file is not the original; the network does not answer; the
            preparation failed.
    """
    from tensorflow_datasets import download

    family = builder.name in tfds_mnist.FAMILY
    if not family and importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{absent}; preparing it needs TensorFlow, which is not installed: {INSTALL}. "
            f"Only {', '.join(tfds_mnist.FAMILY)} need none."
        )
    originals = _originals(builder)
    manual = _manual_folder(builder.name, originals, folder)
    missing = [url for url, info in originals.items() if not (manual and _is_held(info, manual))]
    _check_network(missing, folder, absent)
    make = tfds_mnist.builder_class(type(builder), originals) if family else type(builder)
    config = {"config": builder.builder_config.name} if builder.builder_config else {}
    writer = make(data_dir=target, file_format="array_record", version=str(builder.version), **config)
    data, failure = Path(writer.data_dir), None
    try:
        with _fresh_random():
            # A folder for each set: what is extracted is kept by file name, which mnist and fashion_mnist share.
            writer.download_and_prepare(
                download_dir=target / "downloads" / builder.name,
                download_config=download.DownloadConfig(manual_dir=manual or folder, try_download_gcs=False),
            )
    except UserError:
        raise
    except Exception as error:  # of any kind, from the set's own code, the network and the disk
        failure = error
    # A failure with data in place: another process was faster, so that the folder could not be renamed.
    if file_format(data) is None:
        reason = brief(failure) if failure else f"{data} is there without data; delete that folder"
        raise UserError(f"TFDS set {builder.name!r} could not be prepared in {target}: {reason}") from failure


def file_format(data: Path) -> str | None:
    """The format of the data prepared in a folder; None: nothing is prepared there."""
    try:
        return json.loads((data / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"the TFDS data in {data} is broken: {brief(error)}; delete that folder.") from error


def brief(error: BaseException) -> str:
    """Kind and message of another library's error, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text.rpartition(_ARGUMENTS_END)[2][:400]}"


def _originals(builder: Any) -> dict[str, Any]:
    """url -> size, checksum and file name of every file that TFDS registered for a set."""
    return dict(builder.url_infos or {})


def _is_held(info: Any, place: Path) -> bool:
    return bool(info.filename) and (place / info.filename).is_file()


def _manual_folder(name: str, originals: dict[str, Any], folder: Path | None) -> Path | None:
    """`folder` or `folder/<name>`, whichever holds original files, all of which must be what TFDS registered."""
    for place in (folder, folder / name) if folder else ():
        held = [(url, info) for url, info in originals.items() if _is_held(info, place)]
        for url, info in held:
            path = place / info.filename
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != info.checksum:
                raise UserError(
                    f"{path} is not the original of TFDS set {name!r}: {path.stat().st_size} bytes, sha256 {found}, "
                    f"expected {int(info.size)} bytes, {info.checksum}. It is damaged, or of another set (mnist and "
                    f"fashion_mnist share file names). Download it again: {url}"
                )
        if held:
            return place
    return None


def _check_network(missing: list[str], folder: Path | None, absent: str) -> None:
    """TFDS alone would try again for minutes before it says that there is no network."""
    for url in {urllib.parse.urlsplit(url).netloc: url for url in missing}.values():
        if not _reachable(url):
            names = sorted(Path(urllib.parse.urlsplit(url).path).name for url in missing)
            listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
            raise UserError(
                f"{absent}; {f'{folder} lacks' if folder else 'no folder was given that holds'} {listed}; and "
                f"{urllib.parse.urlsplit(url).hostname} does not answer. Connect to the network, or download these "
                "files elsewhere and give their folder."
            )


def _reachable(url: str) -> bool:
    """Whether the host of a URL, or the proxy to it, takes a connection."""
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

    thread = threading.Thread(target=connect, daemon=True)  # because looking up a name knows no timeout
    thread.start()
    thread.join(2 * _PROBE_SECONDS)
    return bool(answers)


@contextlib.contextmanager
def _fresh_random() -> Iterator[None]:
    """TFDS names its unfinished folder by `random`: processes that seeded it alike would write into one folder."""
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)

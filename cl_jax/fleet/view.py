"""A sweep in an object store as a local folder, for as long as a command looks at it or makes it."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cl_jax.diagnostics.table import TABLE
from cl_jax.errors import UserError
from cl_jax.fleet import sweep_file
from cl_jax.fleet.bucket import Bucket, Object, called
from cl_jax.job import SWEEP
from cl_jax.results import RESULTS, read_json, write_atomically

EXPERIMENT, ENVIRONMENT = "experiment.json", "environment.json"
MOST_SWEEP, MOST_BEAT = 2**28, 2**20  # bytes of sweep.json, of a heartbeat
_NAME = r"[A-Za-z0-9_=+-][A-Za-z0-9_.=+-]{0,127}"
_BEAT, _DONE = rf"shards/{_NAME}/beats/{_NAME}\.json", rf"shards/{_NAME}/DONE\.json"
_RESULT = rf"shards/{_NAME}/(?:parts/{_NAME}/)?{_NAME}\.(?:json|npz)"


@contextlib.contextmanager
def planned(url: str) -> Iterator[Path]:
    """A folder that a sweep is written into, which goes to the store when it is left without an error.

    Raises:
        UserError: the store refuses, or holds something else there.
    """
    bucket = Bucket(url)
    with _folder() as folder:
        for name in (EXPERIMENT, SWEEP):
            content = bucket.read(name, MOST_SWEEP)
            if content is not None:
                write_atomically(folder / name, content)
        if not any(folder.iterdir()) and bucket.has_any():
            raise UserError(f"{url} is not empty and holds no {EXPERIMENT}; give an empty or a new folder as --out")
        with called(folder, bucket.url):
            yield folder
        for name in (EXPERIMENT, SWEEP):  # what workers need comes last
            bucket.put(name, (folder / name).read_bytes())


class View:
    """What `status` and `gather` read of a sweep.

    Args:
        folder: empty; becomes what a shared folder would be.
        results: also what shards have published; else only whether they are done.
    """

    def __init__(self, bucket: Bucket, folder: Path, *, results: bool):
        self.bucket, self.folder = bucket, folder
        self._results, self._held = results, dict[str, Object]()
        content = bucket.read(SWEEP, MOST_SWEEP)
        if content is None:
            raise UserError(f"no sweep at {bucket.url}/{SWEEP}: give the URL that `cl-jax shards` was given")
        write_atomically(folder / SWEEP, content)

    def refresh(self) -> None:
        """Brings what is new since the last time: one listing, and the files at once."""
        listed = self.bucket.listing("shards")
        new = {key: about for key, about in listed.items() if self._held.get(key) != about and self._wanted(key, about)}
        if shutil.disk_usage(self.folder).free < sum(about.size for about in new.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        self.bucket.each(self._bring, new)
        self._held.update(new)

    def _wanted(self, key: str, about: Object) -> bool:
        if re.fullmatch(_BEAT, key):
            return about.size <= MOST_BEAT
        return re.fullmatch(_RESULT if self._results else _DONE, key) is not None

    def _bring(self, key: str) -> None:
        file = self.folder / key
        if not self._results and re.fullmatch(_DONE, key):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            return
        with contextlib.suppress(FileNotFoundError):  # replaced or removed meanwhile
            self.bucket.get(key, file)


@contextlib.contextmanager
def viewed(url: str, *, results: bool) -> Iterator[View]:
    """See `View`; it holds no shards before it is refreshed."""
    bucket = Bucket(url)
    with _folder() as folder, called(folder, bucket.url):
        yield View(bucket, folder, results=results)


def num_shards(url: str) -> int:
    """Of a sweep. Raises UserError: none is there, or it is broken."""
    bucket = Bucket(url)
    with _folder() as folder, called(folder, bucket.url):
        return len(sweep_file.read(View(bucket, folder, results=False).folder / SWEEP).shards)


def gathered_into(view: View, to: Path | None) -> Path:
    """The local folder of a table, once nothing else is found there.

    Raises:
        UserError: it holds another experiment, or a run or sweep of its own.
    """
    to = to or Path("runs") / view.bucket.name
    other = f"{to} holds something else than the table of {view.bucket.url}; give another --to"
    name = view.bucket.read(EXPERIMENT, MOST_SWEEP)
    if name is None:
        raise UserError(f"no {EXPERIMENT} at {view.bucket.url}: make the sweep anew by `cl-jax shards`")
    write_atomically(view.folder / EXPERIMENT, name)
    if to.exists() and not to.is_dir():
        raise UserError(f"--to {to}: is a file; give a folder")
    if to.is_dir() and any(to.iterdir()):
        file = to / EXPERIMENT
        if (to / "shards").exists() or (to / SWEEP).exists() or not file.is_file():
            raise UserError(other)
        if read_json(file, {"name": str})["name"] != read_json(view.folder / EXPERIMENT, {"name": str})["name"]:
            raise UserError(other)
    return to


def give(view: View, to: Path) -> None:
    """Writes the table, and what a report of it needs, into the store and into a local folder."""
    for name in (EXPERIMENT, ENVIRONMENT, TABLE, RESULTS):
        file = view.folder / name
        if file.is_file():
            content = file.read_bytes()
            if not (to / name).is_file() or (to / name).read_bytes() != content:  # its time tells a report's age
                write_atomically(to / name, content)
            if name != EXPERIMENT:
                view.bucket.put(name, content)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cl_jax-") as name:
        yield Path(name).resolve()

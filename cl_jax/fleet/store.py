"""A sweep in an object store, as the worker of one shard sees it: a local folder that trains, and a copy that is safe.

Below the sweep's URL lies what a shared folder would hold, and the steps of checkpoints apart from it, so that a
listing of shards is short:

    sweep.json, experiment.json
    shards/<shard>/         shard.json, record.npz, ..., beats/, DONE.json
    trunks/<part>/          DONE.json
    steps/shards/<shard>/   attempt-<uuid>/<tasks finished>/..., and its manifest beside it, attempt-<uuid>/2.json
    steps/trunks/<part>/    likewise

The order of what is put is law: the files of a step, its manifest, what has been published of it, DONE.json. Of a step
that is gone locally the manifest is removed first, then the files. A process that dies in between leaves objects that
nobody counts.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from cl_jax.cache import cache_folder
from cl_jax.checkpoint import INSIDE, KEPT_STEPS, SPARE_BYTES, saved, saved_inside
from cl_jax.errors import UserError
from cl_jax.fleet import manifest, sweep_file
from cl_jax.fleet.bucket import Bucket, Object, called
from cl_jax.fleet.manifest import Refused
from cl_jax.fleet.scratch import Scratch
from cl_jax.results import write_atomically

MOST_SWEEP, MOST_MARK = 2**28, 2**20  # bytes that sweep.json and DONE.json may have
_MANIFEST = re.compile(r"((?:attempt|inside)-[A-Za-z0-9_-]{1,64})/(0|[1-9][0-9]{0,17})\.json")
_PRIVATE = ("attempt-", "inside-", "beats", ".")  # folders of a shard that are not of its results


class Step(NamedTuple):
    """A checkpoint of a shard."""

    writer: str  # the attempt, or inside-<uuid>
    number: int

    @property
    def key(self) -> str:
        return f"{self.writer}/{self.number}"

    @property
    def how_far(self) -> int:
        """As `cl_jax.checkpoint.INSIDE` numbers steps inside tasks."""
        return self.number if self.inside else self.number * INSIDE

    @property
    def inside(self) -> bool:
        return self.writer.startswith("inside-")


class Mirror:
    """The local folder of one worker at a sweep in a store.

    Args:
        url: of sweep.json.
        number: of the shard.
        parent: of the local folder; None: in the user's cache.
        say: told of what is refused.

    Raises:
        UserError: no sweep is there, the store refuses, or its package is missing; from every method.
        StoreError: the store failed; from every method.
    """

    def __init__(self, url: str, number: int, parent: Path | None = None, say: Callable[[str], None] | None = None):
        place, _, name = url.rpartition("/")
        self._bucket, self._say = Bucket(place), say or _warn
        content = self._bucket.read(name, MOST_SWEEP)
        if content is None:
            raise UserError(f"no sweep at {url}: give the sweep.json that `cl-jax shards` has written")
        scratch = Scratch(parent or cache_folder() / "scratch", f"{self._bucket.url} {number}")
        self._scratch, self.folder, self.file = scratch, scratch.folder, scratch.folder / name
        if not self.file.is_file() or self.file.read_bytes() != content:  # of another sweep
            scratch.clear()
            write_atomically(self.file, content)
        with called(self.folder, self._bucket.url):
            sweep_file.read(self.file)
        self._known: dict[str, dict[Step, list[str]]] = {}  # keys of steps in the store, by the shard
        self._own: set[Step] = set()  # put by this process
        self._sent: dict[str, str] = {}  # sha256 of what is published, by key
        self._over: set[str] = set()  # shards that are done in the store
        self._worker = ThreadPoolExecutor(1)  # one push after another
        self._under_way: Future[None] | None = None

    def done(self, folder: Path) -> bool:
        """Whether the shard is done in the store; if so, it is marked here."""
        name = self._name(folder)
        if name not in self._over:
            content = self._bucket.read(f"{name}/DONE.json", MOST_MARK)
            if content is None:
                return False
            write_atomically(folder / "DONE.json", content)
            self._over.add(name)
        return True

    def pull(self, shard: Path, trunks: Iterable[Path]) -> None:
        """Brings the furthest good steps of a shard, and those of the first tasks that it needs."""
        self._pull(shard)
        for trunk in trunks:
            self.done(trunk)
            if max((step.how_far for step in _steps_in(shard)), default=0) < INSIDE:
                self._pull(trunk)

    def push(self, folder: Path) -> None:
        """Begins to bring up what is new in a shard's folder; raises what bringing up the last has raised.

        What is in the folder now is what is put, in the order that is law: the steps of a shard do not change, and what
        is published is read before this returns.
        """
        self.settle()
        published = {path.relative_to(folder).as_posix(): path.read_bytes() for path in _published_in(folder)}
        steps = _steps_in(folder)
        self._under_way = self._worker.submit(self._push, folder, steps, published)

    def settle(self) -> None:
        """Returns when all is up; raises what bringing it up has raised."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def leaving(self, told: Callable[[], bool]) -> bool:
        """Whether the process was told to go; raises what bringing up has raised, long before the next boundary."""
        if self._under_way is not None and self._under_way.done():
            self.settle()
        return told()

    def beat(self, file: Path) -> None:
        """Brings up a heartbeat."""
        self._bucket.put(self._name(file), file.read_bytes())

    def close(self, *, over: bool = False) -> None:
        """Gives up the local folder; removes it where all is over."""
        with contextlib.suppress(Exception):  # what went wrong before is what counts
            self.settle()
        self._scratch.close(over=over)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _pull(self, folder: Path) -> None:
        under = f"steps/{self._name(folder)}/"
        good: set[Step] = set()
        refused: set[Step] = set()
        listed = self._bucket.listing(under.rstrip("/"))
        while (step := _next(_steps_of(under, listed), good, refused)) is not None:
            try:
                self._fetch(folder, under + step.key, folder / step.key, listed)
                good.add(step)
            except Refused as error:
                self._say(f"checkpoint {step.key} in {self._bucket.url} refused ({error}); trying an older one")
                refused.add(step)
                listed = self._bucket.listing(under.rstrip("/"))  # what is gone may have made room for a newer one
        self._known[self._name(folder)] = {
            step: [key for key in listed if key.startswith(f"{under}{step.key}/")] for step in _steps_of(under, listed)
        }
        # What an earlier worker here has left and nobody needs: it would only be brought up.
        furthest = max((step.how_far for step in good), default=0)
        for step in _steps_in(folder) - good:
            if step.how_far < furthest:
                shutil.rmtree(folder / step.key, ignore_errors=True)

    def _fetch(self, folder: Path, prefix: str, to: Path, listed: Mapping[str, Object]) -> None:
        """Brings a step, if it is whole. Raises Refused."""
        if listed[f"{prefix}.json"].size > manifest.MOST_BYTES:
            raise Refused("its manifest is too large")
        files = manifest.parsed(self._bucket.read(f"{prefix}.json", manifest.MOST_BYTES))
        if to.is_dir() and _local(to) == set(files):
            return
        for file in files:
            there = listed.get(f"{prefix}/{file.path}")
            if there is None:
                raise Refused(f"{file.path} is missing")
            if there.size != file.size:
                raise Refused(f"{file.path} has {there.size} bytes instead of {file.size}")
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < sum(file.size for file in files) + SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        partial = folder / f".pulled-{uuid.uuid4().hex[:12]}"
        try:
            try:
                self._bucket.each(lambda file: self._bucket.get(f"{prefix}/{file.path}", partial / file.path), files)
            except FileNotFoundError as error:
                raise Refused("it was removed meanwhile") from error
            for file in files:
                if manifest.of_file(partial, partial / file.path) != file:
                    raise Refused(f"{file.path} does not match its sha256")
            shutil.rmtree(to, ignore_errors=True)
            to.parent.mkdir(exist_ok=True)
            os.replace(partial, to)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _push(self, folder: Path, steps: set[Step], published: Mapping[str, bytes]) -> None:
        name = self._name(folder)
        if name in self._over:
            return
        known = self._known.setdefault(name, {})
        for step in sorted(steps - known.keys(), key=lambda step: step.how_far):
            keys = self._put_step(folder / step.key, f"steps/{name}/{step.key}")
            if keys is not None:
                known[step] = keys
                self._own.add(step)
        boundary = max((step.how_far for step in steps & known.keys() if not step.inside), default=0)
        for step in list(known):
            kept_no_more = step in self._own and step not in steps
            if kept_no_more or (step.inside and step.how_far < boundary):
                self._bucket.remove(f"steps/{name}/{step.key}.json")
                self._bucket.each(self._bucket.remove, known.pop(step))
        for path in sorted(published, key=_in_order):
            sha256 = hashlib.sha256(published[path]).hexdigest()
            if self._sent.get(f"{name}/{path}") != sha256:
                self._bucket.put(f"{name}/{path}", published[path])
                self._sent[f"{name}/{path}"] = sha256
        if "DONE.json" in published:
            self._over.add(name)
        else:
            self.done(folder)  # by another process meanwhile: whoever trains it here sees the mark, and stops

    def _put_step(self, local: Path, prefix: str) -> list[str] | None:
        """Brings up a step, its manifest last; None: it was removed here meanwhile, since a later one is safe."""
        try:
            files = self._bucket.each(lambda file: manifest.of_file(local, file), _files_in(local))
            self._bucket.each(lambda file: self._bucket.put(f"{prefix}/{file.path}", local / file.path), files)
            if not files or {file.path for file in files} != {_below(local, file) for file in _files_in(local)}:
                return None
        except FileNotFoundError:
            return None
        self._bucket.put(f"{prefix}.json", manifest.content(files))
        return [f"{prefix}/{file.path}" for file in files]


def _warn(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _next(steps: Iterable[Step], good: set[Step], refused: set[Step]) -> Step | None:
    """The furthest to try next; None: as many boundaries as stay have been found, or there are no more."""
    found = {step.how_far for step in good}
    left = [step for step in steps if step not in refused and step.how_far not in found]
    if len(found) >= KEPT_STEPS or not left:
        return None
    return max(left, key=lambda step: (step.how_far, step.writer))


def _steps_of(under: str, listed: Iterable[str]) -> list[Step]:
    """Those that have a manifest."""
    found = (_MANIFEST.fullmatch(key.removeprefix(under)) for key in listed)
    return [Step(match[1], int(match[2])) for match in found if match is not None]


def _steps_in(folder: Path) -> set[Step]:
    return {Step(writer.name, number) for number, writer in (*saved(folder), *saved_inside(folder))}


def _published_in(folder: Path) -> list[Path]:
    parts = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(_PRIVATE)]
    below = [path for part in parts for path in part.rglob("*")]
    return [path for path in (*folder.iterdir(), *below) if path.is_file() and not path.name.startswith(".")]


def _in_order(path: str) -> tuple[Any, ...]:
    """Who the members are, then their diagnostics, then their record, and last the mark that all is there."""
    depth, name = path.count("/"), path.rpartition("/")[2]
    return (-depth, name == "DONE.json", name.startswith("record"), name != "shard.json", name)


def _files_in(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def _below(step: Path, file: Path) -> str:
    return file.relative_to(step).as_posix()


def _local(step: Path) -> set[manifest.File]:
    return {manifest.of_file(step, file) for file in _files_in(step)}

"""An object store inside this process, which keeps a log and fails where a test wants it to.

fsspec's memory file system goes through the same code as s3:// and gs://, needs no further package, and puts an object
whole or not at all, as they do.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cl_jax import cli
from cl_jax.fleet import bucket

URL = "faulty://bucket/sweep"
_ROOT = "/bucket/sweep/"


class Done(NamedTuple):
    """What was done to an object."""

    key: str
    content: bytes | None  # None: removed


class Faulty(MemoryFileSystem):
    """One store for all threads; `Objects` is its other side."""

    protocol = "faulty"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    log: list[Done] = []  # noqa: RUF012
    reads: list[str] = []  # noqa: RUF012
    before: Callable[[Done], bytes | None]  # told of each change; what is put instead, or raises

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).removeprefix("faulty://"))

    def _key(self, path: str) -> str:
        return self._strip_protocol(path).removeprefix(_ROOT)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        value = Faulty.before(Done(self._key(path), value)) or value
        super().pipe_file(path, value, mode=mode, **kwargs)
        Faulty.log.append(Done(self._key(path), value))

    def put_file(self, lpath: str, rpath: str, *rest: Any, **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def rm_file(self, path: str) -> None:
        Faulty.before(Done(self._key(path), None))
        super().rm_file(path)
        Faulty.log.append(Done(self._key(path), None))

    def find(self, path: str, *rest: Any, **kwargs: Any) -> Any:
        Faulty.reads.append(f"find {self._key(path)}")
        return super().find(path, *rest, **kwargs)

    def get_file(self, rpath: str, lpath: str, *rest: Any, **kwargs: Any) -> None:
        Faulty.reads.append(f"get {self._key(rpath)}")
        super().get_file(rpath, lpath, *rest, **kwargs)


class Objects:
    """The objects below the URL, by their keys; changes made here are in no log."""

    def __iter__(self) -> Iterator[str]:
        return iter([path.removeprefix(_ROOT) for path in sorted(Faulty.store)])

    def __getitem__(self, key: str) -> bytes:
        return Faulty.store[_ROOT + key].getvalue()

    def __setitem__(self, key: str, content: bytes) -> None:
        MemoryFileSystem.pipe_file(Faulty(), _ROOT + key, content)

    def __delitem__(self, key: str) -> None:
        del Faulty.store[_ROOT + key]

    def items(self) -> dict[str, bytes]:
        return {key: self[key] for key in self}

    def become(self, content: dict[str, bytes]) -> None:
        """All of it."""
        Faulty.store.clear()
        for key, value in content.items():
            self[key] = value

    def beats(self) -> list[dict[str, Any]]:
        """What all attempts said last, in the order in which they began."""
        found = [json.loads(self[key]) for key in self if "/beats/" in key]
        return sorted(found, key=lambda beat: beat["started"])

    def manifests(self) -> list[str]:
        return [key for key in self if key.startswith("steps/") and key.rsplit("/", 1)[1].endswith(".json")]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Objects:
    """An empty store."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    monkeypatch.setitem(bucket.EXTRAS, "faulty", "s3")
    for name, empty in {"store": {}, "pseudo_dirs": [""], "log": [], "reads": []}.items():
        monkeypatch.setattr(Faulty, name, empty)
    monkeypatch.setattr(Faulty, "before", staticmethod(lambda done: done.content), raising=False)
    return Objects()


def fail(monkeypatch: pytest.MonkeyPatch, where: Callable[[Done], bool]) -> None:
    """The store refuses to do this."""

    def before(done: Done) -> bytes | None:
        if where(done):
            raise OSError("the store is away")
        return done.content

    monkeypatch.setattr(Faulty, "before", staticmethod(before))


def mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Faulty, "before", staticmethod(lambda done: done.content))


def work(shard: int, scratch: Path) -> None:
    """Trains a shard in this process."""
    words = ["worker", "--sweep", f"{URL}/sweep.json", "--shard", str(shard), "--scratch", str(scratch), "--quiet"]
    cli.main(words)

"""An object store behind a URL, and what goes wrong with it in one message.

A store has no rename, no append and no folders; what it has is that one object is put whole or not at all. Through
fsspec, which etils.epath is a layer over: epath tells no sizes in a listing and keeps no listing from being stale.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cl_jax.errors import UserError, unknown

EXTRAS = {"gs": "gcs", "s3": "s3"}  # extra of cl_jax with what reads it, by the scheme of a URL
AT_ONCE = 16  # requests
# What libraries raise where nobody has told them who we are, beside PermissionError.
_REFUSALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError")
_VERSIONS = ("ETag", "etag", "generation", "LastModified", "updated", "created", "mtime")  # as stores call it

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class StoreError(RuntimeError):
    """The store failed, also after its library's own retries. What was brought up is safe: start again."""


class Object(NamedTuple):
    """As a listing has it."""

    size: int  # bytes
    version: str  # another one where the object was put again


def is_url(place: object) -> bool:
    """Whether it is a URL rather than a path."""
    return isinstance(place, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place) is not None


@contextlib.contextmanager
def called(folder: Path, url: str) -> Iterator[None]:
    """A user's mistakes are told of the URL that a local folder stands for."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(folder), url)) from error


class Bucket:
    """The objects under a URL, each by its key: the path below it.

    Raises:
        UserError: no store is known by that scheme, its package is not installed, or the store refuses.
        StoreError: see there; from every method.
    """

    def __init__(self, url: str):
        scheme, _, path = url.partition("://")
        parts = [part for part in path.split("/") if part]
        if scheme not in EXTRAS:
            raise unknown("kind of store", scheme, EXTRAS)
        if not parts or {".", ".."} & set(parts):
            raise UserError(f"{url}: names no bucket and folder; give a URL such as {scheme}://bucket/folder")
        self.url, self.name = f"{scheme}://{'/'.join(parts)}", parts[-1]
        self._bucket, self._pool = f"{scheme}://{parts[0]}", ThreadPoolExecutor(AT_ONCE)
        import fsspec

        with self._told():
            try:
                # Others put objects too: what was listed once says nothing.
                self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
            except ImportError as error:
                raise UserError(
                    f"{self.url}: needs a package that is not installed; pip install 'cl_jax[{EXTRAS[scheme]}]'"
                ) from error

    def listing(self, under: str = "") -> dict[str, Object]:
        """Every object whose key begins with `under` and a slash, by its key."""
        with self._told():
            try:
                found = self._fs.find(self._path(under), detail=True)
            except FileNotFoundError as error:
                raise UserError(f"{self.url}: there is no bucket {self._bucket} ({error}); make it first") from error
        held = {}
        for path, about in found.items():
            key = path.removeprefix(self._root).lstrip("/")
            if about["type"] == "file" and key and not key.endswith("/"):
                held[key] = Object(int(about["size"]), str([about.get(name) for name in _VERSIONS]))
        return held

    def has_any(self) -> bool:
        """Whether anything is under the URL."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            if any(path.rstrip("/") != self._root.rstrip("/") for path in self._fs.ls(self._root, detail=False)):
                return True
        return bool(self.listing())

    def read(self, key: str, most: int) -> bytes | None:
        """An object of at most so many bytes; None: there is none. Raises UserError: it is larger."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            size = int(self._fs.info(self._path(key))["size"])
            if size > most:
                raise UserError(f"{self.url}/{key}: is of {size} bytes, and at most {most} are read; remove it")
            return self._fs.cat_file(self._path(key))
        return None

    def get(self, key: str, file: Path) -> None:
        """Reads an object into a local file. Raises FileNotFoundError: there is none."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            self._fs.get_file(self._path(key), str(file))

    def put(self, key: str, content: bytes | Path) -> None:
        """Writes an object, whole or not at all. Raises FileNotFoundError: there is no such local file."""
        if isinstance(content, Path):
            content.stat()
        with self._told():
            try:
                if isinstance(content, Path):
                    self._fs.put_file(str(content), self._path(key))
                else:
                    self._fs.pipe_file(self._path(key), content)
            except FileNotFoundError as error:
                if isinstance(content, Path) and not content.is_file():
                    raise
                raise UserError(f"{self.url}: there is no bucket {self._bucket} ({error}); make it first") from error

    def remove(self, key: str) -> None:
        """Removes an object, if it is there."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def each(self, do: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """Calls `do` for every item, several at once; raises what the first that failed has raised, after all ended."""
        futures = [self._pool.submit(do, item) for item in items]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What is not there passes; what is refused is the user's to mend; all else is the store's failure."""
        try:
            yield
        except (UserError, FileNotFoundError):
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:300] or type(error).__name__
            if _refused(error):
                raise UserError(
                    f"{self.url}: the store refuses ({said}); give this process credentials that may read and write "
                    f"there, in the environment as its package reads them"
                ) from error
            # Not OSError, which would say that the local disk is to be mended.
            raise StoreError(f"{self.url}: {type(error).__name__}: {said}") from error


def _refused(error: Any) -> bool:
    return (
        isinstance(error, PermissionError)
        or type(error).__name__ in _REFUSALS
        or str(getattr(error, "code", "")) in ("401", "403")
        or (isinstance(error, OSError) and str(error).startswith("Forbidden"))
    )

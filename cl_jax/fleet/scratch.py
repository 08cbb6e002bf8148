"""The local folder in which a worker trains what belongs to a store: found again, and not used by two at once."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import uuid
from pathlib import Path

from cl_jax.errors import UserError


class Scratch:
    """A folder that this process alone uses, until `close` or its end.

    Where another process has the folder of this shard, on this machine, it is a new one beside it.

    Args:
        parent: that it lies in.
        about: what it is of; the same words find the same folder again.
    """

    def __init__(self, parent: Path, about: str):
        name = hashlib.sha256(about.encode()).hexdigest()[:24]
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--scratch {parent}: is no folder that can be made ({error.strerror}); give another"
            ) from error
        self.folder = parent.resolve() / name
        self._again = True
        held = _locked(self.folder)
        if held is None:
            self.folder, self._again = self.folder.with_name(f"{name}-{uuid.uuid4().hex[:12]}"), False
            held = _locked(self.folder)
            assert held is not None
        self._lock = held

    def clear(self) -> None:
        """Removes what is in it."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def close(self, *, over: bool) -> None:
        """Gives it up; removes it where all is over, or nobody would find it again."""
        if over or not self._again:
            shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)


def _locked(folder: Path) -> int | None:
    """Opens a folder that nobody else holds; None: somebody does. The kernel frees it when its holder dies."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # removed meanwhile by one that was done
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.stat(folder).st_ino == os.fstat(held).st_ino:
                return held
        os.close(held)

"""Orbax checkpoints at task boundaries, with a digest of their own and one directory per attempt.

Orbax keeps no checksum of what it wrote and does not fall back past a torn step; two writers on one directory destroy
it. So each attempt writes its own folder, each step carries a sha256 of its arrays and the version of the code, and
restoring takes the newest step of any attempt that restores and matches, saying which it refused and why.
"""

import errno
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cl_jax.provenance import code_version

SPARE_BYTES = 2**20  # what a checkpoint takes beside its arrays, generously
KEPT_STEPS = 2  # the newest, and one to walk back to
# Orbax numbers a process's saves by one global counter: two that start at once wait for each other's folders, and one
# then writes before its folder is there. So saves start one by one, each after its folders are made.
_STARTING = threading.Lock()


def digest(tree: Any) -> str:
    """sha256 over path, shape, dtype and bytes of every leaf."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype.str}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


class Checkpoints:
    """The checkpoints of one shard: `<folder>/attempt-<uuid>/<tasks finished>`."""

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self._folder, self._say = folder.resolve(), say
        self._manager: ocp.CheckpointManager | None = None

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest good step of any attempt and its state, or None. `like`: a tree of shapes and dtypes."""
        found = []
        for attempt in self._folder.glob("attempt-*"):
            found += [(int(step.name), attempt) for step in attempt.iterdir() if step.name.isdecimal()]
        for step, attempt in sorted(found, key=lambda item: (-item[0], item[1].name)):
            try:
                with ocp.CheckpointManager(attempt, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
                    parts = ocp.args.Composite(state=ocp.args.StandardRestore(like), note=ocp.args.JsonRestore())
                    read = manager.restore(step, args=parts)
                note = read["note"]
                if digest(read["state"]) != note["sha256"] or note["tasks"] != step:
                    raise ValueError("its content does not match its sha256")
            except Exception as error:  # whatever a torn file makes a reader raise, the older step is the answer
                reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
                self._say(f"checkpoint {attempt.name}/{step} refused ({reason}); trying an older one")
                continue
            if note["code"] != code_version():
                self._say(f"checkpoint {attempt.name}/{step} is by cl_jax {note['code']}, this is {code_version()}")
            return step, read["state"]
        return None

    def save(self, step: int, state: Any) -> None:
        """Starts writing arrays of the host, which must not change any more; `wait` says when it is safe.

        Raises:
            OSError: the disk has no room for it. Asked beforehand, because TensorStore prints a page for each array
                whose writing fails.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPARE_BYTES
        if shutil.disk_usage(self._folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=KEPT_STEPS,
                todelete_subdir="trash",
                enable_async_checkpointing=True,
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
            )
            self._manager = ocp.CheckpointManager(self._folder / f"attempt-{uuid.uuid4().hex[:12]}", options=options)
        state = jax.tree.map(np.asarray, state)
        note = {"sha256": digest(state), "tasks": step, "code": code_version()}
        parts = ocp.args.Composite(state=ocp.args.StandardSave(state), note=ocp.args.JsonSave(note))
        with _STARTING:
            self._manager.save(step, args=parts)

    def wait(self) -> None:
        """Returns when everything saved is committed; raises what a background write raised."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()
            self._manager = None

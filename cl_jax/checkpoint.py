"""Orbax checkpoints at task boundaries, with a digest of their own and one directory per attempt.

Orbax keeps no checksum of what it wrote and does not fall back past a torn step; two writers on one directory destroy
it. So each attempt writes its own folder, each step carries a sha256 of its arrays and the version of the code, and
restoring takes the newest step of any attempt that restores and matches, saying which it refused and why.

A process that has to leave inside a task writes a step beside the attempts, in a folder of its own that says how far it
came: readers of boundaries do not see it, and it goes when the task's own boundary is safe.

A step's note lists the members that it holds, where several processes train a shard and each saves its own; one without
a list, as in folders of old, holds all of them. What is read for which members is chosen in `cl_jax.cover`.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cl_jax.cover import INSIDE, Step, furthest, joined
from cl_jax.provenance import code_version
from cl_jax.results import read_shard

SPARE_BYTES = 2**20  # what a checkpoint takes beside its arrays, generously
KEPT_STEPS = 2  # boundaries that stay: the newest, and one to walk back to
EVERYONE = ("",)  # in place of ids, where no process holds a part
# Orbax numbers a process's saves by one global counter: two that start at once wait for each other's folders, and one
# then writes before its folder is there. So saves start one by one, each after its folders are made.
_STARTING = threading.Lock()


Leaves = dict[tuple[str, ...], Any]  # arrays, or their shapes and dtypes, by path


def leaves(tree: Any) -> Leaves:
    """Every leaf by the names on its path: the same for a NamedTuple and the dict that Orbax reads it back as."""

    def name(part: Any) -> str:
        return str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part))))

    return {tuple(map(name, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def digest(tree: Any) -> str:
    """sha256 over path, shape, dtype and bytes of every leaf, in the order of their paths."""
    sha = hashlib.sha256()
    for path, leaf in sorted(leaves(tree).items(), key=lambda item: item[0]):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{json.dumps(path)} {array.shape} {array.dtype.str}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def saved(folder: Path) -> list[tuple[int, Path]]:
    """Steps that were saved in a shard's folder and the attempts that saved them, newest first; good or not."""
    return _steps(folder, "attempt-*")


def saved_inside(folder: Path) -> list[tuple[int, Path]]:
    """As `saved`, of the steps inside tasks: their numbers, see `INSIDE`."""
    return _steps(folder, "inside-*")


def _steps(folder: Path, writers: str) -> list[tuple[int, Path]]:
    steps = [
        (int(step.name), writer)
        for writer in folder.glob(writers)
        for step in writer.iterdir()
        if step.name.isdecimal()
    ]
    return sorted(steps, key=lambda item: (-item[0], item[1].name))


def steps_in(folder: Path) -> list[Step]:
    """What was saved of a shard, good or not, boundaries and inside tasks, with the members that each step holds."""
    return _with_members(folder, [*_boundaries(folder), *_insides(folder)])


def _boundaries(folder: Path) -> list[Step]:
    return [Step(tasks * INSIDE, writer, EVERYONE) for tasks, writer in saved(folder)]


def _insides(folder: Path) -> list[Step]:
    return [Step(number, writer, EVERYONE) for number, writer in saved_inside(folder)]


def _with_members(folder: Path, steps: Iterable[Step]) -> list[Step]:
    """A step whose note cannot be read counts as one of all members, so that it is read, refused and said to be."""
    whole = tuple(read_shard(folder / "shard.json")[0]) if (folder / "shard.json").is_file() else EVERYONE
    return [step._replace(members=_members_of(step) or whole) for step in steps]


def _members_of(step: Step) -> tuple[str, ...]:
    try:
        with _reader(step.writer) as manager:
            note = manager.restore(_name(step), args=ocp.args.Composite(note=ocp.args.JsonRestore()))["note"]
        return tuple(map(str, note["members"]))
    except Exception:  # whatever a torn file makes a reader raise
        return ()


def _name(step: Step) -> int:
    """Of its folder."""
    return step.number if step.number % INSIDE else step.number // INSIDE


def new_attempt() -> str:
    """The name of a folder that nobody else writes to."""
    return f"attempt-{uuid.uuid4().hex[:12]}"


def read(attempt: Path, step: int, like: Any = None) -> tuple[Any, dict[str, Any]]:
    """What a step holds, and its note.

    Args:
        like: a tree of shapes and dtypes; None: nested dicts and lists, of whatever is there.

    Raises:
        Exception: of any kind, where the step is torn, is not what `like` says or does not match its digest.
    """
    with _reader(attempt) as manager:
        parts = ocp.args.Composite(state=ocp.args.StandardRestore(like), note=ocp.args.JsonRestore())
        held = manager.restore(step, args=parts)
    note = held["note"]
    if digest(held["state"]) != note["sha256"] or note["tasks"] != step:
        raise ValueError("its content does not match its sha256")
    return held["state"], note


def _reader(writer: Path) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(writer.resolve(), options=ocp.CheckpointManagerOptions(read_only=True))


def reason(error: Exception) -> str:
    """Why a step was refused, in a line."""
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


class Checkpoints:
    """The checkpoints of one shard: `<folder>/attempt-<uuid>/<tasks finished>`, and `<folder>/inside-<uuid>/<number>`.

    Args:
        keep: boundaries of this attempt that stay, the newest ones; None: all.
        attempt: a name that this process alone uses, and may use again; None: a new one.
        members: ids of those that are saved and restored, on the leading axis of every leaf; None: states are whole.
    """

    def __init__(
        self, folder: Path, say: Callable[[str], None], keep: int | None = KEPT_STEPS, attempt: str | None = None,
        members: Sequence[str] | None = None,
    ):  # fmt: skip
        self._folder, self._say, self._keep = folder.resolve(), say, keep
        self._attempt = attempt or new_attempt()
        self._members = EVERYONE if members is None else tuple(members)
        self._manager: ocp.CheckpointManager | None = None

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest good step of any attempt and its state, or None. `like`: a tree of shapes and dtypes."""
        found = self.restore_furthest(like)
        return None if found is None else found[:2]

    def restore_furthest(self, like: Any, like_inside: Any = None) -> tuple[int, Any, bool] | None:
        """The furthest good step of any attempt: tasks finished, its state, and whether it was saved inside a task.

        Args:
            like_inside: of a state saved inside a task; None: such are passed over.
        """
        steps = self._known([*_boundaries(self._folder), *(_insides(self._folder) if like_inside is not None else [])])
        while readings := furthest(steps, self._members):
            number, states = readings[0].step.number, []
            inside = number % INSIDE > 0
            for reading in readings:
                try:
                    states.append(self._read(reading.step, like_inside if inside else like))
                except Exception as error:  # whatever a torn file makes a reader raise, the older step is the answer
                    name = f"{reading.step.writer.name}/{_name(reading.step)}"
                    self._say(f"checkpoint {name} refused ({reason(error)}); trying an older one")
                    steps.remove(reading.step)
                    break
            else:
                return number // INSIDE, joined(readings, states, self._members), inside
        return None

    def _known(self, steps: list[Step]) -> list[Step]:
        return steps if self._members == EVERYONE else _with_members(self._folder, steps)

    def _read(self, step: Step, like: Any) -> Any:
        if self._members != EVERYONE:  # the shapes of as many members as it holds
            count = len(step.members)
            like = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), (count, *leaf.shape[1:])), like)
        state, note = read(step.writer, _name(step), like)
        if note["code"] != code_version():
            name = f"{step.writer.name}/{_name(step)}"
            self._say(f"checkpoint {name} is by cl_jax {note['code']}, this is {code_version()}")
        return state

    def save_inside(self, tasks: int, how_far: int, state: Any) -> None:
        """Writes a step inside the task after `tasks` boundaries, and returns when it is committed.

        Args:
            how_far: grows with what of the task is behind the shard, 1 to `INSIDE` - 1.
        """
        self._check_room(state)
        with self._new_manager(self._attempt.replace("attempt-", "inside-")) as manager:
            self._start(manager, tasks * INSIDE + how_far, state)

    def forget_inside(self, tasks: int) -> None:
        """Removes steps inside tasks before this boundary, which has to be committed: none of them is needed again.

        Those that hold another's members stay, who may not have come as far.
        """
        for step in self._known([step for step in _insides(self._folder) if step.number < tasks * INSIDE]):
            if set(step.members) <= set(self._members):
                shutil.rmtree(step.writer, ignore_errors=True)

    def save(self, step: int, state: Any) -> None:
        """Starts writing arrays of the host, which must not change any more; `wait` says when it is safe.

        Raises:
            OSError: the disk has no room for it. Asked beforehand, because TensorStore prints a page for each array
                whose writing fails.
        """
        self._check_room(state)
        if self._manager is None:
            self._manager = self._new_manager(self._attempt)
        self._start(self._manager, step, state)

    def _check_room(self, state: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPARE_BYTES
        if shutil.disk_usage(self._folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))

    def _new_manager(self, name: str) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            todelete_subdir="trash",
            enable_async_checkpointing=True,
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        )
        return ocp.CheckpointManager(self._folder / name, options=options)

    def _start(self, manager: ocp.CheckpointManager, step: int, state: Any) -> None:
        state = jax.tree.map(np.asarray, state)
        note = {"sha256": digest(state), "tasks": step, "code": code_version()}
        if self._members != EVERYONE:
            note["members"] = list(self._members)
        parts = ocp.args.Composite(state=ocp.args.StandardSave(state), note=ocp.args.JsonSave(note))
        with _STARTING:
            manager.save(step, args=parts)

    def wait(self) -> None:
        """Returns when everything saved is committed; raises what a background write raised."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()
            self._manager = None

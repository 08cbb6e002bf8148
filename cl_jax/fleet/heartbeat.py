"""What one process that works on a shard says of itself, in a file of its own: `<shard>/beats/<attempt>.json`.

It is replaced every few seconds, by a thread, since compiling may take minutes; what it says last is what became of the
attempt. Nothing is decided by it: whether a shard is done is in its DONE.json alone.
"""

import contextlib
import dataclasses
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cl_jax.errors import UserError
from cl_jax.progress import Bar
from cl_jax.results import read_json, write_json

BEAT_SECONDS, LEAST_SECONDS = 5.0, 1.0  # between two beats; the less where what it does has changed
SEND_SECONDS = 20.0  # between two that go to a store, which has a price for each
STALE_SECONDS = 60.0  # without a beat: the process, its machine or its network is gone
RUNNING, DONE, PREEMPTED, FAILED, STOPPED = "running", "done", "pre-empted", "failed", "stopped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beat:
    """The last that was heard of an attempt."""

    attempt: str
    state: str  # one of the names above
    host: str
    pid: int
    started: float  # seconds since 1970, as its machine has them
    beat: float  # likewise, when it was written
    total: int  # member-steps of everything the attempt has to see done
    done: int  # of these: trained by it, or found trained
    trained: int  # by it
    doing: str  # in words
    environment: Mapping[str, Any]  # what results depend on, see `cl_jax.provenance.environment`; empty: not known yet
    exit_code: int | None = None
    error: str | None = None
    group: str = ""  # name of the processes that train the shard together; "": it is alone
    process: int = 0  # which of them it is
    processes: int = 1

    @property
    def stale(self) -> bool:
        """Whether it should have been heard of since."""
        return self.state == RUNNING and time.time() - self.beat > STALE_SECONDS


class Heart:
    """Writes an attempt's file until `end`.

    Args:
        folder: of the shard.
        attempt: name that this process alone uses.
        send: brings the file to where others read it; None: they read it here.
    """

    def __init__(self, folder: Path, attempt: str, send: Callable[[Path], None] | None = None):
        self._file = folder / "beats" / f"{attempt}.json"
        now = time.time()
        self._beat = Beat(
            attempt=attempt, state=RUNNING, host=platform.node(), pid=os.getpid(), started=now, beat=now, total=0,
            done=0, trained=0, doing="starting", environment={},
        )  # fmt: skip
        self._lock, self._changed, self._over = threading.Lock(), threading.Event(), False
        self._send, self._sending, self._sent = send, threading.Lock(), time.monotonic()
        self._write()  # if the folder cannot be written, it is known now
        self._bring()
        threading.Thread(target=self._beating, daemon=True).start()

    def tell(self, **changes: Any) -> None:
        """Changes what the next beat says, by the names of `Beat`."""
        with self._lock:
            before = self._beat
            processes = changes.get("processes", before.processes)
            if "doing" in changes and processes > 1:
                number = changes.get("process", before.process)
                changes["doing"] = f"process {number} of {processes}, {changes['doing']}"
            self._beat = dataclasses.replace(before, **changes)
            if before.doing != self._beat.doing:
                self._changed.set()

    def count(self, *, total: int = 0, done: int = 0, trained: int = 0) -> None:
        """Adds to the counts."""
        with self._lock:
            beat = self._beat
            self._beat = dataclasses.replace(
                beat, total=beat.total + total, done=beat.done + done, trained=beat.trained + trained
            )

    def end(self, state: str, exit_code: int, error: str | None = None) -> None:
        """Writes the last beat."""
        self._over = True
        self.tell(state=state, exit_code=exit_code, error=error)
        with contextlib.suppress(OSError):  # how it ended is also in the exit code
            self._write(last=True)
        with contextlib.suppress(Exception):
            self._bring()

    def _beating(self) -> None:
        while not self._over:
            time.sleep(LEAST_SECONDS)
            self._changed.wait(BEAT_SECONDS - LEAST_SECONDS)
            self._changed.clear()
            with contextlib.suppress(OSError):  # a beat that is lost is not worth a shard
                self._write()
            if time.monotonic() - self._sent >= SEND_SECONDS:
                with contextlib.suppress(Exception):
                    self._bring()

    def _bring(self) -> None:
        if self._send is not None:
            with self._sending:  # whoever comes later reads the file later, so that the last beat is the last to go
                self._sent = time.monotonic()
                self._send(self._file)

    def _write(self, last: bool = False) -> None:
        with self._lock:  # held while writing: a beat that was begun must not replace the last one
            if self._over and not last:
                return
            self._beat = dataclasses.replace(self._beat, beat=time.time())
            write_json(self._file, dataclasses.asdict(self._beat))


class Watched:
    """Progress of a shard: the lines of `Bar`, and the counts of a heartbeat."""

    def __init__(self, bar: Bar, heart: Heart):
        self._bar, self._heart = bar, heart

    def compiling(self, shard: Any) -> None:
        self._heart.tell(doing="compiling")
        self._bar.compiling(shard)

    def restored(self, member_steps: int) -> None:
        self._heart.count(done=member_steps)
        self._bar.restored(member_steps)

    def advanced(self, shard: Any, task: int, member_steps: int) -> None:
        first = shard.folder.parent.name == "trunks"
        self._heart.tell(doing=f"task {task + 1}{' of all that share it' if first else ''}")
        self._heart.count(done=member_steps, trained=member_steps)
        self._bar.advanced(shard, task, member_steps)

    def say(self, message: str) -> None:
        self._bar.say(message)


class CatchingUp:
    """Progress of members that another has left behind, until they are where the others of this process are.

    They are counted once all of them go on from there; meanwhile what is trained is only known to be trained.
    """

    def __init__(self, watched: Watched, heart: Heart):
        self._watched, self._heart = watched, heart
        self.compiling, self.say = watched.compiling, watched.say

    def restored(self, member_steps: int) -> None:
        pass

    def advanced(self, shard: Any, task: int, member_steps: int) -> None:
        if shard.folder.parent.name == "trunks":
            self._watched.advanced(shard, task, member_steps)
        else:
            self._heart.tell(doing=f"task {task + 1}, of members that are behind")
            self._heart.count(trained=member_steps)


def beats_in(folder: Path) -> list[Beat]:
    """The attempts at a shard, in the order in which they began; what cannot be read is left out."""
    found = []
    for file in folder.glob("beats/*.json"):
        with contextlib.suppress(UserError):
            beat = _read(file)
            if beat is not None:
                found.append(beat)
    return sorted(found, key=lambda beat: (beat.started, beat.attempt))


_KINDS = {
    "attempt": str, "state": str, "host": str, "pid": int, "started": float, "beat": float, "total": int, "done": int,
    "trained": int, "doing": str, "environment": dict,
}  # fmt: skip


def _read(file: Path) -> Beat | None:
    held = read_json(file, _KINDS)
    rest = {name: held[name] for name in ("exit_code", "error", "group", "process", "processes") if name in held}
    kinds = {"exit_code": int | None, "error": str | None, "group": str, "process": int, "processes": int}
    if not all(isinstance(value, kinds[name]) for name, value in rest.items()):
        return None
    return Beat(**{name: held[name] for name in _KINDS}, **rest)

"""Progress for people and for logs: which group, which task, member-steps a second, time left."""

import sys
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cl_jax.plan import Shard

LOG_SECONDS = 10.0  # between two lines in a log


class Stopped(Exception):
    """Raised in a shard's thread when the run is being stopped."""


class Bar:
    """A bar in a terminal, a plain line now and then elsewhere, nothing when quiet."""

    def __init__(self, total_member_steps: int, *, quiet: bool = False):
        self._console = Console(stderr=True, quiet=quiet)
        self._live = not quiet and self._console.is_terminal
        self._quiet, self._total, self._done = quiet, max(total_member_steps, 1), 0
        self._start, self._trained, self._last_line = time.monotonic(), 0, 0.0
        self._lock, self._stopped = threading.Lock(), False
        self._bar = Progress(
            TextColumn("{task.description:<44.44}", markup=False), BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
            console=self._console, disable=not self._live,
        )  # fmt: skip
        self._task: TaskID = self._bar.add_task("starting", total=self._total, rate="")

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    @property
    def trained(self) -> int:
        """Member-steps trained since the start, restored ones not among them."""
        return self._trained

    def stop(self) -> None:
        """Every shard that reports from now on is stopped there."""
        self._stopped = True

    def compiling(self, shard: Shard) -> None:
        self._show(f"compiling {shard.members[0].entry.label} ({len(shard.members)} members)", force=True)

    def restored(self, member_steps: int) -> None:
        """Steps that an earlier run trained: done, and nothing to reckon the speed by."""
        with self._lock:
            self._done += member_steps

    def spared(self, member_steps: int) -> None:
        """Steps that nobody will train after all."""
        with self._lock:
            self._total = max(self._total - member_steps, 1)

    def advanced(self, shard: Shard, task: int, member_steps: int) -> None:
        label, run = shard.members[0].entry.label, shard.members[0].entry.run
        with self._lock:
            self._done += member_steps
            self._trained += member_steps
        self._show(f"{label}, task {min(task + 1, run.stream.num_tasks)} of {run.stream.num_tasks}")

    def say(self, message: str) -> None:
        if not self._quiet:
            self._console.print(message, markup=False, highlight=False, soft_wrap=not self._live)  # logs have no width

    def _show(self, text: str, force: bool = False) -> None:
        if self._stopped:
            raise Stopped
        with self._lock:
            now = time.monotonic()
            rate = self._trained / max(now - self._start, 1e-9)
            shown = f"{rate:,.0f} steps/s"
            if self._live:
                self._bar.update(self._task, description=text, completed=self._done, total=self._total, rate=shown)
            elif not self._quiet and (force or now - self._last_line > LOG_SECONDS):
                left = f"  {shown}  {(self._total - self._done) / rate:.0f} s left" if rate else ""
                share = 100 * self._done / self._total
                print(f"{share:3.0f}%  {text}{left}", file=sys.stderr, flush=True)
                self._last_line = now

"""Progress for people and for logs: conversations done, how many a second, time left."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cl_jax.progress import LOG_SECONDS


class Bar:
    """A bar in a terminal, a plain line now and then elsewhere, nothing when quiet.

    Args:
        total: conversations.
    """

    def __init__(self, name: str, total: int, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._live = not quiet and self._console.is_terminal
        self._quiet, self._name, self._total, self._before, self._done = quiet, name, total, 0, 0
        self._start, self._last_line = time.monotonic(), -LOG_SECONDS
        self._bar = Progress(
            TextColumn("{task.description:<30.30}", markup=False), BarColumn(bar_width=None),
            TextColumn("{task.completed} of {task.total}  {task.fields[rate]}"), TimeRemainingColumn(),
            console=self._console, disable=not self._live,
        )  # fmt: skip
        self._task: TaskID = self._bar.add_task(name, total=total, rate="")

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    @property
    def speed(self) -> dict[str, float | int]:
        """What this process has done."""
        done, seconds = self._done - self._before, time.monotonic() - self._start
        return {"conversations": done, "seconds": round(seconds, 1), "per_second": round(done / max(seconds, 1e-9), 2)}

    def say(self, message: str) -> None:
        if not self._quiet:
            self._console.print(message, markup=False, highlight=False)

    def restored(self, done: int) -> None:
        """So many were done by an earlier process, which says nothing of the speed."""
        self._before = self._done = done
        self._start = time.monotonic()
        self._bar.update(self._task, completed=done)

    def advanced(self, done: int) -> None:
        """So many conversations are done in all."""
        self._done, now = done, time.monotonic()
        rate = (done - self._before) / max(now - self._start, 1e-9)
        if self._live:
            self._bar.update(self._task, completed=done, rate=f"{rate:.1f}/s")
        elif not self._quiet and (now - self._last_line > LOG_SECONDS or done == self._total):
            left = (self._total - done) / rate
            told = f"{self._name}  {done} of {self._total} conversations  {rate:.1f}/s  {left:.0f} s left"
            print(f"{100 * done / self._total:3.0f}%  {told}", file=sys.stderr, flush=True)
            self._last_line = now

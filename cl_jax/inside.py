"""Inside a task: how far each member of a shard is in it, and how a process that is told to go leaves from there.

A wave is trained in calls of a few seconds. Between two of them the process may be asked to leave: it saves the state
of every member and how many of the task's steps that member has behind it, and whoever takes the shard up goes on from
exactly there; of steps so slow that a chunk of them takes several calls, from the beginning of the chunk. Steps and
batches are addressed by task and step, so that nothing else has to be known.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cl_jax.checkpoint import Checkpoints
from cl_jax.compiled import Wave
from cl_jax.waves import Crew, Host, gathered, host_like, muster, to_host

ENDED = -1  # the member has the task behind it, or takes no part in it


class Leaving(Exception):
    """The process was told to go; what the shard had come to is saved."""


class When(NamedTuple):
    """When a shard is saved inside a task."""

    leave: Callable[[], bool]  # whether this process is to leave
    every: float = math.inf  # seconds after which it is saved anyway, for a process that is killed without notice
    # Told the folder of a shard when something in it is committed, which then is at once; None: nobody is.
    committed: Callable[[Path], None] | None = None

    def tell(self, folder: Path) -> None:
        """That something in it is committed."""
        if self.committed is not None:
            self.committed(folder)


NEVER = When(lambda: False)


class Part(NamedTuple):
    """Members that are equally far in a task, as many as one call trains."""

    wave: Wave
    begin: int  # steps of the task behind them


def parts_of(crew: Crew, behind: np.ndarray) -> list[Part]:
    """What is left of a task, the furthest first.

    Args:
        behind: int32 [members], steps of the task behind each, or ENDED.
    """
    counts = sorted(set(behind[behind >= 0].tolist()), reverse=True)
    return [Part(wave, begin) for begin in counts for wave in muster(crew, np.flatnonzero(behind == begin))]


class Exit:
    """The way out of one task.

    Args:
        before: state of every member when this process took the task up; None: before its first step.
        behind: int32 [members], as `parts_of` was given it.
        when: to save, and to leave.
        save: told the state of every member and `behind`; returns when it is safe.
    """

    def __init__(
        self, crew: Crew, before: Host | None, behind: np.ndarray, when: When,
        save: Callable[[Host, np.ndarray], None],
    ):  # fmt: skip
        self._crew, self._before, self._behind = crew, before, behind.copy()
        self._when, self._save, self._saved = when, save, time.monotonic()
        self._waves: list[Wave] = []
        self._ended: list[Host] = []

    def ended(self, wave: Wave, state: Any) -> None:
        """A wave has the task behind it."""
        self._waves.append(wave)
        self._ended.append(to_host(wave, state))
        self._behind[wave.places] = ENDED

    def state(self) -> Host:
        """Of every member, those that took no part included, once all waves have ended."""
        if not self._waves:
            return self._before
        return gathered(self._waves, self._ended, self._before, len(self._crew.members))

    def before(self, part: Part) -> None:
        """Leaves before a wave's next step, if asked to. Raises Leaving."""
        if self._when.leave():
            if self._waves:  # else nothing is behind the shard that is not saved
                self._save(self._merged(self._waves, self._ended), self._behind)
                self._when.tell(self._crew.shard.folder)
            raise Leaving

    def within(self, part: Part) -> "Within":
        """The same inside a wave, for `train_task`; and saves where it is time to."""
        return Within(self, part)

    def leave(self) -> bool:
        """Whether this process is to leave."""
        return self._when.leave()

    def told(self, part: Part, state: Any, step: int) -> None:
        """Of a wave inside the task, and the steps behind it. Raises Leaving."""
        leave = self.leave()
        if leave or time.monotonic() - self._saved >= self._when.every:
            behind = self._behind.copy()
            behind[part.wave.places] = step
            waves, states = [*self._waves, part.wave], [*self._ended, to_host(part.wave, state)]
            self._save(self._merged(waves, states), behind)
            self._when.tell(self._crew.shard.folder)
            self._saved = time.monotonic()
        if leave:
            raise Leaving

    def _merged(self, waves: Sequence[Wave], states: Sequence[Host]) -> Host:
        """Members that have not begun, where nothing is known of them, are given zeros: they will begin."""
        before = host_like(self._crew) if self._before is None else self._before
        return gathered(waves, states, before, len(self._crew.members))


class Within:
    """An `Exit` for one wave, see `cl_jax.waves.Between`."""

    def __init__(self, way: Exit, part: Part):
        self._way, self._part = way, part

    def leave(self) -> bool:
        return self._way.leave()

    def __call__(self, state: Any, step: int) -> None:
        self._way.told(self._part, state, step)


def how_far(behind: np.ndarray, steps: int) -> int:
    """For the number of a step inside a task: grows with every step that any member trains."""
    return 1 + int(np.where(behind == ENDED, steps + 1, behind).astype(np.int64).sum())


def trained(behind: np.ndarray, steps: int, part_in: np.ndarray) -> int:
    """Member-steps of a task behind the members that take part in it (bool [members])."""
    return int(np.where(behind == ENDED, steps, behind)[part_in].astype(np.int64).sum())


def in_words(behind: np.ndarray) -> str:
    """How far the furthest member is that has not ended."""
    left = np.asarray(behind)[np.asarray(behind) != ENDED]
    return f"{len(left)} members from step {left.max(initial=0)} on"


def save(checkpoints: Checkpoints, tasks: int, state: Any, behind: np.ndarray, steps: int) -> None:
    """Saves what `like` describes; returns when it is committed."""
    checkpoints.save_inside(tasks, how_far(behind, steps), {**state, "behind": behind})


def like(state: Any, num_members: int) -> Any:
    """The shapes of what is saved inside a task, by those of what is saved at a boundary."""
    return {**state, "behind": np.zeros(num_members, np.int32)}

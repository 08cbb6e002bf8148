"""Runs a shard: its members wave by wave, a checkpoint at every task boundary.

The order at a boundary is law: train, end_task, evaluate, append the row, save, wait until committed, publish.
"""

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cl_jax.checkpoint import KEPT_STEPS, Checkpoints
from cl_jax.compiled import Programs
from cl_jax.data import Data
from cl_jax.diagnostics import notes
from cl_jax.errors import UserError, disk_error
from cl_jax.origin import Forks
from cl_jax.plan import Shard, begin
from cl_jax.standing import Standing, finish, first_record, publish, restored, save
from cl_jax.standing import read_record as read_record
from cl_jax.trunk import Start, Trunks, begun
from cl_jax.waves import (
    Crew,
    Progress,
    crew_of,
    end_task,
    first_states,
    gathered,
    muster,
    on_devices,
    prepare,
    to_host,
    train_task,
)


class Stage(NamedTuple):
    """The part of a run up to a boundary that all shards have to reach before any goes on."""

    until: int | None = None  # the boundary; None: the end
    since: int = 0  # boundary that this process has brought all shards to
    stopped: Mapping[str, int] = {}  # by member's id, the boundary at which it stops
    attempt: str | None = None  # of this process, see `Checkpoints`


WHOLE = Stage()


def run_shard(
    shard: Shard, data: Data, progress: Progress, programs: Programs, trunks: Trunks | None = None, *,
    forks: Forks | None = None, keep: int | None = KEPT_STEPS, stage: Stage = WHOLE,
) -> None:  # fmt: skip
    """Trains a shard from its newest good checkpoint to the end of the stage; does nothing where it is done.

    Args:
        trunks: what trains the first task of members that cannot differ before its end; None: the shard does.
        forks: the boundary of an earlier run that the members continue from; None: they start at the beginning.
        keep: boundaries whose checkpoints stay, see `Checkpoints`.

    Raises:
        UserError: the disk is full or not writable; nothing that was committed is lost.
    """
    if shard.done:
        return
    try:
        _run(shard, data, progress, programs, trunks, forks, keep, stage)
    except Exception as error:
        reason = disk_error(error)
        if reason is None:
            raise
        raise UserError(
            f"{shard.folder}: cannot write ({reason}); committed tasks are safe: make room and run again"
        ) from error


def _run(
    shard: Shard, data: Data, progress: Progress, programs: Programs, trunks: Trunks | None, forks: Forks | None,
    keep: int | None, stage: Stage,
) -> None:  # fmt: skip
    begin(shard)
    crew = crew_of(shard, data, programs)
    num_tasks = shard.members[0].entry.run.stream.num_tasks
    ends = np.array([stage.stopped.get(member.id, num_tasks) for member in shard.members])
    last = min(stage.until or num_tasks, ends.max())
    checkpoints = Checkpoints(shard.folder, progress.say, keep, stage.attempt)
    try:
        standing = restored(crew, checkpoints)
        start, pending = None, None
        if standing is None or standing.tasks < last:
            if stage.since == 0:
                progress.compiling(shard)
            prepare(crew)
        if standing is not None:
            if standing.tasks > stage.since:
                progress.say(f"{shard.folder.name}: continues after task {standing.tasks} of {num_tasks}")
            elsewhere = forks.task if forks is not None else int(trunks is not None and trunks.train(shard))
            before = np.minimum(standing.tasks, ends) - max(elsewhere, stage.since)
            progress.restored(int(np.maximum(before, 0).sum()) * shard.members[0].entry.run.steps)
        elif forks is not None:
            progress.say(f"{shard.folder.name}: begins from {forks.words}, {num_tasks} tasks in all")
            standing = forks.standing(crew)
            standing = standing._replace(notes=notes.begun(crew, standing.state, standing.tasks))
            pending = standing
            save(standing, checkpoints)
        else:
            standing = Standing(0, None, first_record(crew), notes.blank(crew))
            start = trunks.start(shard, data, progress, programs) if trunks is not None else None
        for task in range(standing.tasks, last):
            standing = _one_task(crew, standing, task, ends, progress, start if task == 0 else None)
            if pending is not None:
                checkpoints.wait()
                publish(shard, pending, ends)
            save(standing, checkpoints)
            pending = standing
        checkpoints.wait()
        publish(shard, standing, ends)
        if standing.tasks >= ends.max():
            finish(shard)
    finally:
        checkpoints.close()
        programs.make_room()


def _one_task(
    crew: Crew, before: Standing, task: int, ends: np.ndarray, progress: Progress, start: Start | None
) -> Standing:
    """Trains, ends and evaluates a task for every member that goes on and has not diverged.

    The row of a diverged member is repeated, unless the next one is of other tasks; one that has stopped gets none.

    Args:
        ends: int [members], see `publish`.
        start: what the task's training has come to already.
    """
    going = ends > task
    diverged = going & (False if before.state is None else before.state.diverged)
    rests = diverged if crew.members[0].entry.run.recent is None else np.zeros_like(diverged)
    record, written = before.record.copy(), None if before.notes is None else before.notes.copy()
    record[going, task + 1] = record[going, task]
    waves, parts = muster(crew, np.flatnonzero(going & ~rests)), []
    for wave in waves:
        with crew.programs.busy:
            if before.state is None:
                state = first_states(crew, wave)
                notes.write(crew, wave, written, state, None, 0)
            else:
                state = on_devices(crew, wave, before.state)
            began = time.perf_counter() if start is None else math.nan
            if start is None:
                state = train_task(crew, wave, state, task, progress)
            else:
                state = begun(crew, wave, state, start)
            state, shown, row = end_task(crew, wave, state, task)
            record[wave.places, task + 1] = to_host(wave, row)
            seconds = (time.perf_counter() - began) / len(wave.places)
            notes.write(crew, wave, written, state, shown, task + 1, seconds)
            parts.append(to_host(wave, state))
    progress.restored(int(rests.sum()) * crew.members[0].entry.run.steps_in(task))
    host = gathered(waves, parts, before.state, len(crew.members)) if waves else before.state
    return Standing(task + 1, host, record, written)

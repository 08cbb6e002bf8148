"""Runs a shard: its members wave by wave, a checkpoint at every task boundary.

The order at a boundary is law: train, end_task, evaluate, append the row, save, wait until committed, publish.
"""

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cl_jax import inside
from cl_jax.checkpoint import KEPT_STEPS, Checkpoints
from cl_jax.compiled import Programs
from cl_jax.data import Data
from cl_jax.diagnostics import notes
from cl_jax.errors import UserError, disk_error
from cl_jax.origin import Forks
from cl_jax.plan import Shard, begin
from cl_jax.standing import Standing, finish, first_record, publish, restored, save, save_inside
from cl_jax.standing import read_record as read_record
from cl_jax.trunk import Start, Trunks, begun
from cl_jax.waves import (
    Crew,
    Host,
    Progress,
    crew_of,
    end_task,
    first_states,
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
    when: inside.When = inside.NEVER  # shards are saved inside a task


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
        Leaving: asked to leave; what was trained is saved.
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
    ids = [member.id for member in shard.members]
    checkpoints = Checkpoints(shard.folder, progress.say, keep, stage.attempt, ids)
    try:
        standing = restored(crew, checkpoints)
        way_out = _WayOut(checkpoints, stage.when)
        start, pending = None, None
        if standing is None or standing.tasks < last:
            if stage.since == 0:
                progress.compiling(shard)
            prepare(crew)
        if standing is not None:
            if standing.tasks > stage.since or standing.behind is not None:
                progress.say(f"{shard.folder.name}: {_continues(standing)} of {num_tasks}")
            elsewhere = forks.task if forks is not None else int(trunks is not None and trunks.train(shard))
            before = np.minimum(standing.tasks, ends) - max(elsewhere, stage.since)
            steps = shard.members[0].entry.run.steps
            progress.restored(int(np.maximum(before, 0).sum()) * steps)
            if standing.behind is not None and standing.tasks >= elsewhere:
                progress.restored(inside.trained(standing.behind, steps, ends > standing.tasks))
        elif forks is not None:
            progress.say(f"{shard.folder.name}: begins from {forks.words}, {num_tasks} tasks in all")
            standing = forks.standing(crew)
            standing = standing._replace(notes=notes.begun(crew, standing.state, standing.tasks))
            pending = standing
            save(standing, checkpoints)
        else:
            standing = Standing(0, None, first_record(crew), notes.blank(crew))
        if standing.tasks == 0 and trunks is not None:
            start = trunks.start(shard, data, progress, programs)
        try:
            for task in range(standing.tasks, last):
                if shard.done:  # by another process meanwhile
                    checkpoints.wait()
                    return
                standing = _one_task(crew, standing, (task, ends), progress, start if task == 0 else None, way_out)
                if pending is not None:
                    _committed(shard, pending, ends, checkpoints)
                save(standing, checkpoints)
                pending = standing
                if stage.when.committed is not None:  # the next task may take hours
                    _committed(shard, pending, ends, checkpoints)
                    stage.when.tell(shard.folder)
                    pending = None
        except inside.Leaving:
            if pending is not None:
                _committed(shard, pending, ends, checkpoints)
            raise
        _committed(shard, standing, ends, checkpoints)
        if standing.tasks >= ends.max():
            finish(shard, standing, ends)
    finally:
        checkpoints.close()
        programs.make_room()


def _committed(shard: Shard, standing: Standing, ends: np.ndarray, checkpoints: Checkpoints) -> None:
    """Waits for a boundary's checkpoint, and then publishes it."""
    checkpoints.wait()
    checkpoints.forget_inside(standing.tasks)
    publish(shard, standing, ends)


def _continues(standing: Standing) -> str:
    if standing.behind is None:
        return f"continues after task {standing.tasks}"
    return f"continues inside task {standing.tasks + 1}, {inside.in_words(standing.behind)},"


class _WayOut(NamedTuple):
    """How a process leaves inside a task."""

    checkpoints: Checkpoints
    when: inside.When


def _one_task(
    crew: Crew, before: Standing, at: tuple[int, np.ndarray], progress: Progress, start: Start | None, way_out: _WayOut
) -> Standing:
    """Trains, ends and evaluates a task for every member that goes on and has not diverged.

    The row of a diverged member is repeated, unless the next one is of other tasks; one that has stopped gets none.

    Args:
        at: the task, and int [members], see `publish`.
        start: what the task's training has come to already.
    """
    (task, ends), steps = at, crew.members[0].entry.run.steps
    record, written = before.record.copy(), None if before.notes is None else before.notes.copy()
    behind = before.behind
    if behind is None:
        going = ends > task
        diverged = going & (False if before.state is None else before.state.diverged)
        rests = diverged if crew.members[0].entry.run.recent is None else np.zeros_like(diverged)
        record[going, task + 1] = record[going, task]
        behind = np.where(going & ~rests, 0, inside.ENDED).astype(np.int32)
        progress.restored(int(rests.sum()) * crew.members[0].entry.run.steps_in(task))

    def save(state: Host, behind: np.ndarray) -> None:
        save_inside(Standing(task, state, record, written, behind), way_out.checkpoints, steps)

    way = inside.Exit(crew, before.state, behind, way_out.when, save)
    for part in inside.parts_of(crew, behind):
        wave = part.wave
        way.before(part)
        with crew.programs.busy:
            if task == 0 and part.begin == 0:
                state = first_states(crew, wave)
                notes.write(crew, wave, written, state, None, 0)
            else:
                state = on_devices(crew, wave, before.state)
            began = time.perf_counter() if start is None and part.begin == 0 else math.nan
            if start is None:
                state = train_task(crew, wave, state, task, progress, part.begin, way.within(part))
            else:
                state = begun(crew, wave, state, start)
            state, shown, row = end_task(crew, wave, state, task)
            record[wave.places, task + 1] = to_host(wave, row)
            seconds = (time.perf_counter() - began) / len(wave.places)
            notes.write(crew, wave, written, state, shown, task + 1, seconds)
            way.ended(wave, state)
    return Standing(task + 1, way.state(), record, written)

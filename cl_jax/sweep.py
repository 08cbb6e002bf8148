"""Runs a shard: its members wave by wave, a checkpoint at every task boundary.

The order at a boundary is law: train, end_task, evaluate, append the row, save, wait until committed, publish.
"""

import numpy as np

from cl_jax.checkpoint import KEPT_STEPS, Checkpoints
from cl_jax.compiled import Programs
from cl_jax.data import Data
from cl_jax.errors import UserError, disk_error
from cl_jax.origin import Forks
from cl_jax.plan import Shard, begin
from cl_jax.standing import Standing, finish, first_record, publish, restored, save
from cl_jax.standing import read_record as read_record
from cl_jax.trunk import Start, Trunks
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


def run_shard(
    shard: Shard, data: Data, progress: Progress, programs: Programs, trunks: Trunks | None = None, *,
    forks: Forks | None = None, keep: int | None = KEPT_STEPS,
) -> None:  # fmt: skip
    """Trains a shard from its newest good checkpoint to the end; does nothing where it is done.

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
        _run(shard, data, progress, programs, trunks, forks, keep)
    except Exception as error:
        reason = disk_error(error)
        if reason is None:
            raise
        raise UserError(
            f"{shard.folder}: cannot write ({reason}); committed tasks are safe: make room and run again"
        ) from error


def _run(
    shard: Shard, data: Data, progress: Progress, programs: Programs, trunks: Trunks | None, forks: Forks | None,
    keep: int | None,
) -> None:  # fmt: skip
    begin(shard)
    progress.compiling(shard)
    crew = crew_of(shard, data, programs)
    prepare(crew)
    num_tasks, count = shard.members[0].entry.run.stream.num_tasks, len(shard.members)
    elsewhere = forks.task if forks is not None else int(trunks is not None and trunks.train(shard))
    checkpoints = Checkpoints(shard.folder, progress.say, keep)
    try:
        standing = restored(crew, checkpoints)
        start, pending = None, None
        if standing is not None:
            progress.say(f"{shard.folder.name}: continues after task {standing.tasks} of {num_tasks}")
            progress.restored((standing.tasks - elsewhere) * shard.members[0].entry.run.steps * count)
        elif forks is not None:
            progress.say(f"{shard.folder.name}: begins from {forks.words}, {num_tasks} tasks in all")
            pending = standing = forks.standing(crew)
            save(standing, checkpoints)
        else:
            standing = Standing(0, None, first_record(crew))
            start = trunks.start(shard, data, progress, programs) if trunks is not None else None
        for task in range(standing.tasks, num_tasks):
            standing = _one_task(crew, standing, task, progress, start if task == 0 else None)
            if pending is not None:
                checkpoints.wait()
                publish(shard, pending)
            save(standing, checkpoints)
            pending = standing
        checkpoints.wait()
        publish(shard, standing)
        finish(shard)
    finally:
        checkpoints.close()


def _one_task(crew: Crew, before: Standing, task: int, progress: Progress, start: Start | None) -> Standing:
    """Trains, ends and evaluates a task for every member that has not diverged; a diverged one's row is repeated.

    Args:
        start: what the task's training has come to already.
    """
    count = len(crew.members)
    diverged = np.zeros(count, bool) if before.state is None else before.state.diverged
    record = before.record.copy()
    record[:, task + 1] = record[:, task]
    waves, parts = muster(crew, np.flatnonzero(~diverged)), []
    for wave in waves:
        with crew.programs.busy:
            state = first_states(crew, wave) if before.state is None else on_devices(crew, wave, before.state)
            if start is None:
                state = train_task(crew, wave, state, task, progress)
            else:
                state = state._replace(**on_devices(crew, wave, start)._asdict())
            state, row = end_task(crew, wave, state, task)
            parts.append(to_host(wave, state))
            record[wave.places, task + 1] = to_host(wave, row)
    progress.restored(int(diverged.sum()) * crew.members[0].entry.run.steps)
    return Standing(task + 1, gathered(waves, parts, before.state, count) if waves else before.state, record)

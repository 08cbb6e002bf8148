"""Runs a shard: its members wave by wave, a checkpoint at every task boundary.

The order at a boundary is law: train, end_task, evaluate, append the row, save, wait until committed, publish.
"""

import hashlib
import io
from typing import NamedTuple

import jax
import numpy as np

from cl_jax.checkpoint import Checkpoints
from cl_jax.compiled import Programs
from cl_jax.data import Data
from cl_jax.errors import UserError, disk_error
from cl_jax.evaluate import EVALUATED, METRICS
from cl_jax.plan import Shard, begin
from cl_jax.results import Record, read_json, read_shard, write_atomically, write_json
from cl_jax.results import read_record as read_record_file
from cl_jax.trunk import Start, Trunks
from cl_jax.waves import (
    Crew,
    Host,
    Progress,
    crew_of,
    end_task,
    first_states,
    gathered,
    host_like,
    muster,
    on_devices,
    prepare,
    to_host,
    train_task,
)


class Standing(NamedTuple):
    """Where a shard stands between two tasks."""

    tasks: int  # boundaries behind it
    state: Host  # TrainState of every member, [members, ...]; None before the first boundary
    record: np.ndarray  # float32 [members, T + 1, splits, metrics, T]


def run_shard(shard: Shard, data: Data, progress: Progress, programs: Programs, trunks: Trunks | None = None) -> None:
    """Trains a shard from its newest good checkpoint to the end; does nothing where it is done.

    Args:
        trunks: what trains the first task of members that cannot differ before its end; None: the shard does.

    Raises:
        UserError: the disk is full or not writable; nothing that was committed is lost.
    """
    if shard.done:
        return
    try:
        _run(shard, data, progress, programs, trunks)
    except Exception as error:
        reason = disk_error(error)
        if reason is None:
            raise
        raise UserError(
            f"{shard.folder}: cannot write ({reason}); committed tasks are safe: make room and run again"
        ) from error


def _run(shard: Shard, data: Data, progress: Progress, programs: Programs, trunks: Trunks | None) -> None:
    begin(shard)
    progress.compiling(shard)
    crew = crew_of(shard, data, programs)
    prepare(crew)
    num_tasks, count = shard.members[0].entry.run.stream.num_tasks, len(shard.members)
    checkpoints = Checkpoints(shard.folder, progress.say)
    try:
        standing = _restored(crew, checkpoints)
        start = None
        if standing is None:
            standing = Standing(0, None, _first_record(crew))
            start = trunks.start(shard, data, progress, programs) if trunks is not None else None
        else:
            progress.say(f"{shard.folder.name}: continues after task {standing.tasks} of {num_tasks}")
            own = standing.tasks - (trunks is not None and trunks.train(shard))
            progress.restored(own * shard.members[0].entry.run.steps * count)
        pending: Standing | None = None
        for task in range(standing.tasks, num_tasks):
            standing = _one_task(crew, standing, task, progress, start if task == 0 else None)
            if pending is not None:
                checkpoints.wait()
                _publish(shard, pending)
            checkpoints.save(task + 1, {"state": standing.state._asdict(), "record": standing.record})
            pending = standing
        checkpoints.wait()
        _publish(shard, standing)
        sha = hashlib.sha256((shard.folder / "record.npz").read_bytes()).hexdigest()
        write_json(shard.folder / "DONE.json", {"record_sha256": sha})
    finally:
        checkpoints.close()


def _first_record(crew: Crew) -> np.ndarray:
    num_tasks = crew.members[0].entry.run.stream.num_tasks
    record = np.full((len(crew.members), num_tasks + 1, len(EVALUATED), len(METRICS), num_tasks), np.nan, np.float32)
    record[:, 0] = np.stack([world.row for world in crew.worlds])
    return record


def _restored(crew: Crew, checkpoints: Checkpoints) -> Standing | None:
    """The newest good checkpoint."""
    record = _first_record(crew)
    like = host_like(crew)
    found = checkpoints.restore({"state": like._asdict(), "record": record})
    if found is None:
        return None
    tasks, kept = found
    return Standing(tasks, type(like)(**jax.tree.map(np.asarray, kept["state"])), np.array(kept["record"]))


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


def _publish(shard: Shard, standing: Standing) -> None:
    """The shard's part of the results, once the checkpoint that it came from is committed."""
    buffer = io.BytesIO()
    count = len(shard.members)
    record = Record(
        record=standing.record,
        diverged=standing.state.diverged,
        rows_done=np.full(count, standing.tasks + 1, np.int32),
        stopped=np.zeros(count, bool),
    )
    np.savez(buffer, **record._asdict())
    write_atomically(shard.folder / "record.npz", buffer.getvalue())


def read_record(shard: Shard) -> Record | None:
    """What the shard's members have measured, in their order; None: nothing yet.

    Raises:
        UserError: a finished record does not match its sha256, or a file of the shard is broken.
    """
    path = shard.folder / "record.npz"
    if not path.is_file() and not shard.done:
        return None
    sha256 = read_json(shard.folder / "DONE.json", {"record_sha256": str})["record_sha256"] if shard.done else None
    ids, _, _ = read_shard(shard.folder / "shard.json")
    read = read_record_file(path, len(ids), sha256)
    at = [ids.index(member.id) for member in shard.members]
    return Record(*(array[at] for array in read))

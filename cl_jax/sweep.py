"""Runs a shard: its members side by side in one program, a checkpoint at every task boundary.

The order at a boundary is law: train, end_task, evaluate, append the row, save, wait until committed, publish.
"""

import hashlib
import io
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.checkpoint import Checkpoints
from cl_jax.compiled import Programs, stack
from cl_jax.data import Data
from cl_jax.errors import UserError, disk_error
from cl_jax.evaluate import EVALUATED, METRICS
from cl_jax.plan import Shard, begin
from cl_jax.results import Record, read_json, read_shard, write_atomically, write_json
from cl_jax.results import read_record as read_record_file

CHUNK_STEPS = 250  # steps between two reports of progress


class Progress(Protocol):
    """Where a shard reports to."""

    def compiling(self, shard: Shard) -> None: ...
    def restored(self, member_steps: int) -> None: ...
    def advanced(self, shard: Shard, task: int, member_steps: int) -> None: ...
    def say(self, message: str) -> None: ...


def chunk_steps(steps: int, most: int = CHUNK_STEPS) -> int:
    """The largest divisor of `steps` up to `most`, or all steps where that would be tiny: one shape, one compile."""
    best = max(size for size in range(1, min(steps, most) + 1) if steps % size == 0)
    return best if best * 10 >= min(steps, most) else steps


def run_shard(shard: Shard, data: Data, progress: Progress, programs: Programs) -> None:
    """Trains a shard from its newest good checkpoint to the end; does nothing where it is done.

    Raises:
        UserError: the disk is full or not writable; nothing that was committed is lost.
    """
    if shard.done:
        return
    try:
        _run(shard, data, progress, programs)
    except Exception as error:
        reason = disk_error(error)
        if reason is None:
            raise
        raise UserError(
            f"{shard.folder}: cannot write ({reason}); committed tasks are safe: make room and run again"
        ) from error


def _run(shard: Shard, data: Data, progress: Progress, programs: Programs) -> None:
    begin(shard)
    run, width = shard.members[0].entry.run, shard.width
    num_tasks, count = run.stream.num_tasks, len(shard.members)
    progress.compiling(shard)
    members = stack(shard.members, width)
    world = programs.worlds(members, data)
    state = programs.init(members, world, data, width=width)
    shape = (members.seeds.shape[0], num_tasks + 1, len(EVALUATED), len(METRICS), num_tasks)
    record = np.full(shape, np.nan, np.float32)

    checkpoints = Checkpoints(shard.folder, progress.say)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)),
        {"state": state._asdict(), "record": record},
    )
    try:
        found = checkpoints.restore(like)
        if found is None:
            first = 0
            record[:, 0] = world.row
        else:
            first, kept = found
            state = type(state)(**jax.tree.map(jnp.asarray, kept["state"]))
            record = np.array(kept["record"])
            progress.say(f"{shard.folder.name}: continues after task {first} of {num_tasks}")
        chunk = chunk_steps(run.steps)
        progress.restored(first * run.steps * count)
        pending: tuple[int, np.ndarray, np.ndarray] | None = None
        for task in range(first, num_tasks):
            for step in range(0, run.steps, chunk):
                state, losses = programs.steps(members, world, state, data, task, step, num_steps=chunk, width=width)
                jax.block_until_ready(losses)
                progress.advanced(shard, task, chunk * count)
            state, row = programs.end_task(members, world, state, data, task, width=width)
            record = record.copy()
            record[:, task + 1] = row
            if pending is not None:
                checkpoints.wait()
                _publish(shard, *pending)
            checkpoints.save(task + 1, {"state": state._asdict(), "record": record})
            pending = (task + 2, record[:count], np.asarray(state.diverged)[:count])
        checkpoints.wait()
        _publish(shard, num_tasks + 1, record[:count], np.asarray(state.diverged)[:count])
        sha = hashlib.sha256((shard.folder / "record.npz").read_bytes()).hexdigest()
        write_json(shard.folder / "DONE.json", {"record_sha256": sha})
    finally:
        checkpoints.close()


def _publish(shard: Shard, rows_done: int, record: np.ndarray, diverged: np.ndarray) -> None:
    """The shard's part of the results, once the checkpoint that it came from is committed."""
    buffer = io.BytesIO()
    count = len(diverged)
    rows_of_each, stopped = np.full(count, rows_done, np.int32), np.zeros(count, bool)
    np.savez(buffer, rows_done=rows_of_each, record=record, diverged=diverged, stopped=stopped)
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

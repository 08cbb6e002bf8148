"""Runs a shard: its members side by side in one program, a checkpoint at every task boundary.

The order at a boundary is law: train, end_task, evaluate, append the row, save, wait until committed, publish.
"""

import hashlib
import io
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax import program
from cl_jax.checkpoint import Checkpoints
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.evaluate import EVALUATED, METRICS
from cl_jax.plan import Shard, begin
from cl_jax.results import read_json, write_atomically, write_json

CHUNK_STEPS = 250  # steps between two reports of progress


class Progress(Protocol):
    """Where a shard reports to."""

    def compiling(self, shard: Shard) -> None: ...
    def advanced(self, shard: Shard, task: int, member_steps: int) -> None: ...
    def say(self, message: str) -> None: ...


class Programs:
    """The compiled programs of one static group, mapped over members; each is traced once."""

    def __init__(self, width: int, on_trace: Callable[[str], None] = lambda name: None):
        def over_members(name: str, function: Callable[..., Any], **jit: Any) -> Callable[..., Any]:
            def mapped(stacked: Any, data: Data, *shared: jax.Array, **static: int) -> Any:
                on_trace(name)
                return jax.lax.map(lambda member: function(*member, data, *shared, **static), stacked, batch_size=width)

            return jax.jit(mapped, **jit)

        self.init = over_members("init", lambda run, seed, data: program.init(run, seed, data))
        self.steps = over_members("steps", program.steps, static_argnames=("num_steps",))
        self.end_task = over_members("end_task", program.end_task)
        self.row = over_members("row", lambda run, curriculum, state, data, after: program.row(
            run, curriculum, state, data, after
        ))  # fmt: skip


def chunk_steps(steps: int, most: int = CHUNK_STEPS) -> int:
    """The largest divisor of `steps` up to `most`, or all steps where that would be tiny: one shape, one compile."""
    best = max(size for size in range(1, min(steps, most) + 1) if steps % size == 0)
    return best if best * 10 >= min(steps, most) else steps


def stack_members(shard: Shard) -> tuple[Any, jax.Array]:
    """Configurations and seeds with a leading member axis, padded to a multiple of the width by the last member."""
    members = list(shard.members)
    members += [members[-1]] * (-len(members) % shard.width)
    runs = [jax.tree.map(np.float32, member.entry.run) for member in members]
    return (
        jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *runs),
        jnp.asarray([member.seed for member in members], jnp.int32),
    )


def run_shard(shard: Shard, data: Data, progress: Progress, programs: Programs | None = None) -> None:
    """Trains a shard from its newest good checkpoint to the end; does nothing where it is done.

    Raises:
        UserError: the disk is full or not writable; nothing that was committed is lost.
    """
    if shard.done:
        return
    try:
        _run(shard, data, progress, programs or Programs(shard.width))
    except OSError as error:
        raise UserError(
            f"{shard.folder}: cannot write ({error}); committed tasks are safe: make room and run again"
        ) from error


def _run(shard: Shard, data: Data, progress: Progress, programs: Programs) -> None:
    begin(shard)
    run = shard.members[0].entry.run
    num_tasks = run.stream.num_tasks
    runs, seeds = stack_members(shard)
    count = len(shard.members)
    progress.compiling(shard)
    curriculum, state = programs.init((runs, seeds), data)
    shape = (seeds.shape[0], num_tasks + 1, len(EVALUATED), len(METRICS), num_tasks)
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
            record[:, 0] = programs.row((runs, curriculum, state), data, jnp.int32(0))
        else:
            first, kept = found
            state = type(state)(**jax.tree.map(jnp.asarray, kept["state"]))
            record = np.array(kept["record"])
            progress.say(f"{shard.folder.name}: continues after task {first} of {num_tasks}")
        chunk = chunk_steps(run.steps)
        progress.advanced(shard, first, first * run.steps * count)
        pending: tuple[int, np.ndarray, np.ndarray] | None = None
        for task in range(first, num_tasks):
            for step in range(0, run.steps, chunk):
                state, losses = programs.steps(
                    (runs, seeds, curriculum, state), data, jnp.int32(task), jnp.int32(step), num_steps=chunk
                )
                jax.block_until_ready(losses)
                progress.advanced(shard, task, chunk * count)
            state = programs.end_task((runs, seeds, curriculum, state), data, jnp.int32(task))
            record = record.copy()
            record[:, task + 1] = programs.row((runs, curriculum, state), data, jnp.int32(task + 1))
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
    np.savez(buffer, rows_done=np.int32(rows_done), record=record, diverged=diverged)
    write_atomically(shard.folder / "record.npz", buffer.getvalue())


def read_record(shard: Shard) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Record and divergence flags of the shard's members, and the number of rows that hold values; None: none yet.

    Raises:
        UserError: a finished record does not match its sha256.
    """
    path = shard.folder / "record.npz"
    if not path.is_file():
        return None
    content = path.read_bytes()
    if shard.done and hashlib.sha256(content).hexdigest() != read_json(shard.folder / "DONE.json")["record_sha256"]:
        raise UserError(f"{path}: does not match its sha256; remove the folder {shard.folder} and run again")
    ids = read_json(shard.folder / "shard.json")["members"]
    at = [ids.index(member.id) for member in shard.members]
    with np.load(io.BytesIO(content), allow_pickle=False) as read:
        return read["record"][at], read["diverged"][at], int(read["rows_done"])

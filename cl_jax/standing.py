"""Where a shard stands between two tasks: what is kept of it, what is published, what is read again."""

import hashlib
import io
from typing import NamedTuple

import jax
import numpy as np

from cl_jax.checkpoint import Checkpoints
from cl_jax.evaluate import EVALUATED, METRICS
from cl_jax.plan import Shard
from cl_jax.results import Record, read_json, read_shard, write_atomically, write_json
from cl_jax.results import read_record as read_record_file
from cl_jax.waves import Crew, Host, host_like


class Standing(NamedTuple):
    """A shard between two tasks."""

    tasks: int  # boundaries behind it
    state: Host  # TrainState of every member, [members, ...]; None before the first boundary
    record: np.ndarray  # float32 [members, T + 1, splits, metrics, T]


def first_record(crew: Crew) -> np.ndarray:
    """The record before any training: one row, the rest NaN."""
    num_tasks = crew.members[0].entry.run.stream.num_tasks
    record = np.full((len(crew.members), num_tasks + 1, len(EVALUATED), len(METRICS), num_tasks), np.nan, np.float32)
    record[:, 0] = np.stack([world.row for world in crew.worlds])
    return record


def restored(crew: Crew, checkpoints: Checkpoints) -> Standing | None:
    """From the newest good checkpoint."""
    like = host_like(crew)
    found = checkpoints.restore({"state": like._asdict(), "record": first_record(crew)})
    if found is None:
        return None
    tasks, kept = found
    return Standing(tasks, type(like)(**jax.tree.map(np.asarray, kept["state"])), np.array(kept["record"]))


def save(standing: Standing, checkpoints: Checkpoints) -> None:
    """Starts saving what `restored` reads."""
    checkpoints.save(standing.tasks, {"state": standing.state._asdict(), "record": standing.record})


def publish(shard: Shard, standing: Standing, ends: np.ndarray) -> None:
    """The shard's part of the results, once the checkpoint that it came from is committed.

    Args:
        ends: int [members], tasks after which each member stops; that of a member that does not is T.
    """
    buffer = io.BytesIO()
    num_tasks = standing.record.shape[-1]
    record = Record(
        record=standing.record,
        diverged=standing.state.diverged,
        rows_done=(np.minimum(standing.tasks, ends) + 1).astype(np.int32),
        stopped=(ends < num_tasks) & (ends <= standing.tasks),
    )
    np.savez(buffer, **record._asdict())
    write_atomically(shard.folder / "record.npz", buffer.getvalue())


def finish(shard: Shard) -> None:
    """Marks the shard as done, with the digest of what it published."""
    sha = hashlib.sha256((shard.folder / "record.npz").read_bytes()).hexdigest()
    write_json(shard.folder / "DONE.json", {"record_sha256": sha})


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

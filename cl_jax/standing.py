"""Where a shard stands between two tasks: what is kept of it, what is published, what is read again."""

import hashlib
import io
from typing import Any, NamedTuple

import jax
import numpy as np

from cl_jax.checkpoint import Checkpoints
from cl_jax.diagnostics import notes
from cl_jax.diagnostics.notes import Notes
from cl_jax.diagnostics.table import part_sha256, write_part
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
    notes: Notes | None = None  # what diagnostics have measured and kept; None: there are none


def first_record(crew: Crew) -> np.ndarray:
    """The record before any training: one row, the rest NaN."""
    num_tasks = crew.members[0].entry.run.stream.num_tasks
    record = np.full((len(crew.members), num_tasks + 1, len(EVALUATED), len(METRICS), num_tasks), np.nan, np.float32)
    record[:, 0] = np.stack([world.row for world in crew.worlds])
    return record


def restored(crew: Crew, checkpoints: Checkpoints) -> Standing | None:
    """From the newest good checkpoint."""
    like, blank = host_like(crew), notes.blank(crew)
    found = checkpoints.restore(_saved(Standing(0, like, first_record(crew), blank)))
    if found is None:
        return None
    tasks, kept = found
    state = type(like)(**jax.tree.map(np.asarray, kept["state"]))
    written = None if blank is None else notes.restored(blank, kept["diagnostics"])
    return Standing(tasks, state, np.array(kept["record"]), written)


def save(standing: Standing, checkpoints: Checkpoints) -> None:
    """Starts saving what `restored` reads."""
    checkpoints.save(standing.tasks, _saved(standing))


def _saved(standing: Standing) -> dict[str, Any]:
    held = {"state": standing.state._asdict(), "record": standing.record}
    return held if standing.notes is None else {**held, "diagnostics": standing.notes.saved}


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
    if standing.notes is not None:
        write_part(shard.folder, standing.notes.values, standing.notes.columns)
    write_atomically(shard.folder / "record.npz", buffer.getvalue())


def finish(shard: Shard) -> None:
    """Marks the shard as done, with the digest of what it published."""
    sha = hashlib.sha256((shard.folder / "record.npz").read_bytes()).hexdigest()
    write_json(shard.folder / "DONE.json", {"record_sha256": sha, **part_sha256(shard.folder)})


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

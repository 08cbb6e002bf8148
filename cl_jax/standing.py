"""Where a shard stands between two tasks: what is kept of it, what is published, what is read again."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cl_jax import inside
from cl_jax.checkpoint import Checkpoints
from cl_jax.diagnostics import notes
from cl_jax.diagnostics.columns import Columns
from cl_jax.diagnostics.notes import Notes
from cl_jax.diagnostics.table import PART, part_content
from cl_jax.evaluate import EVALUATED, METRICS
from cl_jax.plan import Shard
from cl_jax.results import Record, addressed, read_json, read_shard, write_atomically, write_json
from cl_jax.results import read_record as read_record_file
from cl_jax.waves import Crew, Host, host_like


class Standing(NamedTuple):
    """A shard between two tasks, or inside one."""

    tasks: int  # boundaries behind it
    state: Host  # TrainState of every member, [members, ...]; None before the first boundary
    record: np.ndarray  # float32 [members, T + 1, splits, metrics, T]
    notes: Notes | None = None  # what diagnostics have measured and kept; None: there are none
    behind: np.ndarray | None = None  # int32 [members], see `cl_jax.inside.parts_of`; None: between two tasks


def first_record(crew: Crew) -> np.ndarray:
    """The record before any training: one row, the rest NaN."""
    num_tasks = crew.members[0].entry.run.stream.num_tasks
    record = np.full((len(crew.members), num_tasks + 1, len(EVALUATED), len(METRICS), num_tasks), np.nan, np.float32)
    record[:, 0] = np.stack([world.row for world in crew.worlds])
    return record


def restored(crew: Crew, checkpoints: Checkpoints) -> Standing | None:
    """From the newest good checkpoint."""
    like, blank = host_like(crew), notes.blank(crew)
    held = _saved(Standing(0, like, first_record(crew), blank))
    found = checkpoints.restore_furthest(held, inside.like(held, len(crew.members)))
    if found is None:
        return None
    tasks, kept, within = found
    state = type(like)(**jax.tree.map(np.asarray, kept["state"]))
    written = None if blank is None else notes.restored(blank, kept["diagnostics"])
    return Standing(tasks, state, np.array(kept["record"]), written, np.array(kept["behind"]) if within else None)


def save(standing: Standing, checkpoints: Checkpoints) -> None:
    """Starts saving what `restored` reads."""
    checkpoints.save(standing.tasks, _saved(standing))


def save_inside(standing: Standing, checkpoints: Checkpoints, steps: int) -> None:
    """Saves what `restored` reads inside a task of so many steps; returns when it is committed."""
    assert standing.behind is not None
    inside.save(checkpoints, standing.tasks, _saved(standing), standing.behind, steps)


def _saved(standing: Standing) -> dict[str, Any]:
    held = {"state": standing.state._asdict(), "record": standing.record}
    return held if standing.notes is None else {**held, "diagnostics": standing.notes.saved}


def publish(shard: Shard, standing: Standing, ends: np.ndarray) -> None:
    """The shard's part of the results, once the checkpoint that it came from is committed.

    Args:
        ends: int [members], tasks after which each member stops; that of a member that does not is T.
    """
    for name, content in _published(standing, ends).items():
        write_atomically(shard.published / name, content)


def finish(shard: Shard, standing: Standing, ends: np.ndarray) -> None:
    """Marks the shard as done, with the digests of what it published last."""
    mark_done(shard.published, _published(standing, ends))


def mark_done(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes DONE.json.

    What its digests are of is kept under names that hold them: another process may be at an earlier task of this shard,
    taken for dead and alive, and publish that over it.

    Args:
        contents: what was published last, by the name of the file.
    """
    digests = {}
    for name, content in contents.items():
        digests[f"{name.partition('.')[0]}_sha256"] = sha256 = hashlib.sha256(content).hexdigest()
        write_atomically(addressed(folder / name, sha256), content)
    write_json(folder / "DONE.json", digests)


def _published(standing: Standing, ends: np.ndarray) -> dict[str, bytes]:
    num_tasks = standing.record.shape[-1]
    record = Record(
        record=standing.record,
        diverged=standing.state.diverged,
        rows_done=(np.minimum(standing.tasks, ends) + 1).astype(np.int32),
        stopped=(ends < num_tasks) & (ends <= standing.tasks),
    )
    return contents_of(record, None if standing.notes is None else (standing.notes.values, standing.notes.columns))


def contents_of(record: Record, measured: tuple[np.ndarray, Columns] | None) -> dict[str, bytes]:
    """What is published, by the name of the file; a record comes last, so that no reader finds it without its
    diagnostics.

    Args:
        measured: by diagnostics, as `cl_jax.diagnostics.table.read_part` gives it.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **record._asdict())
    part = {} if measured is None else {PART: part_content(*measured)}
    return {**part, "record.npz": buffer.getvalue()}


def read_record(shard: Shard) -> Record | None:
    """What the shard's members have measured, in their order; None: nothing yet.

    Raises:
        UserError: a finished record does not match its sha256, or a file of the shard is broken.
    """
    path, sha256 = shard.folder / "record.npz", None
    if shard.done:
        sha256 = read_json(shard.folder / "DONE.json", {"record_sha256": str})["record_sha256"]
        path = addressed(path, sha256, there=True)
    elif not path.is_file():
        return None
    ids, _, _ = read_shard(shard.folder / "shard.json")
    read = read_record_file(path, len(ids), sha256)
    at = [ids.index(member.id) for member in shard.members]
    return Record(*(array[at] for array in read))

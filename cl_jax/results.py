"""The tidy results table: one row a value, every hyper-parameter a column; and how files are written safely."""

import hashlib
import io
import json
import os
import re
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cl_jax.errors import UserError, did_you_mean
from cl_jax.evaluate import EVALUATED, METRICS
from cl_jax.experiment import Member, hyper_parameters, stream_label

RESULTS = "results.parquet"
# The columns beside the hyper-parameters.
FIXED = {
    "member": pa.string(), "method": pa.string(), "stream": pa.string(), "seed": pa.int32(), "diverged": pa.bool_(),
    "stopped": pa.bool_(), "after_task": pa.int32(), "task": pa.int32(), "split": pa.string(), "metric": pa.string(),
    "value": pa.float64(),
}  # fmt: skip


def write_atomically(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """All or nothing: a reader sees the old file or the whole new one, whenever the writer dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(partial, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def addressed(path: Path, sha256: str, *, there: bool = False) -> Path:
    """`record-<digest>.npz` for `record.npz`; `there`: the plain one where that is missing, as in folders of old."""
    own = path.with_name(f"{path.stem}-{re.sub('[^0-9a-f]', '', sha256)[:16]}{path.suffix}")
    return own if own.is_file() or not there else path


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        kinds: what it has to hold, by name.

    Raises:
        UserError: not readable, not JSON, or without one of `kinds`.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it and run again") from error
    held = content if isinstance(content, dict) else {}
    for name, kind in kinds.items():
        if not isinstance(held.get(name), kind):
            raise UserError(f"{path}: is broken, it has no {name!r} of type {kind.__name__}; remove it and run again")
    return held


def read_shard(path: Path) -> tuple[list[str], str, int]:
    """Member ids, group and width of a shard.json. Raises UserError."""
    held = read_json(path, {"members": list, "group": str, "width": int})
    ids, width = held["members"], held["width"]
    if not ids or not all(isinstance(name, str) for name in ids) or len(set(ids)) < len(ids) or width < 1:
        raise UserError(f"{path}: is broken; remove the folder {path.parent} and run again")
    return ids, held["group"], width


class Record(NamedTuple):
    """What a shard has measured, as `rows` takes it. A member that ends early has fewer rows than its neighbours."""

    record: np.ndarray  # float32 [members, T + 1, splits, metrics, T]; row r of the second axis: after r tasks
    diverged: np.ndarray  # bool [members]
    rows_done: np.ndarray  # int32 [members], rows of the record that hold values
    stopped: np.ndarray  # bool [members], ended at a boundary on purpose: its later rows will never come


def read_record(path: Path, num_members: int, sha256: str | None) -> Record:
    """The record of a shard, from its record.npz.

    One rows_done for all members and no `stopped` were written before members could be stopped; they are read as such.

    Args:
        sha256: what its bytes must have, or None.

    Raises:
        UserError: it cannot be read, does not match, or is not a record of that many members.
    """
    remedy = f"remove the folder {path.parent} and run again"
    try:
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(f"{path}: does not match its sha256; {remedy}")
        with np.load(io.BytesIO(content), allow_pickle=False) as read:
            record, diverged, rows_done = read["record"], read["diverged"], read["rows_done"]
            stopped = read["stopped"] if "stopped" in read.files else np.zeros(diverged.shape, bool)
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from error
    if rows_done.ndim == 0:
        rows_done = np.repeat(rows_done, num_members)
    sound = (
        record.dtype == np.float32
        and record.ndim == 5
        and record.shape == (num_members, record.shape[4] + 1, len(EVALUATED), len(METRICS), record.shape[4])
        and (diverged.dtype, diverged.shape) == (np.dtype(bool), (num_members,))
        and (stopped.dtype, stopped.shape) == (np.dtype(bool), (num_members,))
        and (rows_done.dtype, rows_done.shape) == (np.dtype(np.int32), (num_members,))
        and bool(((rows_done >= 0) & (rows_done <= record.shape[1])).all())
    )
    if not sound:
        raise UserError(f"{path}: is not a record of {num_members} members; {remedy}")
    return Record(record, diverged, rows_done, stopped)


def rows(
    members: Sequence[Member], record: np.ndarray, diverged: np.ndarray, rows_done: np.ndarray,
    stopped: np.ndarray | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Table rows of members from their record: of each, as many as it has; none of what was not measured.

    Args:
        record: float32 [members, T + 1, splits, metrics, T]; row r of the second axis: after r tasks.
        diverged: bool [members].
        rows_done: int32 [members], rows of the record that hold values.
        stopped: bool [members], ended at a boundary on purpose; None: none was.
    """
    made = []
    for number, member in enumerate(members):
        fixed = {
            "member": member.id,
            "method": member.entry.label,
            "stream": stream_label(member.entry.run),
            "seed": member.seed,
            "diverged": bool(diverged[number]),
            "stopped": stopped is not None and bool(stopped[number]),
        }
        config = {f"config.{name}": value for name, value in hyper_parameters(member.entry.run).items()}
        for after in range(rows_done[number]):
            for s, split in enumerate(EVALUATED):
                for m, metric in enumerate(METRICS):
                    for task in range(record.shape[-1]):
                        if np.isnan(record[number, after, s, METRICS.index("accuracy"), task]):
                            continue  # an accuracy that was measured is a number
                        value = float(record[number, after, s, m, task])
                        place = {"after_task": after, "task": task + 1, "split": split, "metric": metric}
                        made.append({**fixed, **place, "value": value, **config})
    return made


def write_table(path: Path, table_rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as Parquet, sorted, columns in a fixed order: equal results give equal bytes.

    A column of hyper-parameters has one type: int64 for whole numbers, float64 for numbers, bool, or string; null where
    a member has no such hyper-parameter. One that is a number in some members and a name in others becomes two
    columns: numbers in `config.x`, names in `config.x.name`.
    """
    names = sorted({name for row in table_rows for name in row if name.startswith("config.")})
    columns = {name: pa.array([row[name] for row in table_rows], kind) for name, kind in FIXED.items()}
    for name in names:
        values = [row.get(name) for row in table_rows]
        words = [value if isinstance(value, str) else None for value in values]
        numbers = [value if isinstance(value, (bool, int, float)) else None for value in values]
        mixed = any(value is not None for value in words) and any(value is not None for value in numbers)
        if mixed or not any(value is not None for value in words):
            columns[name] = pa.array(*_one_type(numbers))
        if any(value is not None for value in words):
            columns[f"{name}.name" if mixed else name] = pa.array(words, pa.string())
    table = pa.table(columns)
    keys = ["stream", "method", "member", "after_task", "task", "split", "metric"]
    table = table.sort_by([(key, "ascending") for key in keys])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    if not path.is_file() or path.read_bytes() != content:  # so that its time tells whether a report is of it
        write_atomically(path, content)


def _one_type(values: list[Any]) -> tuple[list[Any], pa.DataType]:
    """Numbers as the narrowest type that holds them all; True and False among numbers are 1 and 0."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return values, pa.bool_()
    if float in kinds or not kinds:
        return [None if value is None else float(value) for value in values], pa.float64()
    return [None if value is None else int(value) for value in values], pa.int64()


def read_table(out: Path) -> pa.Table:
    """The table of a run.

    Raises:
        UserError: there is none, or it is broken.
    """
    path = out / RESULTS
    if not path.is_file():
        near = [file.parent.name for file in sorted(out.parent.glob(f"*/{RESULTS}"))]
        known = f"; beside it are {', '.join(near)}" if near else ""
        raise UserError(
            f"no {RESULTS} in {out}: give the output folder of `cl-jax run`{known}.{did_you_mean(out.name, near)}"
        )
    return read_columns(path, FIXED)


def read_columns(path: Path, kinds: Mapping[str, pa.DataType]) -> pa.Table:
    """A table that a run has written, with at least these columns. Raises UserError: it is broken."""
    again = "run the experiment again to rebuild it"
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise UserError(f"{path}: not a readable table ({error}); {again}") from error
    for name, kind in kinds.items():
        if name not in table.column_names or table.schema.field(name).type != kind:
            raise UserError(f"{path}: has no column {name!r} of type {kind}; {again}")
    return table

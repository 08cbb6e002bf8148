"""The tidy results table: one row a value, every hyper-parameter a column; and how files are written safely."""

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cl_jax.errors import UserError
from cl_jax.evaluate import EVALUATED, METRICS
from cl_jax.experiment import Member, hyper_parameters, stream_label

RESULTS = "results.parquet"


def write_atomically(path: Path, content: bytes) -> None:
    """All or nothing: a reader sees the old file or the whole new one, whenever the writer dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it to start this part anew") from error


def rows(members: Sequence[Member], record: np.ndarray, diverged: np.ndarray, rows_done: int) -> list[dict[str, Any]]:
    """Table rows of members from their record.

    Args:
        record: float32 [members, T + 1, splits, metrics, T]; row r of the second axis: after r tasks.
        diverged: bool [members].
        rows_done: rows of the record that hold values.
    """
    made = []
    for number, member in enumerate(members):
        fixed = {
            "member": member.id,
            "method": member.entry.label,
            "stream": stream_label(member.entry.run),
            "seed": member.seed,
            "diverged": bool(diverged[number]),
        }
        config = {f"config.{name}": value for name, value in hyper_parameters(member.entry.run).items()}
        for after in range(rows_done):
            for s, split in enumerate(EVALUATED):
                for m, metric in enumerate(METRICS):
                    for task in range(record.shape[-1]):
                        value = float(record[number, after, s, m, task])
                        place = {"after_task": after, "task": task + 1, "split": split, "metric": metric}
                        made.append({**fixed, **place, "value": value, **config})
    return made


def write_table(path: Path, table_rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as Parquet, sorted, columns in a fixed order: equal results give equal bytes."""
    fixed = [
        ("member", pa.string()), ("method", pa.string()), ("stream", pa.string()), ("seed", pa.int32()),
        ("diverged", pa.bool_()), ("after_task", pa.int32()), ("task", pa.int32()), ("split", pa.string()),
        ("metric", pa.string()), ("value", pa.float64()),
    ]  # fmt: skip
    names = sorted({name for row in table_rows for name in row if name.startswith("config.")})
    columns: dict[str, Any] = {}
    for name, kind in fixed:
        columns[name] = pa.array([row[name] for row in table_rows], kind)
    for name in names:
        columns[name] = pa.array(*_one_type([row.get(name) for row in table_rows]))
    table = pa.table(columns)
    keys = ["stream", "method", "member", "after_task", "task", "split", "metric"]
    table = table.sort_by([(key, "ascending") for key in keys])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def _one_type(values: list[Any]) -> tuple[list[Any], pa.DataType]:
    """A column's values and type: a path may hold numbers in one method and names in another."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return values, pa.bool_()
    if kinds <= {int}:
        return values, pa.int64()
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values], pa.float64()
    return [None if value is None else str(value) for value in values], pa.string()


def read_table(out: Path) -> pa.Table:
    """The table of a run.

    Raises:
        UserError: there is none, or it is broken.
    """
    path = out / RESULTS
    if not path.is_file():
        raise UserError(f"no {RESULTS} in {out}: give the output folder of `cl-jax run`")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable table ({error}); run the experiment again to rebuild it") from error

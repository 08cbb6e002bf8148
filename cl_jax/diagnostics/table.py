"""diagnostics.parquet, the tidy table of what was measured, and diagnostics.npz, a shard's part of it.

One row a number: `member`, `method`, `stream`, `seed` as in results.parquet, by whose `member` it joins; `after_task`,
`task` (null: of no task), `quantity`, `layer` and `depth`, its place from the input (null: the whole network), `at`, a
step or a place on a line (null: of none), `value`. What is not defined has no row.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cl_jax.diagnostics.columns import Columns
from cl_jax.errors import UserError
from cl_jax.experiment import Member, stream_label
from cl_jax.results import Record, addressed, read_columns, read_json, read_shard, write_atomically

PART, TABLE = "diagnostics.npz", "diagnostics.parquet"
KINDS = {
    "member": pa.string(), "method": pa.string(), "stream": pa.string(), "seed": pa.int32(), "after_task": pa.int32(),
    "task": pa.int32(), "quantity": pa.string(), "layer": pa.string(), "depth": pa.int32(), "at": pa.float64(),
    "value": pa.float64(),
}  # fmt: skip


def write_part(folder: Path, values: np.ndarray, columns: Columns) -> None:
    """A shard's values float32 [members, T + 1, N] and what they are."""
    write_atomically(folder / PART, part_content(values, columns))


def part_content(values: np.ndarray, columns: Columns) -> bytes:
    """What `write_part` writes."""
    buffer = io.BytesIO()
    np.savez(buffer, values=values, **columns._asdict())
    return buffer.getvalue()


def read_part(folder: Path, members: Sequence[Member]) -> tuple[np.ndarray, Columns] | None:
    """The values of these members of a shard, in their order, and what they are; None: it has none yet.

    Raises:
        UserError: it cannot be read, or does not match the digest of a finished shard.
    """
    path, done = folder / PART, folder / "DONE.json"
    sha256 = read_json(done, {}).get("diagnostics_sha256") if done.is_file() else None
    if isinstance(sha256, str):
        path = addressed(path, sha256, there=True)
    if not path.is_file():
        return None
    remedy = f"remove the folder {folder} and run again"
    ids, _, _ = read_shard(folder / "shard.json")
    try:
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(f"{path}: does not match its sha256; {remedy}")
        with np.load(io.BytesIO(content), allow_pickle=False) as read:
            values, columns = read["values"], Columns(*(read[name] for name in Columns._fields))
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from error
    if values.ndim != 3 or len(values) != len(ids) or {values.shape[2]} != {len(each) for each in columns}:
        raise UserError(f"{path}: is not of {len(ids)} members; {remedy}")
    return values[[ids.index(member.id) for member in members]], columns


def rows(members: Sequence[Member], values: np.ndarray, columns: Columns, rows_done: np.ndarray) -> pa.Table:
    """The table of members.

    Args:
        values: float32 [members, T + 1, N], columns: what the N are.
        rows_done: int32 [members], boundaries of each that have been published.
    """
    published = np.arange(values.shape[1]) < rows_done[:, None]
    at, after, number = np.nonzero(~np.isnan(values) & published[:, :, None])

    def of_member(each: Sequence[Any]) -> np.ndarray:
        return np.array(each, object)[at]

    def known(each: np.ndarray, where: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.array(each[number], kind, mask=~where[number])

    whole = columns.layer == ""
    arrays = {
        "member": of_member([member.id for member in members]),
        "method": of_member([member.entry.label for member in members]),
        "stream": of_member([stream_label(member.entry.run) for member in members]),
        "seed": of_member([member.seed for member in members]),
        "after_task": after,
        "task": known(columns.task, columns.task > 0, pa.int32()),
        "quantity": columns.quantity.astype(object)[number],
        "layer": known(columns.layer.astype(object), ~whole, pa.string()),
        "depth": known(columns.depth, ~whole, pa.int32()),
        "at": known(columns.at, ~np.isnan(columns.at), pa.float64()),
        "value": values[at, after, number].astype(np.float64),
    }
    return pa.table({name: pa.array(arrays[name], kind) for name, kind in KINDS.items()})


def gather(out: Path, parts: Sequence[tuple[Path, Sequence[Member], Record]]) -> None:
    """Writes the one table from the parts of all shards that have any: folder, members, record."""
    tables = []
    for folder, members, record in parts:
        found = read_part(folder, members)
        if found is not None:
            tables.append(rows(members, *found, record.rows_done))
    if tables:
        keys = ["stream", "method", "member", "quantity", "after_task", "task", "depth", "at"]
        table = pa.concat_tables(tables).sort_by([(key, "ascending") for key in keys])
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        if not (out / TABLE).is_file() or (out / TABLE).read_bytes() != content:
            write_atomically(out / TABLE, content)


def read_table(out: Path) -> pa.Table | None:
    """The table of a run; None: it measured none of this.

    Raises:
        UserError: it is broken.
    """
    path = out / TABLE
    return read_columns(path, KINDS) if path.is_file() else None

"""diagnostics.parquet: one row a number, nothing for what is not defined; parts that are damaged are refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from cl_jax.diagnostics import table
from cl_jax.diagnostics.columns import Columns, columns_of
from cl_jax.diagnostics.diagnostic import Value
from cl_jax.errors import UserError
from cl_jax.experiment import Member, Run, sweep
from cl_jax.results import Record

MEMBERS = [Member(entry=sweep("finetune", Run())[0], seed=seed, id=f"m{seed}") for seed in range(2)]
ARRAY = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
COLUMNS = columns_of(Value("overlap", ARRAY, ("", "dense_0"), each_task=True), ARRAY.shape)


def part(folder: Path, values: np.ndarray) -> Path:
    folder.mkdir()
    (folder / "shard.json").write_text(json.dumps({"members": ["m0", "m1"], "group": "g", "width": 1}))
    table.write_part(folder, values, COLUMNS)
    return folder


def record(rows_done: list[int]) -> Record:
    flags = np.zeros(2, bool)
    return Record(np.zeros((2, 3, 2, 2, 2), np.float32), flags, np.array(rows_done, np.int32), flags)


def values() -> np.ndarray:
    """float32 [members, boundaries, N]: 100 * member + 10 * boundary + number."""
    member, after, number = np.indices((2, 3, 4))
    return (100 * member + 10 * after + number).astype(np.float32)


def test_columns_follow_the_array() -> None:
    assert COLUMNS.layer.tolist() == ["", "", "dense_0", "dense_0"] and COLUMNS.task.tolist() == [1, 2, 1, 2]
    assert COLUMNS.depth.tolist() == [-1, -1, 0, 0] and np.isnan(COLUMNS.at).all()
    at = columns_of(Value("loss", np.zeros((1, 1, 2)), at=(0.0, 0.5)), (1, 1, 2))
    assert at.task.tolist() == [0, 0] and at.at.tolist() == [0.0, 0.5] and at.layer.tolist() == ["", ""]
    assert len(columns_of(Value("none", np.zeros((0, 1, 1)), ()), (0, 1, 1)).task) == 0


def test_one_row_a_published_number(tmp_path: Path) -> None:
    measured = values()
    measured[0, 1, 2] = np.nan
    folder = part(tmp_path / "a", measured)
    table.gather(tmp_path, [(folder, MEMBERS, record([3, 2]))])
    found = table.read_table(tmp_path)
    assert found is not None and found.num_rows == 3 * 4 - 1 + 2 * 4
    rows = {(r["member"], r["after_task"], r["task"], r["layer"]): r for r in found.to_pylist()}
    assert rows["m1", 1, 2, "dense_0"]["value"] == 113 and rows["m1", 1, 2, "dense_0"]["depth"] == 0
    assert rows["m0", 2, 1, None]["value"] == 20 and rows["m0", 2, 1, None]["depth"] is None
    assert ("m0", 1, 1, "dense_0") not in rows and not any(after == 2 for name, after, *_ in rows if name == "m1")
    assert {(r["method"], r["stream"], r["quantity"]) for r in rows.values()} == {
        ("finetune", "permuted-digits/domain", "overlap")
    }


def test_equal_numbers_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    folder = part(tmp_path / "a", values())
    for out, members in (("x", MEMBERS), ("y", MEMBERS[::-1])):
        (tmp_path / out).mkdir()
        table.gather(tmp_path / out, [(folder, members, record([3, 3]))])
    assert (tmp_path / "x" / table.TABLE).read_bytes() == (tmp_path / "y" / table.TABLE).read_bytes()


def test_members_by_name_whatever_is_asked_for(tmp_path: Path) -> None:
    folder = part(tmp_path / "a", values())
    found = table.read_part(folder, MEMBERS[1:])
    assert found is not None and found[0].shape == (1, 3, 4) and found[0][0, 0, 0] == 100


def test_without_diagnostics_there_is_no_table(tmp_path: Path) -> None:
    table.gather(tmp_path, [(tmp_path, MEMBERS, record([3, 3]))])
    assert table.read_table(tmp_path) is None and not list(tmp_path.iterdir())


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    folder = part(tmp_path / "a", values())
    (folder / "DONE.json").write_text(
        json.dumps({"diagnostics_sha256": hashlib.sha256((folder / table.PART).read_bytes()).hexdigest()})
    )
    assert table.read_part(folder, MEMBERS) is not None
    content = bytearray((folder / table.PART).read_bytes())
    content[100] ^= 1
    (folder / table.PART).write_bytes(bytes(content))
    with pytest.raises(UserError, match="does not match its sha256; remove the folder"):
        table.read_part(folder, MEMBERS)
    (folder / "DONE.json").unlink()
    (folder / table.PART).write_bytes(bytes(content[:200]))
    with pytest.raises(UserError, match="cannot be read"):
        table.read_part(folder, MEMBERS)
    table.write_part(folder, values()[:1], Columns(*COLUMNS))
    with pytest.raises(UserError, match="is not of 2 members"):
        table.read_part(folder, MEMBERS)


def test_a_broken_table_is_one_message(tmp_path: Path) -> None:
    (tmp_path / table.TABLE).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable table"):
        table.read_table(tmp_path)
    pa.parquet.write_table(pa.table({"member": ["a"]}), tmp_path / table.TABLE)
    with pytest.raises(UserError, match="has no column"):
        table.read_table(tmp_path)

"""The tidy table: columns of one type, null for absent, equal bytes for equal results; files all or nothing."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest

from cl_jax import results
from cl_jax.config import config, flatten, static, traced
from cl_jax.errors import UserError
from cl_jax.experiment import Member, Run, sweep
from cl_jax.methods import Ewc


def row(**config: Any) -> dict[str, Any]:
    place = {"after_task": 0, "task": 1, "split": "test", "metric": "accuracy", "value": 0.5}
    fixed = {"member": "m", "method": "one", "stream": "s", "seed": 0, "diverged": False, "stopped": False}
    return {**fixed, **place, **{f"config.{name}": value for name, value in config.items()}}


def column(tmp_path: Path, *values: Any) -> dict[str, tuple[str, list[Any]]]:
    """Type and values of every hyper-parameter column of a table in which `x` has these values ("-": absent)."""
    made = [row(**({} if value == "-" else {"x": value})) | {"task": task} for task, value in enumerate(values)]
    results.write_table(tmp_path / results.RESULTS, made)
    table = results.read_table(tmp_path)
    return {
        name: (str(table.schema.field(name).type), table[name].to_pylist())
        for name in table.column_names
        if name.startswith("config.")
    }


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ((1, 2), "int64", [1, 2]),
        ((1, 2.5), "double", [1.0, 2.5]),
        ((1, "-", None), "int64", [1, None, None]),
        ((0.5, "-"), "double", [0.5, None]),
        ((True, False), "bool", [True, False]),
        ((True, "-"), "bool", [True, None]),
        ((True, 3), "int64", [1, 3]),
        ((False, 0.5), "double", [0.0, 0.5]),
        (("adam", "sgd"), "string", ["adam", "sgd"]),
        (("adam", "-"), "string", ["adam", None]),
        ((None, "-"), "double", [None, None]),
    ],
)
def test_a_column_has_the_narrowest_type_that_holds_it(
    values: tuple[Any, ...], kind: str, kept: list[Any], tmp_path: Path
) -> None:
    assert column(tmp_path, *values) == {"config.x": (kind, kept)}


def test_numbers_and_names_become_two_columns(tmp_path: Path) -> None:
    assert column(tmp_path, 1, "all", "-", 2.5) == {
        "config.x": ("double", [1.0, None, None, 2.5]),
        "config.x.name": ("string", [None, "all", None, None]),
    }


def test_rows_name_every_hyper_parameter_and_numbers_stay_numbers(tmp_path: Path) -> None:

    plain, ewc = Run(), Run(methods={"ewc": Ewc(strength=3)})
    entries = (*sweep("finetune", plain), *sweep("ewc", ewc))
    members = [Member(entry=entry, seed=seed, id=f"{i}{seed}") for i, entry in enumerate(entries) for seed in (0, 1)]
    record = np.arange(4 * 3 * 2 * 2 * 2, dtype=np.float32).reshape(4, 3, 2, 2, 2)
    rows = results.rows(members, record, np.array([False, False, False, True]), np.full(4, 2, np.int32))
    assert len(rows) == 4 * 2 * 2 * 2 * 2  # members, rows done, splits, metrics, tasks
    results.write_table(tmp_path / results.RESULTS, rows)
    table = results.read_table(tmp_path)
    assert [str(table.schema.field(name).type) for name in ("config.steps", "config.methods.ewc.strength")] == [
        "int64",
        "double",
    ]
    by_member = dict(zip(table["member"].to_pylist(), table["config.methods.ewc.strength"].to_pylist(), strict=True))
    assert by_member == {"00": None, "01": None, "10": 3.0, "11": 3.0}
    of = table.filter((pa.compute.field("member") == "11") & (pa.compute.field("after_task") == 1))
    of = of.filter((pa.compute.field("split") == "test") & (pa.compute.field("metric") == "loss"))
    assert of["task"].to_pylist() == [1, 2] and of["value"].to_pylist() == record[3, 1, 1, 1].tolist()
    assert set(of["diverged"].to_pylist()) == {True}


def test_members_end_where_they_end_and_a_stopped_one_says_so(tmp_path: Path) -> None:
    members = [Member(entry=sweep("finetune", Run())[0], seed=seed, id=f"{seed}") for seed in range(3)]
    record, nothing = np.zeros((3, 4, 2, 2, 3), np.float32), np.zeros(3, bool)
    stopped = np.array([False, True, False])
    rows = results.rows(members, record, nothing, np.array([4, 2, 0], np.int32), stopped)
    results.write_table(tmp_path / results.RESULTS, rows)
    table = results.read_table(tmp_path)
    seen = set(zip(*(table[name].to_pylist() for name in ("member", "after_task", "stopped")), strict=True))
    assert seen == {*(("0", after, False) for after in range(4)), ("1", 0, True), ("1", 1, True)}
    assert not any(row["stopped"] for row in results.rows(members, record, nothing, np.full(3, 4, np.int32)))


def save_record(path: Path, **changes: np.ndarray | None) -> None:
    """Two members of a stream of two tasks, the second stopped after task 1; None leaves an array out."""
    arrays: dict[str, Any] = {
        "record": np.zeros((2, 3, 2, 2, 2), np.float32), "diverged": np.array([True, False]),
        "rows_done": np.array([3, 2], np.int32), "stopped": np.array([False, True]),
    } | changes  # fmt: skip
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_a_record_is_read_as_written_and_one_from_before_stopping_too(tmp_path: Path) -> None:
    path = tmp_path / "record.npz"
    save_record(path)
    read = results.read_record(path, 2, None)
    assert (read.rows_done.tolist(), read.stopped.tolist(), read.diverged.tolist()) == (
        [3, 2], [False, True], [True, False],
    )  # fmt: skip
    save_record(path, rows_done=np.array(2, np.int32), stopped=None)
    read = results.read_record(path, 2, None)
    assert (read.rows_done.tolist(), read.stopped.tolist()) == ([2, 2], [False, False])


@pytest.mark.parametrize(
    "changes",
    [
        {"rows_done": np.array([3, 4], np.int32)}, {"rows_done": np.array([-1, 3], np.int32)},
        {"rows_done": np.array([3], np.int32)}, {"rows_done": np.array([3, 2])}, {"stopped": np.array([True])},
        {"stopped": np.array([0, 1])}, {"rows_done": None}, {"diverged": None},
    ],
)  # fmt: skip
def test_a_record_that_is_none_is_refused(changes: dict[str, np.ndarray | None], tmp_path: Path) -> None:
    save_record(tmp_path / "record.npz", **changes)
    with pytest.raises(UserError, match=r"record.npz: .*; remove the folder .* and run again"):
        results.read_record(tmp_path / "record.npz", 2, None)


def test_equal_results_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    rows = [row(x=value) | {"task": task} for task, value in enumerate((1, 2.5, "all"))]
    results.write_table(tmp_path / "a", rows)
    results.write_table(tmp_path / "b", rows[::-1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_values_that_are_not_finite_survive(tmp_path: Path) -> None:
    results.write_table(tmp_path / results.RESULTS, [row() | {"value": math.inf}, row() | {"value": math.nan}])
    values = results.read_table(tmp_path)["value"].to_pylist()
    assert sorted(map(str, values)) == ["inf", "nan"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    results.write_atomically(path, b"old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_columns_of_the_wrong_type_are_refused(tmp_path: Path) -> None:
    results.write_table(tmp_path / results.RESULTS, [row()])
    table = results.read_table(tmp_path)
    wrong = table.set_column(table.column_names.index("value"), "value", pa.array(["0.5"]))
    pa.parquet.write_table(wrong, tmp_path / results.RESULTS)
    with pytest.raises(UserError, match="has no column 'value' of type double; run the experiment again"):
        results.read_table(tmp_path)


@config
class Own:
    """A config as a user writes it."""

    rate: float = traced(0.5)
    size: int = static(3, low=1)


def test_whole_numbers_of_traced_fields_are_numbers_of_one_kind() -> None:

    assert flatten(Own(rate=1)) == {"rate": 1.0, "size": 3} and isinstance(flatten(Own(rate=1))["rate"], float)

"""A broken file of a run, or a folder that is not one: one message and exit code 2, nothing compiled, nothing lost."""

import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cl_jax import cli, runner, sweep
from cl_jax.plan import begin
from cl_jax.results import write_json

CONFIG = """
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.tasks import Permuted

base = Run(stream=Permuted(num_tasks=2), model=Mlp(hidden=(8,)), steps=4)
experiment = Experiment(name="tiny", description="", entries=sweep("one", base), seeds=(0, 1))
"""


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(sweep, "run_shard", fail)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one message of a command that must exit 2 without a traceback."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.startswith("cl-jax: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


def write(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.py").write_text(CONFIG)
    return folder


def test_output_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path / "x")
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_text("mine")
    assert f"{file} is a file; give a folder" in refused(capsys, "run", config, "--out", file)
    assert f"{file} is a file; give a folder" in refused(capsys, "run", config, "--out", file / "deep" / "er")
    other.mkdir()
    (other / "mine").touch()
    assert "is not empty and holds no experiment.json" in refused(capsys, "run", config, "--out", other)
    write_json(other / "experiment.json", {"name": "mnist", "description": ""})
    assert "holds experiment 'mnist', not 'tiny'" in refused(capsys, "run", config, "--out", other)
    for broken in ("", "{", "[1]", '{"name": 3}', "[" * 100_000, "\x00"):
        (other / "experiment.json").write_text(broken)
        assert "experiment.json: " in refused(capsys, "run", config, "--out", other)
    assert file.read_text() == "mine" and sorted(path.name for path in other.iterdir()) == ["experiment.json", "mine"]


def begun(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A run whose only shard is recorded but not trained: experiment, output folder, the shard's folder."""
    config, out = write(tmp_path / "x"), tmp_path / "out"
    job = runner.prepare(config, out)
    write_json(out / "experiment.json", {"name": "tiny", "description": ""})
    begin(job.shards[0])
    return config, out, job.shards[0].folder


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", '{"members": ["a"]}', '{"members": [], "group": "g", "width": 1}',
        '{"members": [1], "group": "g", "width": 1}', '{"members": ["a"], "group": "g", "width": 0}',
        '{"members": ["a", "a"], "group": "g", "width": 1}', '{"members": ["a"], "group": "g", "width": "1"}',
    ],
)  # fmt: skip
def test_broken_shard_file(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out, shard = begun(tmp_path)
    (shard / "shard.json").write_text(content)
    text = refused(capsys, "run", config, "--out", out)
    assert "shard.json: " in text and "run again" in text


def record(members: int = 2, dtype: type = np.float32, rows: int = 1) -> bytes:
    file = io.BytesIO()
    np.savez(
        file, record=np.zeros((members, 3, 2, 2, 2), dtype), diverged=np.zeros(members, bool), rows_done=np.int32(rows)
    )
    return file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    np.savez(file, record=np.array([{}], object), diverged=np.zeros(2, bool), rows_done=np.int32(1))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", record()[:-30], pickled(), record(3), record(dtype=np.float64), record(rows=4), record(rows=-1)],
    ids=["empty", "torn", "cut", "pickled", "members", "dtype", "rows", "negative"],
)
def test_broken_record(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out, shard = begun(tmp_path)
    (shard / "record.npz").write_bytes(content)
    write_json(shard / "DONE.json", {"record_sha256": hashlib.sha256(content).hexdigest()})
    text = refused(capsys, "run", config, "--out", out)
    assert "record.npz: " in text and f"remove the folder {shard} and run again" in text


def test_changed_or_missing_record_of_a_finished_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out, shard = begun(tmp_path)
    write_json(shard / "DONE.json", {"record_sha256": "0" * 64})
    assert "record.npz: cannot be read" in refused(capsys, "run", config, "--out", out)
    (shard / "record.npz").write_bytes(record())
    assert "record.npz: does not match its sha256" in refused(capsys, "run", config, "--out", out)
    (shard / "DONE.json").write_text("{}")
    assert "has no 'record_sha256' of type str" in refused(capsys, "run", config, "--out", out)


def test_another_width_than_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out, _ = begun(tmp_path)
    text = refused(capsys, "run", config, "--out", out, "--width", 3)
    assert "--width: was given 3" in text and re.search(r"was begun with [12] and", text)


def test_report_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny"
    near = tmp_path / "tinny"
    near.mkdir()
    pq.write_table(pa.table({"a": [1]}), near / "results.parquet")
    text = refused(capsys, "report", out)
    assert f"no results.parquet in {out}" in text and "Did you mean 'tinny'?" in text
    assert "has no column 'member' of type string" in refused(capsys, "report", near)
    for content in (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", (near / "results.parquet").read_bytes()[:-20]):
        (near / "results.parquet").write_bytes(content)
        assert "not a readable table" in refused(capsys, "report", near)
    # Before any file is read.
    text = refused(capsys, "report", near, "--format", "lates")
    assert "unknown --format 'lates'; known: csv, latex, markdown, terminal. Did you mean 'latex'?" in text

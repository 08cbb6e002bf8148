"""Trained shard by shard in this process: the table of a run, what is told of it, and what is refused."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import cl_jax.sweep
from cl_jax import cli, provenance
from cl_jax.fleet import gather, heartbeat, status, sweep_file
from cl_jax.fleet import worker as workers
from cl_jax.fleet.heartbeat import STALE_SECONDS
from cl_jax.fleet.start import Notice
from tests.fleet.sweeps import beats, failed, folder_of, planned, train


def test_shard_by_shard_is_the_table_of_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (place / "out" / "results.parquet").read_bytes() == (place / "whole" / "results.parquet").read_bytes()
    cli.main(["report", str(place / "out")])
    assert "in part" not in capsys.readouterr().out
    assert "In part" not in (place / "out" / "report" / "report.html").read_text()
    cli.main(["status", str(place / "out")])
    out = capsys.readouterr().out
    assert "3 shards: 3 done, 0 running, 0 stale, 0 failed, 0 waiting; 0 pre-emptions" in out and "100% of" in out


def test_a_fault_in_one_shard_leaves_the_others(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = planned(place, tmp_path / "out", "--members", "2")

    def faulty(shard: Any, *rest: Any, **options: Any) -> None:
        raise ZeroDivisionError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(cl_jax.sweep, "run_shard", faulty)
        with pytest.raises(ZeroDivisionError):
            train(out, 0)
    train(out, 2)
    capsys.readouterr()
    cli.main(["status", str(out)])
    told = capsys.readouterr().out
    assert "3 shards: 1 done, 0 running, 0 stale, 1 failed, 1 waiting" in told
    assert "failed (1): ZeroDivisionError: a fault; see its log" in told
    with pytest.raises(SystemExit) as stopped:
        cli.main(["gather", str(out)])
    told = capsys.readouterr().err
    assert stopped.value.code == 1 and "missing: shard 0" in told and "not finished, failed; members" in told
    assert "missing: shard 1" in told and "not begun" in told
    sweep = sweep_file.read(out / "sweep.json")
    assert set(pq.read_table(out / "results.parquet")["member"].to_pylist()) == set(sweep.shards[2].members)
    cli.main(["report", str(out)])
    assert "in part: 4 of 6 runs are missing or not finished" in capsys.readouterr().out
    assert "In part: 4 of 6 runs" in (out / "report" / "report.html").read_text()
    for shard in (0, 1):
        train(out, shard)
    cli.main(["gather", str(out)])
    assert "partial" not in json.loads((out / "environment.json").read_text())


def test_told_to_go_before_anything(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, notice = planned(place, tmp_path / "out"), Notice()
    monkeypatch.setattr(notice, "_told", True)
    monkeypatch.setattr(workers.os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit) as stopped:
        workers.work(out / "sweep.json", 0, notice, quiet=True)
    assert stopped.value.code == 75 and [beat["state"] for beat in beats(out, 0)] == ["pre-empted"]


def damaged_copy(place: Path, tmp_path: Path) -> Path:
    return shutil.copytree(place / "out", tmp_path / "copy")


def test_gather_names_a_shard_whose_digest_does_not_match(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = damaged_copy(place, tmp_path)
    (file,) = folder_of(out, 1).glob("record-*.npz")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["gather", str(out)])
    assert stopped.value.code == 1
    assert re.search(r"missing: shard 1 .* does not match its sha256", capsys.readouterr().err)


def test_a_twin_that_is_behind_changes_nothing(place: Path, tmp_path: Path) -> None:
    """It publishes an earlier task over that of a shard that is done."""
    out = damaged_copy(place, tmp_path)
    (folder_of(out, 2) / "record.npz").write_bytes(b"of an earlier task")
    assert gather.gather(out) == []
    assert (out / "results.parquet").read_bytes() == (place / "whole" / "results.parquet").read_bytes()


@pytest.mark.parametrize("name", ["code", "matmul_precision"])
def test_mixed_results_are_refused(name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = damaged_copy(place, tmp_path)
    (file,) = folder_of(out, 1).glob("beats/*.json")
    held = json.loads(file.read_text())
    held["environment"][name] = "another"
    file.write_text(json.dumps(held))
    words = name.replace("_", " ")
    assert f"trained with different {words}: " in failed(capsys, "gather", out)
    cli.main(["gather", str(out), "--mixed"])
    assert f"mixed: the shards were trained with different {words}" in capsys.readouterr().out
    assert len(json.loads((out / "environment.json").read_text())[f"mixed_{name}"]) == 2


def test_a_worker_of_another_version_says_so(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = planned(place, tmp_path / "out")
    environment = provenance.environment()
    monkeypatch.setattr(provenance, "environment", lambda: {**environment, "code": "another"})
    train(out, 1)
    assert "code is 'another' here, the sweep was planned with" in capsys.readouterr().err


def beat(sweep: sweep_file.Sweep, out: Path, shard: int, **about: Any) -> None:
    now = time.time()
    made = heartbeat.Beat(
        attempt=f"attempt-{shard}", state="running", host="somewhere", pid=7, started=now - 100, beat=now, total=1000,
        done=500, trained=400, doing="task 2", environment={},
    )  # fmt: skip
    file = out / "shards" / sweep.shards[shard].folder / "beats" / f"attempt-{shard}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(made, **about))))


def test_status_in_words(place: Path, tmp_path: Path) -> None:
    out = planned(place, tmp_path / "out", "--members", "1")
    sweep, now = sweep_file.read(out / "sweep.json"), time.time()
    beat(sweep, out, 0)
    beat(sweep, out, 1, beat=now - STALE_SECONDS - 40)
    beat(sweep, out, 2, state="pre-empted", exit_code=75)
    beat(sweep, out, 3, state="failed", exit_code=2, error="the disk is full")
    (out / "shards" / sweep.shards[4].folder / "beats").mkdir(parents=True)
    (out / "shards" / sweep.shards[4].folder / "beats" / "attempt-x.json").write_text("{")
    told = list(status.lines(status.standings(out), now))
    assert told[0] == "6 shards: 0 done, 1 running, 1 stale, 1 failed, 3 waiting; 1 pre-emptions"
    assert told[1] == "29% of 560 member-steps; about 2 min left at 4 member-steps/s"
    assert "running: task 2, 50%, 4 steps/s, on somewhere, process 7" in told[2]
    assert "stale: not heard of for 2 min, was on somewhere, process 7" in told[3]
    assert "failed (2): the disk is full; mend it, then start it again" in told[4]


MANY = """
from cl_jax.experiment import Experiment, Run, sweep
from cl_jax.config import replace
from cl_jax.methods import Ewc
run = replace(Run(), {"methods": {"ewc": Ewc()}})
strengths = [float(i) for i in range(1000)]
experiment = Experiment(
    name="many", description="", entries=sweep("ewc", run, {"methods.ewc.strength": strengths}), seeds=tuple(range(10))
)
"""


# In a process of its own, whose memory is not that of the tests before, and whose seconds are not those of others.
# Of the kernel's two high-water marks the one in /proc is the program's, that of getrusage also whatever started it.
ALONE = """
import sys, time
from cl_jax import cli
began = time.process_time()
cli.main(sys.argv[1:])
(high,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(time.process_time() - began, high)
"""


def test_ten_thousand_members_in_a_thousand_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Planned in 10 s and 2 GB, and told of in 5 s."""
    file, out = tmp_path / "many.py", tmp_path / "out"
    file.write_text(MANY)
    words = ["shards", str(file), "--out", str(out), "--members", "10"]
    done = subprocess.run([sys.executable, "-c", ALONE, *words], capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, done.stdout.split()[-2:])
    assert "10000 members in 1000 shards" in done.stdout
    assert seconds < 10, seconds
    assert kilobytes < 2e6, kilobytes
    sweep = sweep_file.read(out / "sweep.json")
    for shard in range(1000):
        beat(sweep, out, shard)
    began = time.process_time()
    cli.main(["status", str(out)])
    seconds = time.process_time() - began
    told = capsys.readouterr().out
    assert "1000 running" in told and "and 980 more running" in told
    assert seconds < 5, seconds

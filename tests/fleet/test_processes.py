"""One shard trained by several processes at once: the bytes of one process, whatever happens to them."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cl_jax.checkpoint import saved
from tests.fleet.sweeps import beats, folder_of, start, wait_for, worker, write
from tests.fleet.test_group import free_port
from tests.fleet.test_workers import flip

pytestmark = pytest.mark.slow  # two dozen starts of the command line

STEPS, MEMBERS = 20_000, 4
ONCE = MEMBERS * STEPS * 2 + 2 * STEPS  # of shard 0: two tasks of its own, and the first one of both seeds
Processes = list[subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a sweep of two shards that nobody has begun, and the same trained by one process each."""
    folder = tmp_path_factory.mktemp("processes")
    experiment, log = write(folder, STEPS), folder / "log"
    assert start(["shards", experiment, "--out", folder / "planned"], log).wait(60) == 0, log.read_text()
    trained = shutil.copytree(folder / "planned", folder / "trained")
    assert [worker(trained, shard, log).wait(200) for shard in (0, 1)] == [0, 0], log.read_text()
    return folder


@pytest.fixture
def out(place: Path, tmp_path: Path) -> Path:
    return shutil.copytree(place / "planned", tmp_path / "out")


def together(out: Path, shard: int, log: Path, count: int, before: Sequence[str] = ()) -> Processes:
    """Several processes of a shard. `before`: see `start`, of each."""
    where = ["--processes", count, "--coordinator", f"localhost:{free_port()}"]
    code = [*before, *["pass"] * count]
    return [worker(out, shard, log, *where, "--process", number, before=code[number]) for number in range(count)]


def ends(processes: Processes, seconds: float = 200) -> list[int]:
    until = time.monotonic() + seconds
    return [process.wait(max(until - time.monotonic(), 0.1)) for process in processes]


def published(out: Path, shard: int) -> dict[str, bytes]:
    folder = folder_of(out, shard)
    return {file.name: file.read_bytes() for file in [*folder.glob("*.npz"), folder / "DONE.json"]}


def training(out: Path, begun: int, processes: Processes, log: Path) -> list[dict[str, Any]]:
    """The beats of these processes, once all of them train members of their own."""

    def found() -> bool:
        new = beats(out, 0)[begun:]
        return len(new) == len(processes) and all(
            re.search(r"task [23]$", each["doing"]) and each["trained"] for each in new
        )

    wait_for(found, processes[0], log)
    return beats(out, 0)[begun:]


def test_two_and_three_processes(place: Path, out: Path, tmp_path: Path) -> None:
    """Of three, one has nothing to train. SLURM tells two of them who they are."""
    log = tmp_path / "log"
    assert ends(together(out, 0, log, 3)) == [0, 0, 0], log.read_text()
    port, about = str(free_port()), {"JOB_ID": "7", "STEP_NODELIST": "localhost", "NTASKS": "2", "LOCALID": "0"}
    slurm = {f"SLURM_{name}": value for name, value in about.items()} | {"JAX_COORDINATOR_PORT": port}
    found = [worker(out, 1, log, "--processes", "auto", SLURM_PROCID=number, **slurm) for number in "01"]
    assert ends(found) == [0, 0], log.read_text()
    assert published(out, 0) == published(place / "trained", 0) and published(out, 1) == published(place / "trained", 1)
    said = beats(out, 0)
    assert sorted(each["process"] for each in said) == [0, 1, 2] and len({each["group"] for each in said}) == 1
    assert sum(each["done"] == each["total"] for each in said) == 3
    assert sum(each["trained"] for each in said) <= ONCE + 2 * STEPS  # two may have needed the same first task
    assert "Traceback" not in log.read_text()


def test_one_process_with_eight_devices(place: Path, out: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = worker(out, 0, log, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert ends([process]) == [0], log.read_text()
    assert published(out, 0) == published(place / "trained", 0)
    assert beats(out, 0)[0]["environment"]["device"]["count"] == 8


def test_one_of_two_is_told_to_go_and_one_alone_finishes(place: Path, out: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = together(out, 0, log, 2)
    training(out, 0, processes, log)
    processes[1].send_signal(signal.SIGTERM)
    assert ends(processes, 30) == [75, 75], log.read_text()
    assert "process 0 of 2: process 1 was told to go; leaving too" in log.read_text()
    assert {each["state"] for each in beats(out, 0)} == {"pre-empted"}
    assert worker(out, 0, log).wait(200) == 0, log.read_text()
    assert published(out, 0) == published(place / "trained", 0)
    trained = sum(each["trained"] for each in beats(out, 0))
    assert ONCE <= trained <= ONCE + (MEMBERS + 2) * STEPS  # at most a task twice, and the first one by both


@pytest.mark.parametrize("victim", [0, 1])
def test_begun_by_one_and_finished_by_two_one_of_which_is_killed(
    victim: int, place: Path, out: Path, tmp_path: Path
) -> None:
    """The other ends by itself, having saved; then a bit is flipped in what the dead one saved last."""
    log = tmp_path / "log"
    alone = worker(out, 0, log)
    training(out, 0, [alone], log)
    alone.send_signal(signal.SIGTERM)
    assert ends([alone], 30) == [75], log.read_text()
    processes = together(out, 0, log, 2)
    training(out, 1, processes, log)
    processes[victim].send_signal(signal.SIGKILL)
    codes = ends(processes, 30)
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 75), log.read_text()
    assert f"process {1 - victim} of 2: process {victim} is lost; leaving too" in log.read_text()
    folder = folder_of(out, 0)
    (dead,) = [each for each in beats(out, 0) if each["state"] == "running"]
    steps = [(step, attempt) for step, attempt in saved(folder) if attempt.name == dead["attempt"]]
    for step, attempt in steps[:1]:
        flip(attempt / str(step))
    assert ends(together(out, 0, log, 2)) == [0, 0], log.read_text()
    assert published(out, 0) == published(place / "trained", 0)
    said = log.read_text()
    assert all(f"checkpoint {attempt.name}/{step} refused" in said for step, attempt in steps[:1])
    assert "continues inside task" in said


def test_a_process_that_faults(out: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    fault = "import cl_jax.sweep; cl_jax.sweep.end_task = lambda *about: 1 / 0"
    assert ends(together(out, 0, log, 2, ["pass", fault]), 120) == [75, 1], log.read_text()
    assert "ZeroDivisionError" in log.read_text() and "process 1 has failed; leaving too" in log.read_text()
    told = start(["status", out], log)
    assert told.wait(60) == 0
    assert re.search(r"1 failed, 1 waiting", log.read_text()) and "failed (1): ZeroDivisionError" in log.read_text()
    assert json.loads((folder_of(out, 0) / "shard.json").read_text())["members"]

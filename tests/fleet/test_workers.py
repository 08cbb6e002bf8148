"""Worker processes: told to go, killed, started twice and on damaged files; the table of one undisturbed process."""

import re
import shutil
import signal
from pathlib import Path

import pytest

from cl_jax import cli
from cl_jax.checkpoint import saved, saved_inside
from tests.fleet.sweeps import beats, folder_of, start, wait_for, worker, write

pytestmark = pytest.mark.slow  # a dozen starts of the command line

STEPS = 40_000  # a task of a second or more
SEGMENT, MEMBERS = 250, 2
SHARDS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the experiment, its whole run, a sweep that nobody has begun, and one trained by all workers at once.

    Two shards of it need the same first task, and the third is trained by two processes.
    """
    folder = tmp_path_factory.mktemp("fleet")
    experiment, log = write(folder, STEPS), folder / "log"
    assert start(["run", experiment, "--out", folder / "whole", "--quiet"], log).wait(200) == 0, log.read_text()
    words = ["shards", experiment, "--out", folder / "planned", "--members", MEMBERS]
    assert start(words, log).wait(60) == 0, log.read_text()
    trained = shutil.copytree(folder / "planned", folder / "trained")
    processes = [worker(trained, shard, log) for shard in (0, 1, 2, 2)]
    assert [process.wait(200) for process in processes] == [0] * 4, log.read_text()
    return folder


@pytest.fixture
def out(place: Path, tmp_path: Path) -> Path:
    return shutil.copytree(place / "planned", tmp_path / "out")


def record(out: Path, shard: int) -> bytes:
    return (folder_of(out, shard) / "record.npz").read_bytes()


def test_all_at_once_and_one_of_them_twice(place: Path) -> None:
    out = place / "trained"
    assert len(beats(out, 2)) == 2 and len(list((out / "trunks").iterdir())) == 1
    cli.main(["gather", str(out)])
    assert (out / "results.parquet").read_bytes() == (place / "whole" / "results.parquet").read_bytes()
    assert "Traceback" not in (place / "log").read_text()
    assert worker(out, 1, place / "log").wait(60) == 0 and "is done already" in (place / "log").read_text()


def test_sigterm_inside_tasks(place: Path, out: Path, tmp_path: Path) -> None:
    """It exits 75 at once and goes on from the very step."""
    log, folder, told = tmp_path / "log", folder_of(out, 0), 0
    while told < 3 and not (folder / "DONE.json").is_file():
        process = worker(out, 0, log)
        wait_for(lambda number=told: len(beats(out, 0)) > number and beats(out, 0)[-1]["trained"] > 0, process, log)
        process.send_signal(signal.SIGTERM)
        code, told = process.wait(30), told + 1
        # On a fast machine the signal may come when the shard is done, or Python is ending.
        assert code == 75 or (code in (0, -signal.SIGTERM) and (folder / "DONE.json").is_file()), log.read_text()
    assert worker(out, 0, log).wait(200) == 0, log.read_text()
    attempts = beats(out, 0)
    assert attempts[0]["state"] == "pre-empted" and attempts[0]["exit_code"] == 75
    assert re.search(r"continues inside task \d, \d members from step \d+ on", log.read_text())
    trained = sum(beat["trained"] for beat in attempts)
    once = MEMBERS * STEPS * 2 + 2 * STEPS  # its own two tasks, and the first one of both seeds
    assert once <= trained <= once + told * SEGMENT * MEMBERS
    assert not saved_inside(folder) and record(out, 0) == record(place / "trained", 0)


def flip(step: Path) -> None:
    file = max((file for file in (step / "state").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(step: Path) -> None:
    for file in (step / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def test_killed_and_the_newest_steps_damaged(place: Path, out: Path, tmp_path: Path) -> None:
    """Each in its own way: the boundary before them is taken, and the log says why."""
    log, folder = tmp_path / "log", folder_of(out, 2)
    process = worker(out, 2, log)
    wait_for(lambda: {step for step, _ in saved(folder)} == {1, 2}, process, log)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    ((_, attempt), _) = saved(folder)
    copies = [attempt, *(attempt.with_name(f"attempt-copy{number}") for number in (1, 2))]
    for copy in copies[1:]:
        shutil.copytree(attempt / "2", copy / "2")
    for copy, damage in zip(copies, (flip, truncate, empty), strict=True):
        damage(copy / "2")
    assert worker(out, 2, log).wait(200) == 0, log.read_text()
    said = log.read_text()
    assert all(f"checkpoint {copy.name}/2 refused" in said for copy in copies)
    assert "its content does not match its sha256" in said and "continues after task 1 of 3" in said
    assert record(out, 2) == record(place / "trained", 2)

"""launch/slurm.py: its script under bash with fake programs, and on a SLURM cluster of two nodes on this machine."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cl_jax import cli
from launch import slurm
from tests.fleet.slurm_cluster import cluster, lacking, tell, until
from tests.fleet.sweeps import beats, failed, folder_of, start, write

ODD = "a b'c\"$(touch bad) #50%a&;é"  # a folder's name
DO = """
import json, os, signal, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--sweep") + 1]).parent
shard = sys.argv[sys.argv.index("--shard") + 1]
tried = out / f"tried-{shard}"
number = len(tried.read_text().splitlines()) if tried.exists() else 0
steps = json.loads((out / "do.json").read_text())[int(shard)]
step = steps[min(number, len(steps) - 1)]
if step == "wait":
    def told(*_):
        time.sleep(0.3)
        print("saved", flush=True)
        os._exit(75)
    signal.signal(signal.SIGTERM, told)
with tried.open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if step in ("wait", "deaf"):
    time.sleep(60)
if step == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(step)
"""
SCONTROL = """#!/bin/bash
echo "$*" >>"$(dirname "$0")/said"
if [ "$1" = requeue ]; then exit 0; fi
echo "JobId=13 ArrayJobId=12 ArrayTaskId=0 JobState=$STATE Reason=None"
"""


def made(out: Path, *do: list[Any], done: tuple[int, ...] = ()) -> Path:
    """What there is to read of a sweep, and a worker that does these things, each time the next."""
    out.mkdir()
    (out / "sweep.json").write_text(json.dumps({"shards": [{"folder": f"s{number}"} for number in range(len(do))]}))
    for number in done:
        (out / "shards" / f"s{number}").mkdir(parents=True)
        (out / "shards" / f"s{number}" / "DONE.json").touch()
    (out / "do.json").write_text(json.dumps(do))
    (out / "do.py").write_text(DO)
    return out


def tried(out: Path, shard: int) -> list[list[str]]:
    """What a worker was called with, a list for each time."""
    file = out / f"tried-{shard}"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def launch(out: Path, *words: str) -> str:
    """The script that is written."""
    worker = shlex.join([sys.executable, str(out / "do.py"), "it's"])
    slurm.main([str(out), f"--worker={worker}", "--dry", *words])
    return (out / "launch" / "slurm.sh").read_text()


class Bash:
    """The script's task 12_0 under bash, with a scontrol that tells a state of it."""

    def __init__(self, out: Path, folder: Path, state: str = "RUNNING"):
        self.said = folder / "said"
        (folder / "scontrol").write_text(SCONTROL)
        (folder / "scontrol").chmod(0o755)
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}", "STATE": state, "SLURM_ARRAY_JOB_ID": "12",
            "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "13",
        }  # fmt: skip
        words = ["bash", str(out / "launch" / "slurm.sh")]
        self.process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, cwd=folder)

    def end(self) -> tuple[int, str, list[str]]:
        """Exit code, what it printed, and what scontrol was asked for."""
        printed, _ = self.process.communicate(timeout=60)
        return self.process.returncode, printed, self.said.read_text().splitlines() if self.said.exists() else []


AGAIN = ["--oneliner show job 12_0", "requeue 12_0"]


def test_the_script_says_what_slurm_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = made(tmp_path / "out", [0], [0], [0], [0], [0], [0], done=(3,))
    words = ["--partition=a,b", "--time=1-02:00", "--cpus=4.0", "--gpus=2", "--at-once=3"]
    script = launch(out, *words)
    assert launch(out, *words) == script  # the same bytes
    assert capsys.readouterr().out == f"script: {out}/launch/slurm.sh\n" * 2
    assert [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")] == [
        "requeue", "job-name=cl-jax-out", "array=0-2,4-5%3", "partition=a,b", "time=1-02:00", "nodes=1",
        "ntasks-per-node=1", "cpus-per-task=4", "gres=gpu:2", "signal=B:TERM@120", "open-mode=append",
        f"output={out}/logs/shard-%a.log",
    ]  # fmt: skip
    assert (out / "logs").is_dir() and "srun" not in script
    assert "srun --ntasks=2 --cpus-per-task=1 " in (several := launch(out, "--nodes=2"))
    assert "--quiet --processes auto)" in several and "#SBATCH --nodes=2\n" in several


def test_shards_that_are_done_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = made(tmp_path / "out", [0], [0], done=(0, 1))
    slurm.main([str(out)])
    assert capsys.readouterr().out == f"all 2 shards are done; next: cl-jax gather {out}\n"
    assert not (out / "launch").exists()


@pytest.mark.parametrize(
    ("steps", "code", "again", "message"),
    [
        ([0], 0, False, "exit code 0"),
        ([75], 75, True, "told to go; again"),
        ([2], 2, False, "exit code 2"),
        ([1], 1, False, "exit code 1"),
        (["kill"], 75, True, "signal 9"),
    ],
)
def test_how_a_worker_may_end(
    steps: list[Any], code: int, again: bool, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder whose name bash and SLURM could both misread."""
    out = made(tmp_path / ODD, steps)
    launch(out)
    ended, printed, asked = Bash(out, tmp_path).end()
    assert (ended, asked) == (code, AGAIN if again else [])
    assert f"slurm: task 12_0, shard 0: {message}" in printed
    assert tried(out, 0) == [["it's", "--sweep", f"{out}/sweep.json", "--quiet", "--shard", "0"]]
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("step", ["wait", "deaf"])
def test_told_to_go(step: str, tmp_path: Path) -> None:
    """The worker hears of it and is waited for; one that has not begun to listen is no death."""
    out = made(tmp_path / "out", [step])
    launch(out)
    task = Bash(out, tmp_path)
    until(lambda: tried(out, 0))
    task.process.send_signal(signal.SIGTERM)
    task.process.send_signal(signal.SIGTERM)  # again, while it saves
    code, printed, asked = task.end()
    assert (code, asked) == (75, AGAIN) and not list(out.glob("logs/*.deaths"))
    assert printed == "saved\n" * (step == "wait") + "slurm: task 12_0, shard 0: told to go; again\n"


def test_deaths_are_counted(tmp_path: Path) -> None:
    """Three times again, of one array; how often the task was told to go does not count."""
    out = made(tmp_path / "out", ["kill", 75, "kill", "kill", "kill"])
    launch(out)
    (out / "logs" / "shard-0.deaths").write_text("1 137\n" * 5)  # of an earlier array
    assert [Bash(out, tmp_path).end()[0] for _ in range(5)] == [75, 75, 75, 75, 137]
    assert (tmp_path / "said").read_text().splitlines() == AGAIN * 4


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING"])
def test_what_is_cancelled_stays_so(state: str, tmp_path: Path) -> None:
    out = made(tmp_path / "out", [75])
    launch(out)
    assert Bash(out, tmp_path, state).end()[0::2] == (75, AGAIN[:1])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--partition=a b", "--partition: was given 'a b'; give the name of one"),
        ("--partition=-x", "--partition: was given '-x'"),
        ("--time=4h", "--time: was given '4h'; give hours:minutes:seconds, such as 04:00:00"),
        ("--time=1:2:3:4", "--time: was given '1:2:3:4'"),
        ("--time=04:00", "--time: was given '04:00', which is 240 s; from 00:05:00 on"),
        ("--cpus=0.5", "--cpus: was given '0.5'; SLURM takes a whole number from 1"),
        ("--cpus=0", "--cpus: was given '0'; SLURM takes a whole number from 1"),
        ("--gpus=-1", "--gpus: was given '-1'; SLURM takes a whole number from 0"),
        ("--at-once=0", "--at-once: was given '0'"),
        ("--nodes=0", "--nodes: was given '0'"),
        ("--worker='", "whose quotes do not match"),
        ("--worker=", "--worker: was given ''; give a command in one line"),
    ],
)
def test_mistakes_are_told(word: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = made(tmp_path / "out", [0])
    with pytest.raises(SystemExit) as stopped:
        slurm.main([str(out), word, "--dry"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and said.count("\n") == 1
    assert not (out / "launch").exists()


@pytest.mark.parametrize("time", ["300", "5:00", "00:05:00", "1-0", "0-1:30", "2-00:00:01"])
def test_times_of_slurm(time: str, tmp_path: Path) -> None:
    assert f"#SBATCH --time={time}\n" in launch(made(tmp_path / "out", [0]), f"--time={time}")


def test_folders_that_will_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out, message in (
        (tmp_path, f"no sweep.json in {tmp_path}"),
        (made(tmp_path / "a\\b", [0]), "SLURM has no way to write a backslash or a line break in a path"),
        (made(tmp_path / "broken", [0]), "is broken (KeyError('shards'))"),
    ):
        (tmp_path / "broken" / "sweep.json").write_text("{}") if out.name == "broken" else None
        with pytest.raises(SystemExit, match="2"):
            slurm.main([str(out), "--dry"])
        assert message in capsys.readouterr().err


def test_from_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = made(tmp_path / "out", [0], [0])
    with pytest.raises(SystemExit, match="0"):
        cli.main(["launch", "slurm", str(out), "--cpus", "2", "--at-once", "1", "--worker", "my worker", "--dry"])
    script = (out / "launch" / "slurm.sh").read_text()
    assert "--cpus-per-task=2\n" in script and "--array=0-1%1\n" in script and "worker=(my worker --sweep" in script
    for words, message in (
        (("slurm", out, "--cpus", "0"), "--cpus: was given '0.0'"),
        (("slurm", out, "--at-once", "x"), "--at-once: expected a whole number"),
        (("slurm", out, "--address", "x"), "--address: is no option of launch slurm, which has --cpus, --gpus"),
        (("ray", out, "--dry"), "--dry: is no option of launch ray, which has --cpus, --gpus"),
    ):
        assert message in failed(capfd, "launch", *words)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"a machine of the cluster, sbatch {out}/launch/slurm.sh" in failed(capfd, "launch", "slurm", out)
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2; exit 1")
    (tmp_path / "sbatch").chmod(0o755)
    said = failed(capfd, "launch", "slurm", out)
    assert said.startswith("invalid partition\n") and "sbatch has refused it, see above. Again: sbatch" in said


@pytest.fixture(scope="module")
def nodes() -> Iterator[Path]:
    if lacks := lacking():
        pytest.skip(f"no SLURM: {lacks}")
    with cluster() as folder:
        yield folder


def submitted(out: Path, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """Number of the job."""
    with pytest.raises(SystemExit, match="0"):
        cli.main(["launch", "slurm", str(out), *words])
    said = capfd.readouterr().out
    found = re.search(
        r"^job (\d+): (\d+) of \2 shards;.*\nwatch: cl-jax status .* --watch\nqueue: .* scancel \1$", said, re.M
    )
    assert found, said
    return found[1]


def over(job: str) -> bool:
    """Whether nothing of it runs or waits."""
    return not tell("squeue", "--noheader", "--jobs", job)


@pytest.mark.slow
def test_exit_codes_on_a_cluster(nodes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Told to go: again; killed: again; a mistake, a fault and what was cancelled: not, and the others go on."""
    out = made(tmp_path / ODD, [75, "wait", 0], [2], ["kill", 0], [1], ["wait"])
    job = submitted(out, capfd, "--worker", shlex.join([sys.executable, str(out / "do.py")]))
    until(lambda: len(tried(out, 0)) == 2 and tried(out, 4), nodes)
    tell("scontrol", "requeue", f"{job}_0")
    tell("scancel", f"{job}_4")
    until(lambda: over(job), nodes)
    log = [(out / "logs" / f"shard-{shard}.log").read_text() for shard in range(5)]
    assert [len(tried(out, shard)) for shard in range(5)] == [3, 1, 2, 1, 1], log
    assert [text.splitlines()[-1].partition("shard ")[2] for text in log[:4]] == [
        "0: exit code 0", "1: exit code 2", "2: exit code 0", "3: exit code 1",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_nodes_for_a_shard(nodes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A process on each, which hear that they are to go, and run again."""
    out = made(tmp_path / "out", ["wait", "wait", 0])
    job = submitted(out, capfd, "--nodes", "2", "--worker", shlex.join([sys.executable, str(out / "do.py")]))
    until(lambda: len(tried(out, 0)) == 2, nodes)
    tell("scancel", "--signal=TERM", "--batch", f"{job}_0")
    until(lambda: over(job), nodes)
    assert len(tried(out, 0)) == 4 and all("--processes" in words for words in tried(out, 0))
    log = (out / "logs" / "shard-0.log").read_text()
    assert log.count("told to go; again") == 1 and "exit code 0" in log


@pytest.mark.slow
def test_a_sweep_on_a_cluster(nodes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One shard is told to go, one is queued again by SLURM: the table is that of one process."""
    experiment, log = write(tmp_path, 40_000), tmp_path / "log"
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert start(["shards", experiment, "--out", out, "--members", 4], log).wait(100) == 0, log.read_text()
    job = submitted(out, capfd, "--at-once", "2", "--cpus", "1")
    running = [0, 1]
    while running:
        until(lambda: any(beat["trained"] for shard in running for beat in beats(out, shard)), nodes, seconds=200)
        shard = next(shard for shard in running if any(beat["trained"] for beat in beats(out, shard)))
        tell(*(["scancel", "--signal=TERM", "--batch"], ["scontrol", "requeue"])[shard], f"{job}_{shard}")
        running.remove(shard)
    alone = start(["run", experiment, "--out", whole, "--quiet"], log)
    until(lambda: over(job), nodes, seconds=200)
    for shard in (0, 1):
        said = (out / "logs" / f"shard-{shard}.log").read_text()
        assert (folder_of(out, shard) / "DONE.json").is_file() and len(beats(out, shard)) == 2, said
        assert beats(out, shard)[0]["state"] == "pre-empted", said
    assert alone.wait(200) == 0, log.read_text()
    cli.main(["gather", str(out)])
    assert (out / "results.parquet").read_bytes() == (whole / "results.parquet").read_bytes()

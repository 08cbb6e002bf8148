"""A small sweep for tests, and the processes that train it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cl_jax import cli

EXPERIMENT = """
from cl_jax.config import replace
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.methods import Ewc, Replay
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted

sgd = Sgd(learning_rate=0.1)
base = Run(stream=Permuted(num_tasks=3), model=Mlp(hidden=(20,)), optimizer=sgd, steps={steps}, batch_size=16)
ewc = replace(base, {{"methods": {{"ewc": Ewc(kind="sampled")}}}})
replay = replace(base, {{"methods": {{"replay": Replay(capacity=100)}}}})
experiment = Experiment(
    name="fleet",
    description="A test.",
    entries=(*sweep("ewc", ewc, {{"methods.ewc.strength": [1.0, 10.0]}}), *sweep("replay", replay)),
    seeds=(0, 1),
)
"""


def write(folder: Path, steps: int) -> Path:
    """The experiment's file: six members in two groups; task 1 of four of them is shared."""
    file = folder / "experiment.py"
    file.write_text(EXPERIMENT.format(steps=steps))
    return file


def start(words: list[Any], log: Path, before: str = "pass", **environment: str) -> subprocess.Popen[bytes]:
    """The command line as a process. `before`: Python that runs in it first."""
    code = f"import sys; from cl_jax.cli import main; {before}; main(sys.argv[1:])"
    with log.open("ab") as file:
        command = [sys.executable, "-c", code, *map(str, words)]
        return subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})


def worker(
    out: Path, shard: int, log: Path, *words: Any, before: str = "pass", **environment: str
) -> subprocess.Popen[bytes]:
    return start(["worker", "--sweep", out / "sweep.json", "--shard", shard, *words], log, before, **environment)


def folder_of(out: Path, shard: int) -> Path:
    held = json.loads((out / "sweep.json").read_text())
    return out / "shards" / held["shards"][shard]["folder"]


def beats(out: Path, shard: int) -> list[dict[str, Any]]:
    """What the attempts at a shard said last, in the order in which they began."""
    found = [json.loads(file.read_text()) for file in folder_of(out, shard).glob("beats/*.json")]
    return sorted(found, key=lambda beat: beat["started"])


def wait_for(what: Any, process: subprocess.Popen[bytes], log: Path, seconds: float = 120.0) -> None:
    """Until `what()` is true of a process that is still at work."""
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, f"it ended too early\n{log.read_text()}"
        assert time.monotonic() < until, f"it took too long\n{log.read_text()}"
        time.sleep(0.05)


def train(out: Path, shard: int) -> None:
    """Trains a shard in this process."""
    cli.main(["worker", "--sweep", str(out / "sweep.json"), "--shard", str(shard), "--quiet"])


def planned(place: Path, out: Path, *words: str) -> Path:
    """Cuts the experiment in `place` into a new folder."""
    cli.main(["shards", str(place / "experiment.py"), "--out", str(out), *words])
    return out


def failed(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """What is said of a mistake."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(map(str, words)))
    assert stopped.value.code == 2
    return capsys.readouterr().err

"""kill -9 at ten random moments of a run, then the same command again: the same table, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # about a dozen starts of the command line

EXPERIMENT = """
from cl_jax.config import replace
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.methods import Ewc, Replay
from cl_jax.tasks import Permuted

base = Run(stream=Permuted(num_tasks=8), model=Mlp(hidden=(20,)), steps=2000, batch_size=16)
both = replace(base, {"methods": {"ewc": Ewc(kind="sampled"), "replay": Replay(capacity=100)}})
experiment = Experiment(
    name="killed",
    description="",
    entries=(*sweep("finetune", base), *sweep("both", both, {"methods.ewc.strength": [1.0, 10.0]})),
    seeds=(0, 1, 2),
)
"""
KILLS = 10


def start(experiment: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    arguments = ["run", str(experiment), "--out", str(out), "--quiet"]
    code = "import sys; from cl_jax.cli import main; main(sys.argv[1:])"
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=file, stderr=file)


def results(out: Path) -> dict[str, bytes]:
    """The table and every shard's record."""
    files = [out / "results.parquet", *out.rglob("record.npz")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def test_killed_at_ten_moments(tmp_path: Path) -> None:
    experiment, log = tmp_path / "experiment.py", tmp_path / "log"
    experiment.write_text(EXPERIMENT)
    began = time.monotonic()
    assert start(experiment, tmp_path / "whole", log).wait(300) == 0, log.read_text()
    whole, duration = results(tmp_path / "whole"), time.monotonic() - began
    assert len(whole) == 3

    moments, out = random.Random(os.environ.get("CL_JAX_TEST_SEED", "0")), tmp_path / "killed"
    kills, resumed = 0, 0
    while True:
        goes_on = any(out.rglob("attempt-*/[1-9]"))
        resumed += goes_on
        process, began = start(experiment, out, log), time.monotonic()
        try:
            code = process.wait(moments.uniform(0.3, 1.0) * duration if kills < KILLS else 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert code == 0, log.read_text()
        assert results(out) == whole
        if kills == KILLS:
            break
        # It was faster than the next kill, as programs are when they are found compiled: from the start again.
        shutil.rmtree(out)
        if not goes_on:
            duration = min(duration, time.monotonic() - began)
    assert resumed >= 2, "no run went on from a checkpoint: the moments came too early to test anything"
    assert "Traceback" not in log.read_text()

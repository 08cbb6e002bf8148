"""kill -9 at random moments of `adapt`, then the same again: the same results, and no more than a round lost."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # about ten starts

PROGRAM = """
import logging, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
logging.getLogger("absl").setLevel(logging.CRITICAL)
import bigram_stream as toys
from cl_jax import cache
from cl_jax.conversations import POLICIES, Guard
from cl_jax.optimizers import Sgd

cache.keep_compiled()
old, params = toys.contrary()
settings = {
    "policy": POLICIES["replay"](earlier=2, old=2, capacity=20), "guard": Guard(budget=0.1),
    "optimizer": Sgd(learning_rate=10.0), "old_every": 3,
}
toys.run(Path(sys.argv[2]), toys.talks(80), settings, old=old, params=params, quiet=False)
"""
KILLS = 6


def start(program: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        words = [sys.executable, str(program), str(Path(__file__).parent), str(out)]
        root = {"PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen(words, stdout=file, stderr=file, env=os.environ | root)


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("adapt.parquet", "decisions.jsonl", "log.jsonl")}


def rounds(out: Path) -> list[int]:
    """Conversations behind each round that has been told of."""
    path = out / "log.jsonl"
    text = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    lines = [json.loads(line) for line in text]
    return [line["first"] + len(line["scores"]) for line in lines]


def test_killed_at_random_moments(tmp_path: Path) -> None:
    program, log, out = tmp_path / "program.py", tmp_path / "log", tmp_path / "killed"
    program.write_text(PROGRAM)
    assert start(program, tmp_path / "first", log).wait(300) == 0, log.read_text()  # compiles
    began = time.monotonic()
    assert start(program, tmp_path / "whole", log).wait(300) == 0, log.read_text()
    whole, duration = results(tmp_path / "whole"), time.monotonic() - began
    assert whole == results(tmp_path / "first") and len(rounds(tmp_path / "whole")) == 41
    outcomes = {json.loads(line)["decision"] for line in whole["decisions.jsonl"].splitlines()}
    assert outcomes == {"accepted", "scaled back", "rolled back"}

    moments, kills, resumed = random.Random(os.environ.get("CL_JAX_TEST_SEED", "0")), 0, 0
    while True:
        before = rounds(out)
        log.write_bytes(b"")
        process = start(program, out, log)
        try:
            code = process.wait(moments.uniform(0.4, 0.9) * duration if kills < KILLS else 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills, code = kills + 1, None
        told = re.search(r"continues after conversation (\d+) of 80", log.read_text())
        if told and before:
            resumed += 1
            assert int(told[1]) in before[-2:], f"rounds were lost: it goes on from {told[1]}, {before[-1]} were done"
        if code is None:
            continue
        assert code == 0, log.read_text()
        assert results(out) == whole
        if kills == KILLS:
            break
        shutil.rmtree(out)  # it was done before the next kill
    assert resumed >= 3, "no run went on from a checkpoint: the moments came too early to test anything"
    assert "Traceback" not in log.read_text()

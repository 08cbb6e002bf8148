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

import jax
import jax.numpy as jnp
import pytest

from cl_jax.models.decoder import Decoder
from cl_jax.tokens import Tokens
from cl_jax.weights import save_weights

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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_stop_the_command_and_the_same_one_goes_on(number: signal.Signals, code: int, tmp_path: Path) -> None:
    model, talks, out = tmp_path / "model", tmp_path / "talks.jsonl", tmp_path / "out"
    decoder, empty = Decoder(width=8, layers=1, heads=2), jnp.zeros((1, 4), jnp.int32)
    save_weights(model, decoder, decoder.build(256).init(jax.random.key(0), Tokens(empty, empty)))
    talks.write_text("".join(json.dumps({"question": f"{i}?", "answer": f"It is {i}."}) + "\n" for i in range(300)))
    words = ["adapt", str(model), str(talks), "--every", "2", "--context", "32", "--out", str(out)]
    words += ["--old", "text:made_prose?bytes=30000", "--budget", "1"]
    program = "import sys; from cl_jax.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True)
    while len(rounds(out)) < 4 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "cl-jax: stopped; finished rounds are kept; to go on from there: cl-jax adapt " in err
    assert "Traceback" not in err
    done = len(rounds(out))
    assert 4 <= done < 151 and (out / "adapt.parquet").is_file()
    again = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "continues after conversation" in again.stderr, again.stderr
    assert len(rounds(out)) == 151 and "300 conversations" in again.stdout

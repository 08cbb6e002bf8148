"""A sweep in a bucket of a server that speaks S3, on this machine: worker processes killed, told to go and gathered.

Runs where moto's server and s3fs are installed, as the extra dev has them.
"""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.sweeps import start, wait_for, write

LACKING = [name for name in ("moto", "flask", "flask_cors", "s3fs") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,  # a server and a dozen starts of the command line
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}"),
]
STEPS, MEMBERS = 20_000, 2  # of a task, which takes a second or more; of a shard
URL = "s3://bucket/sweeps/fleet"


class Server:
    """What is in its bucket."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint

    def ask(self, path: str, method: str = "GET") -> str:
        with urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{path}", method=method)) as answer:
            return answer.read().decode()

    def keys(self, part: str) -> list[str]:
        """Of the sweep, that have this in them."""
        found = re.findall(r"<Key>sweeps/fleet/([^<]*)</Key>", self.ask("bucket?list-type=2"))
        return [key for key in found if part in key]

    def manifests(self, writer: str) -> list[str]:
        return [key for key in self.keys(writer) if re.fullmatch(r"steps/shards/.*/[0-9]+\.json", key)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as file:
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(words, stdout=file, stderr=file)
    made = Server(f"http://127.0.0.1:{port}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": made.endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)

        def up() -> bool:
            try:
                made.ask("moto-api/")
            except (urllib.error.URLError, ConnectionError):
                return False
            return True

        try:
            wait_for(up, process, log, 60)
            made.ask("bucket", "PUT")
            yield made
        finally:
            process.kill()
            process.wait()


def told(words: list[Any], log: Path, code: int = 0, seconds: float = 300.0) -> str:
    """What a command says until it ends so."""
    own = log.with_name(f"{words[0]}-{time.monotonic_ns()}")
    assert start(words, own).wait(seconds) == code, own.read_text()
    return own.read_text()


def worker(shard: int, machine: Path) -> subprocess.Popen[bytes]:
    """On a machine of its own."""
    machine.mkdir(exist_ok=True)
    words = ["worker", "--sweep", f"{URL}/sweep.json", "--shard", shard, "--scratch", machine / "scratch"]
    return start(words, machine / "log")


def test_killed_told_to_go_and_gathered(server: Server, tmp_path: Path) -> None:
    experiment, log = write(tmp_path, STEPS), tmp_path / "log"
    told(["run", experiment, "--out", tmp_path / "whole", "--quiet"], log)
    assert "there is no bucket s3://another" in told(["shards", experiment, "--out", "s3://another/x"], log, 2)
    said = told(["shards", experiment, "--out", URL, "--members", MEMBERS], log)
    assert f"sweep: {URL}/sweep.json" in said and "in 3 shards" in said

    killed = worker(0, tmp_path / "a")
    wait_for(lambda: server.manifests("/attempt-"), killed, tmp_path / "a" / "log", 300)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert "DONE.json" not in " ".join(server.keys("shards/"))
    assert "3 shards: 0 done" in told(["status", URL], log)

    first = set(server.manifests("/attempt-"))
    leaving = worker(2, tmp_path / "b")
    wait_for(lambda: set(server.manifests("/attempt-")) - first, leaving, tmp_path / "b" / "log", 300)
    leaving.send_signal(signal.SIGTERM)
    code = leaving.wait(60)
    # On a fast machine the signal may come when the shard is done.
    assert code == 75 or (code == 0 and server.keys("DONE.json")), (tmp_path / "b" / "log").read_text()
    assert len(server.manifests("/inside-")) == (code == 75)

    machines = [tmp_path / name for name in ("c", "d", "e")]  # with nothing at hand
    processes = [worker(shard, machine) for shard, machine in enumerate(machines)]
    logs = [machine / "log" for machine in machines]
    assert [process.wait(300) for process in processes] == [0] * 3, "\n".join(log.read_text() for log in logs)
    assert re.search(r"continues (after|inside) task", logs[0].read_text())
    if code == 75:
        assert re.search(r"continues inside task \d, \d members from step \d+ on", logs[2].read_text())
    assert not server.manifests("/inside-") and not any(list((each / "scratch").iterdir()) for each in machines)

    assert "3 shards: 3 done, 0 running" in told(["status", URL], log)
    assert f"results: {URL}/results.parquet" in told(["gather", URL, "--to", tmp_path / "to"], log)
    table = (tmp_path / "whole" / "results.parquet").read_bytes()
    assert (tmp_path / "to" / "results.parquet").read_bytes() == table
    told(["report", tmp_path / "to"], log)
    assert "is done already" in told(["worker", "--sweep", f"{URL}/sweep.json", "--shard", 0], log)


def test_nobody_said_who_we_are(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "the store refuses (Unable to locate credentials)" in told(["status", URL], tmp_path / "log", 2)


def test_a_server_that_is_gone(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said = told(["status", URL], tmp_path / "log", 1)
    assert "EndpointConnectionError" in said and "Traceback" not in said

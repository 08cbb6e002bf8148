"""launch/ray_tasks.py on two local nodes. Runs where Ray is installed beside cl_jax: `pip install 'cl_jax[ray]'`."""

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cl_jax import cli
from tests.fleet.sweeps import beats, start, write

ray = pytest.importorskip("ray", reason="Ray is not installed")
from ray.cluster_utils import Cluster  # noqa: E402

from launch import ray_tasks  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings
NODE = {"include_dashboard": False, "object_store_memory": 80_000_000}
FAKE = """
import os, signal, sys
from pathlib import Path
sweep, shard = Path(sys.argv[2]), int(sys.argv[4])
mark = sweep.parent / f"tried-{shard}"
tried = len(mark.read_text()) if mark.exists() else 0
mark.write_text("x" * (tried + 1))
if shard == 2 and tried == 0:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit([75 if tried < 2 else 0, 2, 0, 1][shard])
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE})
    made.to_kill = made.add_node(num_cpus=1, **NODE)
    made.add_node(num_cpus=1, **NODE)
    ray.init(address=made.address)
    yield made
    ray.shutdown()
    made.shutdown()


def test_exit_codes(cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told to go: again; a mistake or a fault: named, and the others go on; killed: again, a few times."""
    (tmp_path / "worker.py").write_text(FAKE)
    lost = ray_tasks.train(
        str(tmp_path / "sweep.json"), 4, {"num_cpus": 1}, [sys.executable, str(tmp_path / "worker.py")]
    )
    assert lost == {1: "a mistake, see its message", 3: "a fault, exit code 1"}
    assert [len((tmp_path / f"tried-{shard}").read_text()) for shard in range(4)] == [3, 1, 2, 1]
    told = capsys.readouterr().out
    assert told.count("shard 0: told to go; again") == 2 and "shard 2: signal 9; again" in told


def test_a_node_killed_inside_a_task(cluster: Any, tmp_path: Path) -> None:
    experiment, log = write(tmp_path, 20_000), tmp_path / "log"
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert start(["run", experiment, "--out", whole, "--quiet"], log).wait(200) == 0, log.read_text()
    assert start(["shards", experiment, "--out", out, "--members", 2], log).wait(60) == 0, log.read_text()
    lost: list[dict[int, str]] = []
    worker = [sys.executable, "-m", "cl_jax.cli", "worker"]
    thread = threading.Thread(
        target=lambda: lost.append(ray_tasks.train(str(out / "sweep.json"), 3, {"num_cpus": 1}, worker))
    )
    thread.start()
    while not any(beat["trained"] for shard in range(3) for beat in beats(out, shard)):
        assert thread.is_alive()
        time.sleep(0.1)
    cluster.remove_node(cluster.to_kill, allow_graceful=False)
    cluster.add_node(num_cpus=1, **NODE)  # only the main thread may
    thread.join(200)
    assert lost == [{}]
    cli.main(["gather", str(out)])
    assert (out / "results.parquet").read_bytes() == (whole / "results.parquet").read_bytes()
    shutil.rmtree(out)

"""launch/ray_slices.py on nodes of this machine that say that they are hosts of TPU slices; they compute on the CPU."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cl_jax import cli
from tests.fleet.sweeps import beats, start, wait_for, write

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("ray.train", reason="Ray is installed without ray[train]")
from ray.cluster_utils import Cluster  # noqa: E402

from launch import ray_slices  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings
# Each try starts seven processes of Ray a host: minutes on two cores, and limits that a busy machine passes.
on_cluster = pytest.mark.skipif(
    "CL_JAX_RAY" not in os.environ,
    reason="slices on Ray take minutes, and a survivor is not always left time to save: CL_JAX_RAY=1",
)
NODE = {"include_dashboard": False, "object_store_memory": 80_000_000}
# A node that is killed is known in seconds, and one that a busy machine keeps waiting is not taken for one.
HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5, "health_check_timeout_ms": 120_000}
HOSTS, TOPOLOGY, POD = 2, "2x2x2", "v4-16"
FAKE = """
import os, signal, sys, time
from pathlib import Path
words = [word for word in sys.argv[1:] if word != "--quiet"]
given = dict(zip(words[::2], words[1::2]))
assert given["--processes"] == "2" and ":" in given["--coordinator"], sys.argv
shard, process = given["--shard"], given["--process"]
mark = Path(given["--sweep"]).parent / f"tried-{shard}-{process}"
tried = mark.read_text() if mark.exists() else ""
mark.write_text(tried + given["--coordinator"] + chr(10))
code = ENDS[int(shard)][int(process)][bool(tried)]
if code is None:
    mark.with_name(f"pid-{process}").write_text(str(os.getpid()))
    time.sleep(300)
elif code < 0:
    os.kill(os.getpid(), -code)
time.sleep(2 if code == 2 else 0)  # the cause comes after those whom it told
sys.exit(code)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")  # to look for another slice
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH, **NODE})
        ray.init(address=made.address)
        yield made
        ray.shutdown()
        made.shutdown()


def add_slice(cluster: Any, name: str) -> list[Any]:
    """Its hosts: what Ray finds out on a TPU is given here. Only the main thread may add them."""
    hosts = []
    for number in range(HOSTS):
        labels = {"slice-name": name, "worker-id": str(number), "topology": TOPOLOGY, "pod-type": POD}
        resources = {"TPU": 4, name: 1, "accelerator_type:TPU-V4": 1} | ({f"TPU-{POD}-head": 1} if number == 0 else {})
        environment = {
            "TPU_NAME": name, "TPU_WORKER_ID": str(number), "TPU_TOPOLOGY": TOPOLOGY, "TPU_ACCELERATOR_TYPE": POD,
            "JAX_PLATFORMS": "cpu",
        }  # fmt: skip
        tpu = {f"ray.io/tpu-{key}": value for key, value in labels.items()}
        hosts.append(cluster.add_node(num_cpus=1, resources=resources, labels=tpu, env_vars=environment, **NODE))
    return hosts


@on_cluster
def test_a_slice_is_lost(cluster: Any, tmp_path: Path) -> None:
    """First one of its hosts, then the other; another slice comes, and the table is that of one process."""
    out, whole, log = (tmp_path / name for name in ("out", "whole", "log"))
    experiment = write(tmp_path, 20_000)
    assert start(["run", experiment, "--out", whole, "--quiet"], log).wait(200) == 0, log.read_text()
    assert start(["shards", experiment, "--out", out], log).wait(60) == 0, log.read_text()
    words = ["--hosts", HOSTS, "--topology", TOPOLOGY, "--accelerator", "v4", "--address", cluster.address]
    process = start(["launch", "ray", out, *words], log)
    try:
        # The launcher is a driver of the head, as long as there is no other node.
        wait_for(lambda: "Connected to Ray cluster" in log.read_text(), process, log, 240)
        first = add_slice(cluster, "first")
        wait_for(lambda: at_work(out) == HOSTS, process, log, 240)
        cluster.remove_node(first[1], allow_graceful=False)
        wait_for(lambda: "a host is lost; again" in log.read_text(), process, log, 240)
        cluster.remove_node(first[0], allow_graceful=False)
        add_slice(cluster, "second")
        assert process.wait(400) == 0, log.read_text()
    finally:
        process.kill()
    ended = [beat for beat in beats(out, 0) if beat["state"] == "done"]
    assert len(ended) == HOSTS and any(beat["trained"] < beat["total"] for beat in ended)  # it went on from a save
    cli.main(["gather", str(out)])
    assert (out / "results.parquet").read_bytes() == (whole / "results.parquet").read_bytes()


def at_work(out: Path) -> int:
    """How many processes have trained a part of the first shard."""
    return sum(beat["trained"] > 0 for beat in beats(out, 0))


@pytest.fixture
def two_hosts(cluster: Any) -> Iterator[Any]:
    hosts = [cluster.add_node(num_cpus=2, **NODE) for _ in range(HOSTS)]
    yield ray_slices.hosts_of(given())
    for each in hosts:
        cluster.remove_node(each)


def given(**changed: Any) -> argparse.Namespace:
    asked = {"hosts": HOSTS, "topology": None, "accelerator": None, "cpus": 1, "gpus": 0, "limit": 1}
    return argparse.Namespace(**(asked | changed))


def train(folder: Path, ends: list[list[tuple[int | None, int | None]]], scaling: Any) -> dict[int, str]:
    """With processes that end so, by shard and number: the first time, and all others."""
    (folder / "sweep.json").write_text(json.dumps({"shards": list(range(len(ends)))}))
    (folder / "worker.py").write_text(f"ENDS = {ends}\n{FAKE}")
    return ray_slices.train(folder, scaling, [sys.executable, str(folder / "worker.py")], limit=1)


@on_cluster
def test_exit_codes(two_hosts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cause counts, and not that the others were told to go."""
    lost = train(tmp_path, [[(75, 0), (-9, 0)], [(75, 75), (2, 2)]], two_hosts)
    assert lost == {1: "a mistake, see its message"}
    tried = [[(tmp_path / f"tried-{shard}-{process}").read_text() for process in range(2)] for shard in range(2)]
    assert [[len(each.split()) for each in shard] for shard in tried] == [[2, 2], [1, 1]]
    assert all(zero == one for zero, one in tried)  # where process 0 listens
    assert "shard 0: signal 9 to process 1; again" in capsys.readouterr().out


@on_cluster
def test_the_limit(two_hosts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it is over as soon as both processes are at work; none is left behind."""
    started = [tmp_path / f"pid-{number}" for number in range(HOSTS)]
    over = SimpleNamespace(monotonic=lambda: time.monotonic() + 7200 * all(mark.exists() for mark in started))
    monkeypatch.setattr(ray_slices, "time", over)
    monkeypatch.setattr(ray_slices, "LOOK_SECONDS", 1.0)
    assert train(tmp_path, [[(None, None), (None, None)]], two_hosts) == {0: "not done within 1 hours"}
    until = time.monotonic() + 60
    while any(Path("/proc", mark.read_text()).exists() for mark in started):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("codes", "what", "again"),
    [
        ({}, "a host is lost", True),
        ({0: 0, 1: 0}, "done", False),
        ({0: 0, 1: 75}, "told to go", True),
        ({0: 75, 1: -9}, "signal 9 to process 1", True),
        ({0: -9, 1: 3}, "a fault, exit code 3 of process 1", False),
        ({0: 75, 1: 2}, "a mistake, see its message", False),
    ],
)
def test_what_the_codes_come_to(codes: dict[int, int], what: str, again: bool) -> None:
    assert ray_slices.verdict(codes) == (what, again)


def test_hosts() -> None:
    slice_of = ray_slices.hosts_of(given(hosts=4, topology="4x4", accelerator="v5e"))
    assert slice_of.accelerator_type == "TPU-V5LITEPOD" and slice_of.num_tpus_per_worker == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hosts": 0}, "--hosts: was given 0; give a number from 1"),
        ({"limit": 0.0}, "--limit: was given 0.0; give hours, above 0"),
        ({"topology": "4x4"}, "give both or neither"),
        ({"topology": "4by4", "accelerator": "v5e"}, "--topology: was given '4by4'"),
        ({"hosts": 3, "topology": "2x2x2", "accelerator": "v4"}, "--hosts: was given 3; the 8 chips of 2x2x2 are on"),
        ({"topology": "2x2x2", "accelerator": "v99"}, "TPU-V99"),
    ],
)
def test_hosts_that_are_no_slice(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ray_slices.hosts_of(given(**changed))

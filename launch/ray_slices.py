"""Trains a sweep on a Ray cluster, each shard by several hosts at once, such as those of a TPU slice.

    cl-jax shards experiments/quickstart --out runs/fleet --members 200
    python launch/ray_slices.py runs/fleet --hosts 4 --topology 4x4 --accelerator v5e

A shard is a run of Ray Train's JaxTrainer: it waits for a slice that is whole, holds it, and ends all of its hosts
where one is lost. On each host `cl-jax worker --processes N --process K --coordinator HOST:PORT` runs as a process of
its own. The trainer would start `jax.distributed` in its processes, which have no use for JAX: a JaxConfig without an
accelerator leaves that to the worker.

Runs are repeated here and not by Ray's FailureConfig(max_failures=-1), which cannot tell a host that is lost from a
mistake, and would repeat both for ever. Nothing is imported from the rest of the checkout: Ray sends what is written
here to nodes that have none.

Exit codes: 0 all shards are done; 1 some are not, and are named; 2 a mistake.
"""

import argparse
import collections
import ctypes
import json
import math
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.jax import JaxConfig, JaxTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

DONE, MISTAKE, PREEMPTED = 0, 2, 75  # of a worker
NOT_FOUND = 127  # as a shell has it
SIGNALS = 3  # times that a process of a shard may die by a signal, such as that of a machine out of memory
LIMIT = 24.0  # hours
# Of the trainer: a folder of its own to work in, metrics, and an actor that hears of pre-emption but tells no process.
UNUSED = dict.fromkeys(
    ("RAY_CHDIR_TO_TRIAL_DIR", "RAY_TRAIN_METRICS_ENABLED", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"), "0"
)
LOOK_SECONDS = 60.0  # between two looks at how large the cluster has become
PR_SET_PDEATHSIG = 1
PORTS = range(20_000, 32_000)  # below those that outgoing connections take
BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # how so many chips of a host lie
VERSIONS = {"v5e": "v5litepod", "trillium": "v6e", "ironwood": "v7x"}  # as Ray has them


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)  # what it forgets is taken for a host that is lost
class Codes:
    """How processes ended, by the run they were of: the trainer tells of the first that fails, which is rarely why."""

    def __init__(self) -> None:
        self._codes: dict[str, dict[int, int]] = collections.defaultdict(dict)

    def put(self, run: str, process: int, code: int) -> None:
        self._codes[run][process] = code

    def pop(self, run: str) -> dict[int, int]:
        return self._codes.pop(run, {})


def free_address() -> str:
    """Of this host, for process 0 to listen at."""
    host = ray.util.get_node_ip_address()
    for port in random.sample(PORTS, 100):
        with socket.socket() as found:
            try:
                found.bind((host, port))
            except OSError:
                continue
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    raise OSError(f"no free port on {host} in {PORTS.start} to {PORTS.stop}")


def host(config: dict[str, Any]) -> None:
    """Runs on every host: its process of the worker."""
    number, count = get_context().get_world_rank(), get_context().get_world_size()
    address = broadcast_from_rank_zero(free_address() if number == 0 else None)
    environment = dict(os.environ)
    if config["chips"]:  # libtpu brings up the whole slice as one otherwise, and the worker wants its host's chips
        alone = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[config["chips"]]}
        environment |= alone | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "CLOUD_TPU_TASK_ID": "0"}
    words = ["--processes", str(count), "--process", str(number), "--coordinator", address]
    # Linux tells it to go when this process dies: what it has come to is saved, and nothing lingers beside the retry.
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    follow = None if libc is None else lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        code = subprocess.run([*config["command"], *words], env=environment, check=False, preexec_fn=follow).returncode
    except OSError as error:
        print(f"{config['command'][0]}: {error}", file=sys.stderr)
        code = NOT_FOUND
    ray.get(config["codes"].put.remote(config["run"], number, code))


# In a process of its own, so that shards may be trained side by side, and one be cancelled with all of its hosts.
@ray.remote(num_cpus=0, max_retries=-1, max_calls=1)
def group(command: list[str], scaling: ScalingConfig, codes: Any) -> dict[int, int]:
    """Trains a shard on one group of hosts; how their processes ended, by number. Where a host is lost: nothing."""
    os.environ |= UNUSED
    run, chips = uuid.uuid4().hex, int(scaling.num_tpus_per_worker)
    with tempfile.TemporaryDirectory() as unused:  # for checkpoints, of which the trainer is told none
        trainer = JaxTrainer(
            host,
            train_loop_config={"command": command, "chips": chips, "codes": codes, "run": run},
            jax_config=JaxConfig(use_tpu=False, use_gpu=False),
            scaling_config=scaling,
            run_config=RunConfig(name=run, storage_path=unused, failure_config=FailureConfig(max_failures=0)),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            if not any(type(each).__module__.startswith("ray.") for each in error.worker_failures.values()):
                raise  # it is not Ray that says so: a fault of `host`
            return {}
        except ControllerError as error:
            if not isinstance(error.controller_failure, ray.exceptions.RayError):
                raise
            return {}
    ended = ray.get(codes.pop.remote(run))
    return ended if len(ended) == scaling.num_workers else {}


def verdict(codes: dict[int, int]) -> tuple[str, bool]:
    """What the exit codes of a shard's processes come to, and whether it is to be begun again.

    The others of a process that fails are told to go by it, so that theirs say nothing.
    """
    if not codes:
        return "a host is lost", True
    if set(codes.values()) == {DONE}:
        return "done", False
    if MISTAKE in codes.values():
        return "a mistake, see its message", False
    for number, code in sorted(codes.items()):
        if code > 0 and code != PREEMPTED:
            return f"a fault, exit code {code} of process {number}", False
    for number, code in sorted(codes.items()):
        if code < 0:
            return f"signal {-code} to process {number}", True
    return "told to go", True


def train(out: Path, scaling: ScalingConfig, worker: list[str], limit: float = LIMIT) -> dict[int, str]:
    """Runs every shard until it needs no more; what became of those that are not done, by number.

    Args:
        scaling: the hosts of one shard.
        worker: the command.
        limit: hours from when a shard is begun until it is given up. Without a whole slice it would wait for ever.
    """
    file = (out / "sweep.json").resolve()
    waiting = collections.deque(range(len(json.loads(file.read_text())["shards"])))
    lost: dict[int, str] = {}
    deaths: collections.Counter[int] = collections.Counter()
    until: dict[int, float] = {}
    # Beside the one who started it, lest it is lost with a slice.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    codes_of = Codes.options(scheduling_strategy=here).remote()

    def begin(number: int) -> Any:
        until.setdefault(number, time.monotonic() + limit * 3600)
        command = [*worker, "--sweep", str(file), "--shard", str(number), "--quiet"]
        return group.options(scheduling_strategy=here).remote(command, scaling, codes_of)

    def give_up(number: int, what: str) -> None:
        lost[number] = what
        print(f"shard {number}: {what}; {len(waiting) + len(running)} shards go on", flush=True)

    running: dict[Any, int] = {}
    while running or waiting:
        while waiting and len(running) < room(scaling):
            number = waiting.popleft()
            running[begin(number)] = number
        left = min(until[number] for number in running.values()) - time.monotonic()
        ended, _ = ray.wait(list(running), num_returns=1, timeout=min(max(left, 0), LOOK_SECONDS))
        for each in ended:
            number = running.pop(each)
            try:
                codes = ray.get(each)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                give_up(number, f"{type(cause).__name__}: {cause}".splitlines()[0])
                continue
            (what, again), over = verdict(codes), until[number] <= time.monotonic()
            deaths[number] += min(codes.values(), default=0) < 0
            if again and deaths[number] <= SIGNALS and not over:
                print(f"shard {number}: {what}; again", flush=True)
                running[begin(number)] = number
            elif what != "done":
                give_up(number, what if not (again and over) else f"{what}, and {limit:g} hours are over")
            else:
                print(f"shard {number}: done; {len(waiting) + len(running)} to go", flush=True)
        for each, number in list(running.items()):
            if until[number] <= time.monotonic():
                ray.cancel(each, force=True)  # Ray ends its hosts too, without notice: what was saved stays
                del running[each]
                give_up(number, f"not done within {limit:g} hours")
    return lost


def room(scaling: ScalingConfig) -> int:
    """How many shards the cluster, as it is now, can train at once; one at least, to wait for hosts."""
    has, takes = ray.cluster_resources(), scaling.total_resources
    fit = [has.get(name, 0) // takes[name] for name in ("TPU", "GPU", "CPU") if takes.get(name)]
    return max(1, int(min(fit, default=1)))


def hosts_of(given: argparse.Namespace) -> ScalingConfig:
    """The hosts of a shard. Raises ValueError: they are no slice."""
    if given.hosts < 1:
        raise ValueError(f"--hosts: was given {given.hosts}; give a number from 1")
    if not 0 < given.limit < math.inf:
        raise ValueError(f"--limit: was given {given.limit}; give hours, above 0")
    if (given.topology is None) != (given.accelerator is None):
        raise ValueError("--topology and --accelerator describe a TPU slice together; give both or neither")
    if given.topology is None:
        each = {"CPU": given.cpus, "GPU": given.gpus}
        # One process a host, as long as there are enough hosts.
        return ScalingConfig(
            num_workers=given.hosts, use_gpu=given.gpus > 0, placement_strategy="SPREAD",
            resources_per_worker={name: amount for name, amount in each.items() if amount},
        )  # fmt: skip
    sides = given.topology.lower().split("x")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"--topology: was given {given.topology!r}; give chips a side, such as 4x4 or 2x2x2")
    chips, rest = divmod(math.prod(map(int, sides)), given.hosts)
    if rest or chips not in BOUNDS:
        raise ValueError(
            f"--hosts: was given {given.hosts}; the {math.prod(map(int, sides))} chips of {given.topology} are "
            f"on hosts of {', '.join(map(str, BOUNDS))} chips each"
        )
    version = given.accelerator.lower().removeprefix("tpu-")
    return ScalingConfig(
        num_workers=given.hosts, use_tpu=True, topology=given.topology.lower(),
        accelerator_type=f"TPU-{VERSIONS.get(version, version).upper()}",
        resources_per_worker={"CPU": given.cpus, "TPU": chips},
    )  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a sweep on a Ray cluster, several hosts a shard.")
    parser.add_argument("out", type=Path, help="the folder that sweep.json is in; every node sees it under this path")
    parser.add_argument("--hosts", type=int, required=True, help="hosts a shard; of a TPU slice all that it has")
    parser.add_argument("--topology", help="of a TPU slice, in chips: 4x4, 2x2x2")
    parser.add_argument("--accelerator", help="of a TPU slice: v4, v5e, v5p, v6e")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"hours until a shard is given up; {LIMIT:g}")
    parser.add_argument("--address", help="of the cluster; left out: the one that is found, or else this machine alone")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs a host; left out: 1")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs a host; left out: 0")
    parser.add_argument(
        "--worker", default=f"{shlex.quote(sys.executable)} -m cl_jax.cli worker", help="command of a worker"
    )
    return parser.parse_args()


def main() -> None:
    given = parse()
    try:
        scaling = hosts_of(given)
        if not (given.out / "sweep.json").is_file():
            raise ValueError(f"no sweep.json in {given.out}: give the folder that `cl-jax shards` has written")
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    try:
        ray.init(address=given.address or "auto", log_to_driver=True)
    except ConnectionError:
        if given.address:
            raise
        ray.init()
    lost = train(given.out, scaling, shlex.split(given.worker), given.limit)
    for number, what in sorted(lost.items()):
        print(f"not done: shard {number}, {what}", file=sys.stderr)
    raise SystemExit(1 if lost else 0)


if __name__ == "__main__":
    main()

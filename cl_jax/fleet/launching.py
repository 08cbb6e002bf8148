"""`cl-jax launch ENGINE OUT`: hands a sweep to what starts workers. An engine is a file in the folder launch.

What an engine needs of cl_jax it reads from sweep.json, so that it may run where cl_jax is not installed. A new one is
its file, a line of `ENGINES` and its options in `TAKES` and `Launch`.
"""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from cl_jax.errors import UserError, unknown
from cl_jax.fleet.bucket import is_url
from cl_jax.option_fields import Flag, option, word


@dataclasses.dataclass
class Launch:
    """Train all shards of a sweep by an engine that starts workers."""

    engine: word("ENGINE")  # pyright: ignore[reportInvalidTypeForm]
    """ray: a task a shard on a Ray cluster, or on this machine. slurm: a job array. k8s: manifests for Kubernetes."""
    out: word("FOLDER|URL")  # pyright: ignore[reportInvalidTypeForm]
    """The folder that sweep.json is in; every machine sees it under this path."""
    cpus: option(float, "X") = None  # pyright: ignore[reportInvalidTypeForm]
    """CPUs that a shard takes, or each of its hosts; left out: 1."""
    gpus: option(float, "X") = None  # pyright: ignore[reportInvalidTypeForm]
    """GPUs that a shard takes, or each of its hosts; left out: 0."""
    hosts: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Hosts that train a shard together, such as all those of a TPU slice; left out: 1."""
    at_once: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """slurm, k8s: shards that train at a time; left out: all, or as many as fit."""
    worker: option(str, "COMMAND") = None  # pyright: ignore[reportInvalidTypeForm]
    """ray, slurm: of a worker on its machine, such as 'cl-jax worker'; left out: that of this Python."""
    address: option(str, "ADDRESS") = None  # pyright: ignore[reportInvalidTypeForm]
    """ray: of the cluster; left out: the one that is found, or else this machine alone."""
    limit: option(float, "HOURS") = None  # pyright: ignore[reportInvalidTypeForm]
    """ray, with --hosts: when a shard is given up, be it for want of a slice; left out: 24."""
    topology: option(str, "AxB") = None  # pyright: ignore[reportInvalidTypeForm]
    """ray with --hosts, k8s: of the TPU slice that a shard has, in chips, such as 2x4."""
    accelerator: option(str, "TYPE") = None  # pyright: ignore[reportInvalidTypeForm]
    """ray with --hosts, k8s: of the TPU slice; v5e, or the name that GKE has for it, such as tpu-v5-lite-podslice."""
    partition: option(str, "NAME") = None  # pyright: ignore[reportInvalidTypeForm]
    """slurm: of the cluster, several with commas; left out: its default."""
    time: option(str, "H:M:S") = None  # pyright: ignore[reportInvalidTypeForm]
    """slurm: that a shard may run at a time, after which it queues again; left out: 04:00:00."""
    nodes: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """slurm: nodes that train a shard together; left out: 1."""
    dry: Flag = False
    """slurm: only write what would be submitted."""
    image: option(str, "IMAGE") = None  # pyright: ignore[reportInvalidTypeForm]
    """k8s: that pods run, with cl-jax in it; see launch/Dockerfile."""
    kind: option(str, "job|jobset|rayjob") = None  # pyright: ignore[reportInvalidTypeForm]
    """k8s: a pod a shard, a TPU slice of several hosts a shard, or Ray's cluster; left out: job."""
    name: option(str, "NAME") = None  # pyright: ignore[reportInvalidTypeForm]
    """k8s: of what is made; left out: the experiment's."""
    claim: option(str, "PVC") = None  # pyright: ignore[reportInvalidTypeForm]
    """k8s: the PersistentVolumeClaim that FOLDER is in."""
    mount: option(str, "PLACE") = None  # pyright: ignore[reportInvalidTypeForm]
    """k8s: where pods see the claim, FOLDER or one around it; left out: FOLDER."""
    memory: option(str, "SIZE") = None  # pyright: ignore[reportInvalidTypeForm]
    """k8s: of a pod, such as 16Gi; left out: 8Gi."""
    chips: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """k8s: TPU chips a host."""
    queue: option(str, "NAME") = None  # pyright: ignore[reportInvalidTypeForm]
    """k8s: Kueue's LocalQueue, which says when it starts."""
    spot: Flag = False
    """k8s: on spot nodes of GKE."""


class Engine(NamedTuple):
    """What starts workers."""

    file: str  # in the checkout's folder launch
    takes: tuple[str, ...]  # its options among those of `Launch`
    module: str | None = None  # that it needs


_RAY = ("cpus", "gpus", "worker", "address")
ENGINES = {
    "ray": Engine("ray_tasks.py", _RAY, "ray"),
    "slurm": Engine("slurm.py", ("cpus", "gpus", "at_once", "worker", "partition", "time", "nodes", "dry")),
    "k8s": Engine("k8s.py", (
        "cpus", "gpus", "hosts", "at_once", "topology", "accelerator", "image", "kind", "name", "claim", "mount",
        "memory", "chips", "queue", "spot",
    )),
}  # fmt: skip
SLICES = {"ray": Engine("ray_slices.py", (*_RAY, "hosts", "limit", "topology", "accelerator"), "ray")}  # with --hosts
WHOLE, NUMBERS = ("nodes", "at_once", "chips", "hosts"), ("cpus", "gpus", "limit")
MISSING = f"give an engine, one of {', '.join(ENGINES)}"
ABOUT = """Train all shards of a sweep by an engine that starts workers, and starts them again.

  ray    waits: exits 0 when all shards are done, and 1 where some are not, which it names
  slurm  submits those that are not done, by a script that it writes to OUT/launch, and exits 0
  k8s    writes manifests to OUT/launch, says how to apply them, and exits 0

Examples:
  cl-jax launch ray runs/fleet --cpus 2
  cl-jax launch ray runs/fleet --hosts 4 --topology 4x4 --accelerator v5e
  cl-jax launch slurm runs/fleet --partition gpu --gpus 1 --time 04:00:00
  cl-jax launch k8s /runs/fleet --image registry/cl_jax:1 --claim runs --mount /runs --cpus 4
"""


def launch(command: Launch) -> None:
    """Hands a sweep to an engine. Raises SystemExit: as the engine ends."""
    if command.engine not in ENGINES:
        raise unknown("engine", command.engine, ENGINES)
    engine = (ENGINES if command.hosts is None else {**ENGINES, **SLICES})[command.engine]
    given = {name: value for name, value in vars(command).items() if value is not None and value is not False}
    del given["engine"], given["out"]
    for name in given:
        if name in engine.takes:
            continue
        if command.hosts is None and command.engine in SLICES and name in SLICES[command.engine].takes:
            raise UserError(f"{_spelling(name)}: is for several hosts a shard; give --hosts too")
        allowed = ", ".join(_spelling(each) for each in engine.takes)
        raise UserError(f"{_spelling(name)}: is no option of launch {command.engine}, which has {allowed}")
    file = Path(__file__).parents[2] / "launch" / engine.file
    if not file.is_file():
        raise UserError(f"launch: {file.name} is in the checkout's folder launch, and this is not run from a checkout")
    if engine.module is not None and importlib.util.find_spec(engine.module) is None:
        raise UserError(
            f"launch: {engine.module} is not installed; pip install 'cl_jax[{engine.module}]', or run {file} by a "
            f"Python that has it"
        )
    words = [_spelling(name) + ("" if value is True else f"={value}") for name, value in given.items()]
    if is_url(command.out):
        if engine.file != "ray_tasks.py":
            raise UserError(f"launch: {engine.file} needs a folder, and {command.out} is a store; use launch ray")
        from cl_jax.fleet import view

        words.append(f"--shards={view.num_shards(command.out)}")
    raise SystemExit(subprocess.run([sys.executable, str(file), str(command.out), *words], check=False).returncode)


def _spelling(name: str) -> str:
    return f"--{name.replace('_', '-')}"

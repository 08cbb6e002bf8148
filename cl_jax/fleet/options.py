"""The commands that train an experiment in shards, as `cl_jax.options` has the others."""

import dataclasses
from pathlib import Path

from cl_jax.option_fields import Flag, Job, option, place, word


@dataclasses.dataclass
class Shards(Job):
    """Cut an experiment into shards that processes train apart, and write sweep.json."""

    members: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Runs in a shard; left out: all that share a program."""
    hours: option(float, "H") = None  # pyright: ignore[reportInvalidTypeForm]
    """Hours that a shard takes on a machine like this one; each program is compiled and timed for it."""
    measure: Flag = False
    """Compile and time programs for their widths where `run` would; with --hours always."""
    chips: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """For the cost: chips of a machine that trains a shard; left out: 1."""
    price: option(float, "X") = None  # pyright: ignore[reportInvalidTypeForm]
    """For the cost: of a chip-hour, in any currency."""
    preemptions: option(float, "PER_HOUR") = None  # pyright: ignore[reportInvalidTypeForm]
    """For the cost: how often an hour a machine is taken away; left out: 0."""
    save_seconds: option(float, "S") = None  # pyright: ignore[reportInvalidTypeForm]
    """For the cost: that a save takes; left out: 2."""
    restart_minutes: option(float, "R") = None  # pyright: ignore[reportInvalidTypeForm]
    """For the cost: until a shard trains again on another machine; left out: 6."""


@dataclasses.dataclass
class Worker:
    """Train one shard of a sweep; to be started again until it exits 0."""

    sweep: option(Path, "FILE") = None  # pyright: ignore[reportInvalidTypeForm]
    """The sweep.json that `shards` has written."""
    shard: option(int, "I") = None  # pyright: ignore[reportInvalidTypeForm]
    """Number of the shard, from 0."""
    quiet: Flag = False
    """Print nothing but errors, and how it ended."""


@dataclasses.dataclass
class Status:
    """Say where the shards of a sweep stand."""

    out: place("FOLDER")  # pyright: ignore[reportInvalidTypeForm]
    """The folder that sweep.json is in."""
    watch: Flag = False
    """Again and again, until every shard is done."""


@dataclasses.dataclass
class Gather:
    """Write the one table of a sweep from its shards, and say what is missing."""

    out: place("FOLDER")  # pyright: ignore[reportInvalidTypeForm]
    """The folder that sweep.json is in."""
    mixed: Flag = False
    """Also where shards were trained by different versions, at different precisions or on different platforms."""


@dataclasses.dataclass
class Launch:
    """Train all shards of a sweep by an engine that starts workers."""

    engine: word("ENGINE")  # pyright: ignore[reportInvalidTypeForm]
    """ray: a task a shard on a Ray cluster, or on this machine. k8s: manifests for Kubernetes, which you apply."""
    out: place("FOLDER")  # pyright: ignore[reportInvalidTypeForm]
    """The folder that sweep.json is in; every machine sees it under this path."""
    cpus: option(float, "X") = None  # pyright: ignore[reportInvalidTypeForm]
    """CPUs that a shard takes; left out: 1."""
    gpus: option(float, "X") = None  # pyright: ignore[reportInvalidTypeForm]
    """GPUs that a shard takes; left out: 0."""
    address: option(str, "ADDRESS") = None  # pyright: ignore[reportInvalidTypeForm]
    """Of the cluster; left out: the one that is found, or else this machine alone."""
    image: option(str, "IMAGE") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: that pods run, with cl-jax in it; see launch/Dockerfile."""
    kind: option(str, "job|jobset|rayjob") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: a pod a shard, a TPU slice of several hosts a shard, or Ray's cluster; left out: job."""
    name: option(str, "NAME") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: of what is made; left out: the experiment's."""
    claim: option(str, "PVC") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: the PersistentVolumeClaim that FOLDER is in."""
    mount: option(str, "PATH") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: where pods see the claim, FOLDER or one around it; left out: FOLDER."""
    memory: option(str, "SIZE") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: of a pod, such as 16Gi; left out: 8Gi."""
    accelerator: option(str, "TYPE") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: TPU type of GKE, such as tpu-v5-lite-podslice."""
    topology: option(str, "AxB") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: of the TPU slice that a shard has, such as 2x4."""
    chips: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: TPU chips a host."""
    hosts: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: hosts of the TPU slice; left out: 1."""
    queue: option(str, "NAME") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: Kueue's LocalQueue, which says when it starts."""
    spot: Flag = False
    """Kubernetes: on spot nodes of GKE."""
    at_once: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Kubernetes: shards that train at a time; left out: all."""


COMMANDS = {"shards": Shards, "worker": Worker, "launch": Launch, "status": Status, "gather": Gather}
ENGINES = {  # by the name of their file in the checkout's folder launch
    "ray": "ray_tasks.py",
    "k8s": "k8s.py",
}
TAKES = {  # which options of `launch` an engine has
    "ray": ("cpus", "gpus", "address"),
    "k8s": (
        "image", "kind", "name", "claim", "mount", "cpus", "memory", "gpus", "accelerator", "topology", "chips",
        "hosts", "queue", "spot", "at_once",
    ),
}  # fmt: skip
ABOUT = {
    "shards": """Cut an experiment into shards that processes train apart, and write sweep.json.

The same command again writes the same; nothing is trained. What it costs is told after the plan.

Examples:
  cl-jax shards experiments/quickstart --out runs/fleet --members 20
  cl-jax shards experiments/quickstart --out runs/fleet --hours 2
  cl-jax shards experiments/quickstart --out runs/fleet --hours 2 --chips 4 --price 1.20 --preemptions 0.2
""",
    "worker": """Train one shard of a sweep, from wherever an earlier worker left it.

The sweep names a Python file, which is run: train only sweeps of people you trust.

Its exit code says what to do:
  0     the shard is done
  75    it was told to go (SIGTERM), and has saved all: start it again
  2     a mistake, which another start would only repeat: mend it first
  else  a fault: see its message

Examples:
  cl-jax worker --sweep runs/fleet/sweep.json --shard 0
""",
    "launch": """Train all shards of a sweep by an engine that starts workers, and starts them again.

  ray    waits: exits 0 when all shards are done, and 1 where some are not, which it names
  k8s    writes manifests to OUT/launch, says how to apply them, and exits 0

Examples:
  cl-jax launch ray runs/fleet --cpus 2
  cl-jax launch k8s /runs/fleet --image registry/cl_jax:1 --claim runs --mount /runs --cpus 4 --at-once 50
""",
    "status": """Say where the shards of a sweep stand: done, running, stale, failed, waiting.

Examples:
  cl-jax status runs/fleet
  cl-jax status runs/fleet --watch
""",
    "gather": """Write the one table of a sweep from its shards, bit for bit the one of `cl-jax run`.

It exits 1 where shards are missing, names them, and writes what is there.

Examples:
  cl-jax gather runs/fleet && cl-jax report runs/fleet
""",
}
MISSING = {
    "sweep": "give --sweep, the sweep.json of a sweep",
    "shard": "give --shard, its number from 0",
    "engine": f"give an engine, one of {', '.join(ENGINES)}",
}
WHOLE, NUMBERS = ("members", "shard", "chips", "hosts", "at_once"), (
    "hours", "cpus", "gpus", "price", "preemptions", "save_seconds", "restart_minutes",
)  # fmt: skip

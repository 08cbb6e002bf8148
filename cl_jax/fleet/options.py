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
    """ray: a task a shard on a Ray cluster, or on this machine."""
    out: place("FOLDER")  # pyright: ignore[reportInvalidTypeForm]
    """The folder that sweep.json is in; every machine sees it under this path."""
    cpus: option(float, "X") = None  # pyright: ignore[reportInvalidTypeForm]
    """CPUs that a shard takes, or each of its hosts; left out: 1."""
    gpus: option(float, "X") = None  # pyright: ignore[reportInvalidTypeForm]
    """GPUs that a shard takes, or each of its hosts; left out: 0."""
    address: option(str, "ADDRESS") = None  # pyright: ignore[reportInvalidTypeForm]
    """Of the cluster; left out: the one that is found, or else this machine alone."""
    hosts: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Hosts that train a shard together, such as all those of a TPU slice; left out: 1."""
    topology: option(str, "AxB") = None  # pyright: ignore[reportInvalidTypeForm]
    """With --hosts: of a TPU slice, in chips, such as 4x4."""
    accelerator: option(str, "NAME") = None  # pyright: ignore[reportInvalidTypeForm]
    """With --hosts: of a TPU slice, such as v5e."""
    limit: option(float, "HOURS") = None  # pyright: ignore[reportInvalidTypeForm]
    """With --hosts: when a shard is given up, be it for want of a slice; left out: 24."""


COMMANDS = {"shards": Shards, "worker": Worker, "launch": Launch, "status": Status, "gather": Gather}
ENGINES = {"ray": "ray_tasks.py"}  # by the name of their file in the checkout's folder launch
SLICES = {"ray": "ray_slices.py"}  # where several hosts train a shard
ABOUT = {
    "shards": """Cut an experiment into shards that processes train apart, and write sweep.json.

The same command again writes the same; nothing is trained.

Examples:
  cl-jax shards experiments/quickstart --out runs/fleet --members 20
  cl-jax shards experiments/quickstart --out runs/fleet --hours 2
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

It exits 0 when all shards are done, and 1 where some are not, which it names.

Examples:
  cl-jax launch ray runs/fleet --cpus 2
  cl-jax launch ray runs/fleet --hosts 4 --topology 4x4 --accelerator v5e
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
WHOLE, NUMBERS = ("members", "shard", "hosts"), ("hours", "cpus", "gpus", "limit")

"""The commands that train an experiment in shards, as `cl_jax.options` has the others."""

import dataclasses
from pathlib import Path

from cl_jax.fleet import launching
from cl_jax.fleet.launching import Launch as Launch
from cl_jax.option_fields import Flag, Job, option, word


@dataclasses.dataclass
class Shards(Job):
    """Cut an experiment into shards that processes train apart, and write sweep.json."""

    out: option(str, "FOLDER|URL") = None  # pyright: ignore[reportInvalidTypeForm, reportIncompatibleVariableOverride]
    """Where the sweep goes, also s3://bucket/folder and gs://...; left out: runs/<name of the experiment's folder>."""
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

    sweep: option(str, "FILE|URL") = None  # pyright: ignore[reportInvalidTypeForm]
    """The sweep.json that `shards` has written."""
    shard: option(int, "I") = None  # pyright: ignore[reportInvalidTypeForm]
    """Number of the shard, from 0."""
    processes: option(str, "N|auto") = None  # pyright: ignore[reportInvalidTypeForm]
    """Processes that train the shard together; auto: those of a srun, a TPU slice or an mpirun. Left out: 1."""
    process: option(int, "K") = None  # pyright: ignore[reportInvalidTypeForm]
    """Which of them this is, from 0."""
    coordinator: option(str, "HOST:PORT") = None  # pyright: ignore[reportInvalidTypeForm]
    """Where process 0 is found by the others; any free port of its machine."""
    scratch: option(Path, "FOLDER") = None  # pyright: ignore[reportInvalidTypeForm]
    """Of a sweep in a store: where its local copy lies until the shard is done; left out: in the user's cache."""
    quiet: Flag = False
    """Print nothing but errors, and how it ended."""


@dataclasses.dataclass
class Status:
    """Say where the shards of a sweep stand."""

    out: word("FOLDER|URL")  # pyright: ignore[reportInvalidTypeForm]
    """The folder that sweep.json is in."""
    watch: Flag = False
    """Again and again, until every shard is done."""


@dataclasses.dataclass
class Gather:
    """Write the one table of a sweep from its shards, and say what is missing."""

    out: word("FOLDER|URL")  # pyright: ignore[reportInvalidTypeForm]
    """The folder that sweep.json is in."""
    to: option(Path, "FOLDER") = None  # pyright: ignore[reportInvalidTypeForm]
    """Of a sweep in a store: where else its table goes, for `report`; left out: runs/<last name of the URL>."""
    mixed: Flag = False
    """Also where shards were trained by different versions, at different precisions or on different platforms."""


COMMANDS = {"shards": Shards, "worker": Worker, "launch": Launch, "status": Status, "gather": Gather}
ABOUT = {
    "shards": """Cut an experiment into shards that processes train apart, and write sweep.json.

The same command again writes the same; nothing is trained. What it costs is told after the plan.

Examples:
  cl-jax shards experiments/quickstart --out runs/fleet --members 20
  cl-jax shards experiments/quickstart --out runs/fleet --hours 2
  cl-jax shards experiments/quickstart --out s3://bucket/fleet --members 20
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
  cl-jax worker --sweep s.json --shard 0 --processes 2 --process 0 --coordinator node1:9876
  srun cl-jax worker --sweep s.json --shard 0 --processes auto
  cl-jax worker --sweep s3://bucket/fleet/sweep.json --shard 0 --scratch /local
""",
    "launch": launching.ABOUT,
    "status": """Say where the shards of a sweep stand: done, running, stale, failed, waiting.

Examples:
  cl-jax status runs/fleet
  cl-jax status runs/fleet --watch
""",
    "gather": """Write the one table of a sweep from its shards, bit for bit the one of `cl-jax run`.

It exits 1 where shards are missing, names them, and writes what is there.

Examples:
  cl-jax gather runs/fleet && cl-jax report runs/fleet
  cl-jax gather s3://bucket/fleet --to runs/fleet && cl-jax report runs/fleet
""",
}
MISSING = {
    "sweep": "give --sweep, the sweep.json of a sweep",
    "shard": "give --shard, its number from 0",
    "engine": launching.MISSING,
}
WHOLE = ("members", "shard", "process", *launching.WHOLE)
NUMBERS = ("hours", "price", "preemptions", "save_seconds", "restart_minutes", *launching.NUMBERS)

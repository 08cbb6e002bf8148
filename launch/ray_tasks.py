"""Trains a sweep on a Ray cluster: a task a shard, each of which runs `cl-jax worker` as a process of its own.

    cl-jax shards experiments/quickstart --out runs/fleet --members 20
    python launch/ray_tasks.py runs/fleet

Ray only decides where and when. What makes that safe is in the worker and in the folder, which every node has to see
under the same path, or in the store that a URL names: a task may be run again, elsewhere or twice. Nothing of cl_jax is
imported here, so that Ray may be installed apart from it (`--worker`), and this file is all there is to read of how Ray
is used.

Exit codes: 0 all shards are done; 1 some are not, and are named; 2 a mistake.
"""

import argparse
import collections
import ctypes
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import ray

DONE, MISTAKE, PREEMPTED = 0, 2, 75  # of a worker
SIGNALS = 3  # times that a shard's process may die by a signal, such as that of a machine out of memory
PR_SET_PDEATHSIG = 1


# A node that dies takes its tasks with it, and they are run elsewhere without end. One call a process: it would keep an
# accelerator otherwise.
@ray.remote(max_retries=-1, max_calls=1)
def shard(command: list[str]) -> int:
    """Runs a worker; its exit code."""
    # Linux tells it to go when this process dies: what it has come to is saved, and nothing lingers beside the retry.
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    follow = None if libc is None else lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return subprocess.run(command, check=False, preexec_fn=follow).returncode


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a sweep on a Ray cluster.")
    parser.add_argument("out", help="the folder or URL that sweep.json is in; every node sees it under this path")
    parser.add_argument("--shards", type=int, help="how many there are; needed where sweep.json is in a store")
    parser.add_argument("--address", help="of the cluster; left out: the one that is found, or else this machine alone")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs a shard; left out: 1")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs a shard; left out: 0")
    parser.add_argument("--resources", default="{}", help='what else a shard takes, as JSON: {"TPU": 4}')
    parser.add_argument(
        "--worker", default=f"{shlex.quote(sys.executable)} -m cl_jax.cli worker", help="command of a worker"
    )
    return parser.parse_args()


def train(file: str, count: int, options: dict[str, Any], worker: list[str]) -> dict[int, str]:
    """Runs every shard of a sweep.json until it needs no more; what became of those that are not done, by number."""
    lost: dict[int, str] = {}
    deaths: collections.Counter[int] = collections.Counter()
    task = shard.options(**options)

    def begin(number: int) -> Any:
        return task.remote([*worker, "--sweep", file, "--shard", str(number), "--quiet"])

    running = {begin(number): number for number in range(count)}
    while running:
        (ended,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(ended)
        try:
            code = ray.get(ended)
        except ray.exceptions.RayError as error:  # the worker was not even started
            lost[number] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        deaths[number] += code < 0
        if code == PREEMPTED or (code < 0 and deaths[number] <= SIGNALS):
            print(f"shard {number}: {'told to go' if code > 0 else f'signal {-code}'}; again", flush=True)
            running[begin(number)] = number
        elif code != DONE:
            what = {MISTAKE: "a mistake, see its message"}.get(code, f"a fault, exit code {code}")
            lost[number] = what
            print(f"shard {number}: {what}; {len(running)} shards go on", flush=True)
        else:
            print(f"shard {number}: done; {len(running)} to go", flush=True)
    return lost


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(MISTAKE)


def main() -> None:
    given = parse()
    if "://" in given.out:
        file, count = f"{given.out.rstrip('/')}/sweep.json", given.shards
        if count is None:
            _fail(f"--shards: is missing; `cl-jax shards` has said how many {file} has")
    else:
        path = Path(given.out) / "sweep.json"
        if not path.is_file():
            _fail(f"no sweep.json in {given.out}: give the folder that `cl-jax shards` has written")
        file, count = str(path.resolve()), len(json.loads(path.read_text())["shards"])
    try:
        ray.init(address=given.address or "auto", log_to_driver=True)
    except ConnectionError:
        if given.address:
            raise
        ray.init()
    options = {"num_cpus": given.cpus, "num_gpus": given.gpus, "resources": json.loads(given.resources)}
    lost = train(file, count, options, shlex.split(given.worker))
    for number, what in sorted(lost.items()):
        print(f"not done: shard {number}, {what}", file=sys.stderr)
    raise SystemExit(1 if lost else 0)


if __name__ == "__main__":
    main()

"""How time and memory grow with members, tasks and devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cl_jax.methods.ewc import Ewc
from cl_jax.tasks import Permuted
from experiments.benchmark import engine
from experiments.benchmark.bench import Bench, Step
from experiments.benchmark.cases import Case, images
from experiments.benchmark.engine import Engine, Packing
from experiments.benchmark.measure import Contestant, Spread, timed, warm
from experiments.benchmark.rows import Row, row

MIDDLE = Case(model="mlp-100", batch_size=32, optimizer="adam")
LARGE = Case(model="mlp-400", batch_size=128, optimizer="adam")
ROOT = Path(__file__).parents[2]


def plan(bench: Bench) -> list[Step]:
    steps = [Step("scaling over members", 20.0, lambda: members(bench))]
    if bench.quick:
        return steps
    return [
        *steps,
        Step("scaling over tasks", 30.0, lambda: tasks(bench)),
        *(Step(f"{count} devices", 15.0, lambda count=count: devices(bench, count)) for count in (1, 2, 4, 8)),
        *(Step(f"memory of {count} members", 15.0, lambda count=count: memory(count)) for count in (1, 64)),
    ]


def members(bench: Bench) -> list[Row]:
    """Member-steps a second of whole groups, as the engine itself lays them out."""
    steps = 20 if bench.quick else 50
    run, data, warmed = MIDDLE.run(steps=steps), images(MIDDLE.kind), []
    packing = engine.chosen(run, data, bench.members)
    for count in bench.members:
        group = Engine(run, data, packing[count], count)
        call = timed(lambda group=group: group.steps(steps))
        warmed.append(warm(Contestant(name=str(count), run=call, units=count * steps)))
    rows = []
    for name, timing in bench.race(warmed, slower=2.0).items():
        about = {**MIDDLE.about, **packing[int(name)]._asdict(), "members": int(name)}
        rows.append(row("scaling", "ms per member-step", timing.spread(1e3), **about))
        rows.append(row("scaling", "member-steps/s", timing.rate(1.0), **about))
    return rows


def tasks(bench: Bench) -> list[Row]:
    """Step, boundary and compile time of EWC with one spring a task, for more and more tasks."""
    data, rows, warmed, boundaries = images(MIDDLE.kind), [], [], []
    for count in (1, 5, 20):
        run = MIDDLE.run(stream=Permuted(num_tasks=count), methods={"ewc": Ewc(num_examples=1000)})
        made = Engine(run, data, Packing(1, 1))
        warmed.append(warm(Contestant(name=str(count), run=timed(lambda m=made: m.steps(100)), units=100)))
        boundaries.append(warm(Contestant(name=str(count), run=timed(made.end_task), units=1)))
    for metric, race in (("ms per member-step", warmed), ("ms per boundary", boundaries)):
        timings = bench.race(race)
        for one in race:
            about = {**MIDDLE.about, "tasks": int(one.contestant.name), "method": "ewc", "members": 1}
            rows.append(row("scaling", metric, timings[one.contestant.name].spread(1e3), **about))
            rows.append(row("scaling", f"compile s of {metric.split()[-1]}", one.compiling, **about))
    return rows


def devices(bench: Bench, count: int) -> list[Row]:
    """A process with that many forced host devices trains eight members for each."""
    asked = {"devices": count, "members": 8 * count, "case": MIDDLE.about, "steps": 20, "seconds": bench.race_seconds}
    told = in_process(asked)
    about = {**MIDDLE.about, "members": asked["members"], "devices": told["devices"], "width": told["width"]}
    return [row("scaling", "ms per member-step, forced devices", Spread(**told["ms"]), **about)]


def memory(count: int) -> list[Row]:
    """The most memory of a process that trains so many members one by one; what it should be beside it."""
    asked = {"devices": 1, "members": count, "case": LARGE.about, "steps": 3, "seconds": 0.0, "one_by_one": True}
    told = in_process(asked)
    about = {**LARGE.about, "members": count, "devices": 1, "width": 1}
    return [
        row("memory", "peak MB", told["peak_bytes"] / 1e6, **about),
        row("memory", "state MB", told["state_bytes"] / 1e6, **about),
        row("memory", "data MB", told["data_bytes"] / 1e6, **about),
    ]


def in_process(asked: dict[str, Any]) -> dict[str, Any]:
    """What `experiments.benchmark.worker` answers in a process of its own.

    Raises:
        RuntimeError: it failed; the message is the end of what it said.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark.worker", json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"a measurement in a process of its own failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])

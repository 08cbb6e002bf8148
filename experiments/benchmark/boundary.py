"""What a task boundary costs beside training: Fisher, evaluation, checkpoint; and what compiling costs.

The protocol is split MNIST as published for the kinds of Fisher (targets: 5 tasks of 2 classes, task-incremental, MLP
2 x 400, Adam, batch 128, 2000 steps a task, online EWC), on random images of MNIST's shape and number.
"""

import functools
import tempfile
from pathlib import Path
from typing import Any

from cl_jax.checkpoint import Checkpoints
from cl_jax.data import Data
from cl_jax.methods.ewc import Ewc
from cl_jax.tasks import Split
from experiments.benchmark import engine
from experiments.benchmark.bench import Bench, Step
from experiments.benchmark.cases import STEPS, Case, images, known
from experiments.benchmark.engine import Engine, Packing
from experiments.benchmark.measure import Contestant, Timing, spread, timed, warm
from experiments.benchmark.rows import Row, row
from experiments.benchmark.steps import layout

CASE = Case(model="mlp-400", batch_size=128, optimizer="adam")
MEMBERS = 4
PROTOCOL: dict[str, Any] = {"stream": Split(num_tasks=5), "scenario": "task"}
TURN = 100  # steps trained in a turn


def plan(bench: Bench) -> list[Step]:
    models = ("mlp-400",) if bench.quick else ("mlp-100", "mlp-400", "cnn", "resnet18")
    seconds = {"mlp-100": 6.0, "mlp-400": 6.0, "cnn": 12.0, "resnet18": 60.0}
    compiling = [Step(f"compiling {m}", seconds[m], lambda m=m: compiles(m)) for m in models if known(m)]
    return [Step("task boundary", 30.0, lambda: boundary(bench)), *compiling]


def boundary(bench: Bench) -> list[Row]:
    """Milliseconds a member of every part of a boundary, and its share of a whole run."""
    data = images("mnist", 12000, 2000) if bench.quick else images("mnist", 60000, 10000)
    with tempfile.TemporaryDirectory() as folder:
        plain, ewc, saves = _engine(data, {}), _engine(data, {"ewc": Ewc(anchors="online")}), Saves(Path(folder))
        contestants = {
            "steps": (timed(lambda: ewc.steps(TURN)), MEMBERS * TURN),
            "evaluation": (timed(plain.end_task), MEMBERS),
            "Fisher and evaluation": (timed(ewc.end_task), MEMBERS),
            "checkpoint, training waits": (timed(lambda: saves.start(ewc)), MEMBERS),
            "checkpoint, written behind": (timed(saves.finish), MEMBERS),
        }
        warmed = [warm(Contestant(name=n, run=run, units=units)) for n, (run, units) in contestants.items()]
        timings = bench.race(warmed, slower=2.0)
        saves.close()
    training = [one * STEPS for one in timings.pop("steps").seconds]
    both, evaluation, waits = (
        timings[n] for n in ("Fisher and evaluation", "evaluation", "checkpoint, training waits")
    )
    timings["Fisher"] = _sum(both, evaluation, -1.0)
    timings["evaluation and waiting for the checkpoint"] = _sum(evaluation, waits, 1.0)
    about = {**CASE.about, **layout(ewc.layout), "members": MEMBERS, "tasks": 5}
    rows = [row("boundary", "ms per member", spread([1e3 * one for one in training]), method="training", **about)]
    for name, timing in timings.items():
        share = spread([100 * one / (one + whole) for one, whole in zip(timing.seconds, training, strict=True)])
        rows.append(row("boundary", "ms per member", timing.spread(1e3), method=name, **about))
        rows.append(row("boundary", "% of a run", share, method=name, **about))
    return rows


def _sum(one: Timing, other: Timing, sign: float) -> Timing:
    return Timing(tuple(a + sign * b for a, b in zip(one.seconds, other.seconds, strict=True)))


def _engine(data: Data, methods: dict[str, Any]) -> Engine:
    run = CASE.run(**PROTOCOL, methods=methods, steps=TURN)
    return Engine(run, data, engine.chosen(run, data, [MEMBERS])[MEMBERS], MEMBERS)


class Saves:
    """Checkpoints of one attempt, each a step further."""

    def __init__(self, folder: Path):
        self._checkpoints, self._step = Checkpoints(folder, lambda message: None), 0

    def start(self, trained: Engine) -> None:
        self._step += 1
        self._checkpoints.save(self._step, {"state": trained.checkpoint()})

    def finish(self) -> None:
        self._checkpoints.wait()

    def close(self) -> None:
        self._checkpoints.close()


def compiles(model: str) -> list[Row]:
    """Seconds of the first call of each program less those of a usual call, nothing cached; one member."""
    case = Case(model=model, batch_size=32, optimizer="adam")
    run, data = case.run(methods={"ewc": Ewc(num_examples=64)}), images(case.kind)
    engine.programs.cache_clear()
    packing = Packing(1, 1)
    trained = functools.partial(Engine, run, data, packing)
    start = warm(Contestant(name="start", run=timed(lambda: trained().states), units=1))
    made = trained()
    steps = warm(Contestant(name="steps", run=timed(lambda: made.steps(4)), units=1))
    end = warm(Contestant(name="boundary", run=timed(made.end_task), units=1))
    parts = {"worlds and first state": start, "steps": steps, "boundary with EWC": end}
    return [
        row("compile", "compile s", one.compiling, method=name, **case.about, **layout(packing))
        for name, one in parts.items()
    ]

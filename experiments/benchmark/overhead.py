"""What the engine costs over a bare scan, what each method costs over fine-tuning, and the two kinds of convolution."""

import dataclasses
from functools import partial
from typing import Any

from cl_jax.experiment import MODELS
from cl_jax.methods import METHODS
from cl_jax.methods.ewc import Ewc
from cl_jax.tasks import Permuted
from experiments.benchmark import by_hand
from experiments.benchmark.bench import Bench, Step
from experiments.benchmark.cases import Case, images
from experiments.benchmark.engine import Engine, Packing
from experiments.benchmark.measure import Contestant, Timing, ratio, spread, timed, warm, warm_all
from experiments.benchmark.rows import Row, row
from experiments.benchmark.steps import contestant, layout

LARGE = Case(model="mlp-400", batch_size=128, optimizer="sgd")
LARGE_ADAM = Case(model="mlp-400", batch_size=128, optimizer="adam")
SMALL = Case(model="mlp-256", batch_size=10, optimizer="sgd")
CNN = Case(model="cnn", batch_size=64, optimizer="sgd")
TURN = 250  # steps, as many as the engine takes between two reports of progress


def plan(bench: Bench) -> list[Step]:
    steps = [
        Step(f"by hand: {case}", 8.0, lambda case=case: against(bench, case)) for case in (LARGE, LARGE_ADAM, SMALL)
    ]
    if "cnn" in MODELS:
        steps.append(Step("lax.conv", 20.0, lambda: convolutions(bench)))
    for case in (LARGE_ADAM,) if bench.quick else (LARGE_ADAM, SMALL):
        steps.append(Step(f"methods: {case}", 20.0, lambda case=case: methods(bench, case)))
    return steps


def alone() -> Packing:
    """One member on one device."""
    return Packing(1, 1)


def against(bench: Bench, case: Case) -> list[Row]:
    """The engine with one member and the same steps as a bare scan written by hand."""
    trained, scan = Engine(case.run(), images(case.kind), alone()), by_hand.scan_of(case, images(case.kind), TURN)
    contestants = {"engine": lambda: trained.steps(TURN), "scan by hand": scan}
    warmed = [warm(Contestant(name=name, run=timed(call), units=TURN)) for name, call in contestants.items()]
    timings = bench.race(warmed, slower=2.0)
    engine_, hand = timings["engine"], timings["scan by hand"]
    about = {**case.about, **layout(alone())}
    return [
        row("overhead", "ms per member-step", engine_.spread(1e3), method="no method", **about),
        row("overhead", "ms per member-step", hand.spread(1e3), method="no method", who="scan by hand", **about),
        row("overhead", "engine / scan by hand", ratio(engine_, hand), **about),
    ]


def variants() -> dict[str, dict[str, Any]]:
    """Every method of this version by itself, and what else may cost something."""
    of_images = {name: method for name, method in METHODS.items() if not getattr(method, "needs_text", False)}
    alone = {name: {"methods": {name: method()}} for name, method in of_images.items()}
    return {
        "fine-tuning": {},
        **alone,
        "ewc, proximal": {"methods": {"ewc": Ewc(proximal=True)}},
        "permuted pixels": {"stream": Permuted(num_tasks=1)},
    }


def methods(bench: Bench, case: Case) -> list[Row]:
    """Milliseconds of a step with each method, and how much that is above fine-tuning."""

    def make(name: str, changes: dict[str, Any]) -> Contestant:
        return dataclasses.replace(contestant(case, alone(), bench.call_seconds, **changes), name=name)

    warmed = warm_all([partial(make, name, changes) for name, changes in variants().items()])
    timings = bench.race(warmed, slower=2.0)
    rows, plain = [], timings["fine-tuning"]
    for name, timing in timings.items():
        about = {**case.about, **layout(alone()), "method": name}
        rows.append(row("overhead", "ms per member-step", timing.spread(1e3), **about))
        rows.append(row("overhead", "overhead %", _above(timing, plain), **about))
    return rows


def _above(timing: Timing, plain: Timing) -> Any:
    return spread([100 * (a / b - 1) for a, b in zip(timing.seconds, plain.seconds, strict=True)])


def convolutions(bench: Bench) -> list[Row]:
    """The CNN as this package trains it, and with the library's convolution."""
    ours = warm(contestant(CNN, alone(), bench.call_seconds))
    made = contestant(CNN, alone(), bench.call_seconds, model=MODELS["cnn"](convolution="library"))
    library = warm(dataclasses.replace(made, name="lax.conv"))
    timings = bench.race([ours, library])
    fast, slow = timings[ours.contestant.name], timings["lax.conv"]
    about = {**CNN.about, **layout(alone())}
    return [
        row("cnn", "ms per member-step", slow.spread(1e3), who="lax.conv", **about),
        row("cnn", "lax.conv / cl_jax", ratio(slow, fast), **about),
    ]

"""Training steps of one model under every packing, beside PyTorch and the peak."""

from functools import partial
from typing import Any, NamedTuple

from cl_jax import flops
from cl_jax.devices import memory_bytes
from experiments.benchmark import engine
from experiments.benchmark.bench import Bench, Step
from experiments.benchmark.cases import NUM_CLASSES, Case, images, known
from experiments.benchmark.engine import Engine, Packing
from experiments.benchmark.measure import Contestant, Spread, Timing, Warm, ratio, spread, timed, warm, warm_all
from experiments.benchmark.rows import Row, row
from experiments.benchmark.with_torch import covered

FULL = {
    "mlp": [
        *(Case(model=f"mlp-{width}", batch_size=batch_size, optimizer=optimizer)
          for width in (32, 100, 400, 2000) for batch_size in (128, 10) for optimizer in ("sgd", "adam")),
        Case(model="mlp-256", batch_size=10, optimizer="sgd"),
    ],
    "cnn": [Case(model="cnn", batch_size=64, optimizer=optimizer) for optimizer in ("sgd", "adam")],
    "resnet18": [Case(model="resnet18", batch_size=10, optimizer="sgd")],
}  # fmt: skip
QUICK = {
    "mlp": [
        Case(model="mlp-400", batch_size=128, optimizer="sgd"),
        Case(model="mlp-400", batch_size=128, optimizer="adam"),
        Case(model="mlp-256", batch_size=10, optimizer="sgd"),
    ],
    "cnn": [Case(model="cnn", batch_size=64, optimizer="sgd")],
    "resnet18": [],
}
FEWEST, MOST = 2, 250  # steps a turn
GUESSED_FLOPS = 2e10  # a second, for the number of steps by which the engine is to measure widths


def plan(bench: Bench, section: str) -> list[Step]:
    """One step a case, none for a model that this version lacks."""
    cases = [case for case in (QUICK if bench.quick else FULL)[section] if known(case.model)]
    seconds = len(bench.widths) * (2.0 if section == "mlp" else 6.0) + bench.race_seconds
    return [Step(str(case), seconds, lambda case=case: measure(bench, case)) for case in cases]


class Raced(NamedTuple):
    """The timings of a case."""

    case: Case
    packed: list[Packing]
    chosen: dict[int, Packing]  # by the engine, for so many members
    timings: dict[str, Timing]  # by packing, and of PyTorch
    peak: Timing  # seconds of one floating-point operation in the large matrix product
    work: int  # floating-point operations of a member-step

    @property
    def section(self) -> str:
        return self.case.model.partition("-")[0]

    def share(self, timing: Timing) -> Spread:
        """Of the peak, round by round."""
        pairs = zip(timing.seconds, self.peak.seconds, strict=True)
        return spread([self.work * best / one for one, best in pairs])


def measure(bench: Bench, case: Case) -> list[Row]:
    """Every packing that fits, PyTorch and the peak in one race."""
    shape = images(case.kind).images.shape[1:]
    work = flops.training_step(case.run().model.build(NUM_CLASSES), shape, case.batch_size)
    chosen = choose(bench, case, work)
    packed = pack(bench, case, set(chosen.values()))
    warmed = [bench.reference(), *packed.values()]
    if bench.torch is not None and covered(case):
        warmed.append(warm(bench.torch.contestant(case, bench.call_seconds)))
    timings = bench.race(warmed, slower=2.0)
    peak = timings.pop(warmed[0].contestant.name)
    raced = Raced(case, list(packed), chosen, timings, peak, work)
    rows = []
    for packing in packed:
        rows += speed(raced, timings[str(packing)], **layout(packing))
    if "PyTorch" in timings:
        rows += speed(raced, timings["PyTorch"], members=1, who="PyTorch")
    return [*rows, *(one for members in bench.members for one in choice(raced, members))]


def choose(bench: Bench, case: Case, work: int) -> dict[int, Packing]:
    """The engine's own choice, measured in turns of a fraction of a second a member."""
    steps = max(10, min(MOST, int(4 * bench.call_seconds * GUESSED_FLOPS / work)))
    return engine.chosen(case.run(steps=steps), images(case.kind), bench.members)


def pack(bench: Bench, case: Case, chosen: set[Packing]) -> dict[Packing, Warm]:
    """The warm contestants, but for those that take too much memory or, by what one member alone takes, too much time:
    those that the engine would choose are raced in any case.
    """
    data, run = images(case.kind), case.run()
    wanted = chosen.union(engine.packings(bench.members, bench.widths))
    seconds = warm(_turn(Engine(run, data, Packing(1, 1)), FEWEST)).seconds
    each = 3 * engine.state_bytes(run, data)  # old state, new state, and what a step needs in between
    left, fitting = memory_bytes() / 2, []
    for packing in sorted(wanted, key=lambda one: (one.members, one)):
        left -= each * packing.members
        if left >= 0 and (packing in chosen or seconds * packing.members * FEWEST <= bench.longest):
            fitting.append(packing)
    makers = [partial(contestant, case, packing, bench.call_seconds, seconds) for packing in fitting]
    return dict(zip(fitting, warm_all(makers), strict=True))


def contestant(case: Case, packing: Packing, call_seconds: float, seconds: float = 0.0, **changes: Any) -> Contestant:
    """The engine's steps under a packing; `seconds`: what a member-step takes, as far as is known, or 0."""
    trained = Engine(case.run(**changes), images(case.kind), packing)
    if seconds == 0.0:
        seconds = warm(_turn(trained, FEWEST)).seconds
    return _turn(trained, max(FEWEST, min(MOST, round(call_seconds / (seconds * packing.members)))))


def _turn(trained: Engine, num_steps: int) -> Contestant:
    run = timed(lambda: trained.steps(num_steps))
    return Contestant(name=str(trained.layout), run=run, units=num_steps * trained.count)


def speed(raced: Raced, timing: Timing, **about: Any) -> list[Row]:
    """Milliseconds, rate, and share of the peak measured in the same rounds."""
    about = {**raced.case.about, **about}
    return [
        row(raced.section, "ms per member-step", timing.spread(1e3), **about),
        row(raced.section, "GFLOP/s", timing.rate(raced.work * 1e-9), **about),
        row(raced.section, "share of peak", raced.share(timing), **about),
    ]


def layout(packing: Packing) -> dict[str, int]:
    return {**packing._asdict(), "members": packing.members}


def choice(raced: Raced, members: int) -> list[Row]:
    """The packing that the engine chooses for so many members, against the best one and against PyTorch."""
    case, section = raced.case, raced.section
    chosen = raced.chosen[members]
    if chosen not in raced.packed:
        return []
    allowed = [one for one in raced.packed if one.members <= members or one == chosen]
    able = {one: _padded(raced.timings[str(one)], one, members) for one in allowed}
    best, ours = min(able, key=lambda one: able[one].spread().value), able[chosen]
    about = {**case.about, **chosen._asdict(), "members": members}
    rows = [
        row(section, "ms per member-step, chosen", ours.spread(1e3), **about),
        row(section, "share of peak, chosen", raced.share(ours), **about),
        row(section, "chosen / best", ratio(ours, able[best]), method=str(best), **about),
    ]
    if torch := raced.timings.get("PyTorch"):
        rows.append(row(section, "PyTorch / cl_jax", ratio(torch, ours), **about))
        rows.append(row(section, "cl_jax / PyTorch", ratio(ours, torch), **about))
    return rows


def _padded(timing: Timing, packing: Packing, members: int) -> Timing:
    """What a member-step takes when so many members train in waves, of which the last may be padded."""
    share = -(-members // packing.members) * packing.members / members
    return Timing(tuple(share * one for one in timing.seconds))

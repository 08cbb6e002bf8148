"""Microseconds an example of the diagonal Fisher, by kind and model, and of the textbook's `vmap(jacrev)`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.fisher import KINDS, diagonal_fisher
from experiments.benchmark import by_hand
from experiments.benchmark.bench import Bench, Step
from experiments.benchmark.cases import NUM_CLASSES, Case, images, known, model_of
from experiments.benchmark.measure import Contestant, ratio, timed, warm, warm_all
from experiments.benchmark.rows import Row, row

MODELS = ("mlp-100", "mlp-400", "cnn", "resnet18")
SLOW = "vmap(jacrev)"
TEXTBOOK = "vmap(jacrev) of lax.conv"  # of the same network as one writes it without this package
SLOW_EXAMPLES = 8  # every example's whole Jacobian is held at once
DEEP = ("resnet18",)  # long to compile: fewer kinds, and not `SLOW`
MOST = 1024  # examples a turn


def plan(bench: Bench) -> list[Step]:
    models = ("mlp-400", "cnn") if bench.quick else MODELS
    seconds = {"mlp-100": 10.0, "mlp-400": 15.0, "cnn": 30.0, "resnet18": 60.0}
    return [Step(f"Fisher of {m}", seconds[m], lambda m=m: measure(bench, m)) for m in models if known(m)]


def measure(bench: Bench, model: str) -> list[Row]:
    kinds = ("exact", "empirical") if bench.quick or model in DEEP else KINDS
    makers = [functools.partial(contestant, bench, model, kind) for kind in kinds]
    if model not in DEEP:
        makers.append(functools.partial(brute_force, model, SLOW))
    if model == "cnn":
        makers.append(functools.partial(brute_force, model, TEXTBOOK, convolution="library"))
    timings = bench.race(warm_all(makers), slower=2.0)
    rows = []
    for name, timing in timings.items():
        slow = name in (SLOW, TEXTBOOK)
        who, kind = (name, "exact") if slow else ("cl_jax", name)
        rows.append(row("fisher", "us per example", timing.spread(1e6), model=model, method=kind, who=who))
    for slow in (SLOW, TEXTBOOK):
        if slow in timings:
            gain = ratio(timings[slow], timings["exact"])
            rows.append(row("fisher", f"{slow} / cl_jax", gain, model=model, method="exact"))
    return rows


def contestant(bench: Bench, model: str, kind: str) -> Contestant:
    """One kind over as many examples as fill a turn."""
    built, params, batch = _made(model, MOST)

    def over(count: int) -> Callable[[], Any]:
        part = jax.tree.map(lambda leaf: leaf[:count], batch)
        function = jax.jit(functools.partial(diagonal_fisher, model=built, kind=kind))
        return lambda: function(jax.random.key(0), params=params, examples=part)

    count = 256 if model.startswith("mlp") else 16
    once = warm(Contestant(name=kind, run=timed(over(count)), units=count)).seconds
    while count < MOST and once * count < bench.call_seconds:
        count *= 2
    return Contestant(name=kind, run=timed(over(count)), units=count)


def brute_force(model: str, name: str, **changes: Any) -> Contestant:
    """`changes`: settings of the model's config."""
    built, params, batch = _made(model, SLOW_EXAMPLES)
    if changes:
        built = dataclasses.replace(model_of(model), **changes).build(NUM_CLASSES)
    function = jax.jit(functools.partial(by_hand.exact_fisher, built))
    return Contestant(name=name, run=timed(lambda: function(params, batch.x)), units=SLOW_EXAMPLES)


@functools.cache
def _made(model: str, count: int) -> tuple[Any, Any, Batch]:
    data = images(Case(model=model, batch_size=1, optimizer="sgd").kind)
    x = data.images[:count].astype(jnp.float32) / data.pixel_max
    built = model_of(model).build(NUM_CLASSES)
    return built, built.init(jax.random.key(0), x[:1]), Batch(x, data.labels[:count])

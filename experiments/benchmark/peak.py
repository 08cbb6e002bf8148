"""The rate of a large float32 matrix product: what every other rate is a share of."""

import jax
import jax.numpy as jnp

from experiments.benchmark.bench import Bench
from experiments.benchmark.measure import Contestant, race, timed, warm
from experiments.benchmark.rows import Row, row


def square(size: int) -> Contestant:
    """size x size times size x size; a unit is one floating-point operation, 2 size^3 in all."""
    a = jnp.full((size, size), 0.5, jnp.float32)
    product = jax.jit(jnp.matmul)
    return Contestant(name=f"matmul {size}", run=timed(lambda: product(a, a)), units=2 * size**3)


def measure(bench: Bench) -> list[Row]:
    """The rate of several sizes; the fastest becomes the reference of all races that follow."""
    sizes = (1024, 2048, 3072) if jax.default_backend() == "cpu" else (4096, 8192, 16384)
    contestants = {f"matmul {size}": square(size) for size in sizes}
    timings = race([warm(one) for one in contestants.values()], rounds=bench.rounds, seconds=bench.race_seconds)
    rates = {name: timing.rate(1e-9) for name, timing in timings.items()}
    best = max(rates, key=lambda name: rates[name].value)
    bench.matmul = contestants[best]
    rows = [row("peak", "GFLOP/s", rate, who="matmul", method=f"{name.split()[1]}^3") for name, rate in rates.items()]
    return [*rows, row("peak", "peak GFLOP/s", rates[best], who="matmul", method=f"{best.split()[1]}^3")]

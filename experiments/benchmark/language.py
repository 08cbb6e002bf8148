"""Decoders of text: tokens a second and share of the peak by size, beside scans by hand; the Fisher of sequences."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cl_jax import flops
from cl_jax.batch import Batch
from cl_jax.data import Data, split_source
from cl_jax.experiment import Decoder, Run
from cl_jax.fisher import diagonal_fisher
from cl_jax.optimizers import Adam
from cl_jax.sources import Source
from cl_jax.tasks import Domains
from cl_jax.text.format import TextFormat
from cl_jax.tokens import read_rows
from experiments.benchmark import decoder_by_hand
from experiments.benchmark.bench import Bench, Step
from experiments.benchmark.engine import Engine, Packing
from experiments.benchmark.measure import Contestant, ratio, spread, timed, warm
from experiments.benchmark.rows import Row, row
from experiments.benchmark.steps import layout

SIZES = {
    "decoder-0.4M": Decoder(),
    "decoder-2M": Decoder(width=224, layers=3, heads=4),
    "decoder-5M": Decoder(width=320, layers=4, heads=5),
}
CONTEXT, BATCH, TOKENS = 128, 16, 256
SEQUENCES = 16  # of the Fisher that is set beside a training step


def plan(bench: Bench) -> list[Step]:
    sizes = list(SIZES)[:1] if bench.quick else list(SIZES)
    return [Step(name, 20.0, lambda name=name: measure(bench, name)) for name in sizes]


@functools.cache
def text(rows: int = 4000) -> Data:
    """Random bytes, one document a row: what a step costs does not depend on them."""
    rng = np.random.default_rng(0)

    def part(number: int) -> np.ndarray:
        ids = rng.integers(0, TOKENS, (number, CONTEXT + 1, 1), dtype=np.uint8)
        marks = np.broadcast_to(np.array([3, 1], np.uint8), (number, CONTEXT + 1, 2))  # segment 1, counted; a byte each
        return np.concatenate([ids, marks], axis=-1)

    train, held = part(rows), part(64)
    label, few = np.zeros(rows, np.int32), np.zeros(64, np.int32)
    format = TextFormat(TOKENS, CONTEXT, ("random",), "bytes", "", 255, 255, ())
    return split_source(
        Source("random", train, label, held, few, 1, 1, validation_images=held, validation_labels=few, text=format), 0.1
    )


def run_of(name: str) -> Run:
    return Run(
        data="text:random", stream=Domains(num_tasks=1), model=SIZES[name], optimizer=Adam(learning_rate=1e-3),
        steps=1000, batch_size=BATCH,
    )  # fmt: skip


def measure(bench: Bench, name: str) -> list[Row]:
    """The engine, the same model in a bare scan, a plain decoder in a bare scan, and the Fisher, in one race."""
    run, data, packing = run_of(name), text(), Packing(1, 1)
    model = run.model.build(TOKENS)
    x, targets = jax.eval_shape(read_rows, data.images[:BATCH])
    work = flops.gradient(model, Batch(x, targets.ids, counted=targets.counted))
    trained = Engine(run, data, packing)
    once = warm(Contestant(name="engine", run=timed(lambda: trained.steps(2)), units=2)).seconds
    turn = max(2, min(100, int(4 * bench.call_seconds / once)))
    by_hand = decoder_by_hand.model_of(SIZES[name], TOKENS)
    contestants = {
        "engine": lambda: trained.steps(turn),
        "scan by hand": scan(model.apply, model.init(jax.random.key(0), _tokens(data)), data, turn),
        "decoder by hand": scan(by_hand.apply, by_hand.init(jax.random.key(0), None), data, turn),
    }
    warmed = [bench.reference()]
    warmed += [warm(Contestant(name=who, run=timed(call), units=turn)) for who, call in contestants.items()]
    warmed.append(warm(Contestant(name="Fisher", run=timed(fisher(model, data)), units=1)))
    timings = bench.race(warmed, slower=3.0)
    peak = timings.pop(warmed[0].contestant.name)
    about = {"model": name, "batch_size": BATCH, "optimizer": "adam", **layout(packing)}
    shares = [work * best / one for one, best in zip(timings["engine"].seconds, peak.seconds, strict=True)]
    rows = [
        row("language", "tokens per second", timings[who].rate(BATCH * CONTEXT), **{**about, "who": label})
        for who, label in (("engine", "cl_jax"), ("scan by hand", "scan by hand"), ("decoder by hand", "by hand"))
    ]
    return [
        *rows,
        row("language", "parameters", float(_parameters(model, data)), **about),
        row("language", "share of peak", spread(shares), **about),
        row("language", "engine / scan by hand", ratio(timings["engine"], timings["scan by hand"]), **about),
        row("language", "engine / decoder by hand", ratio(timings["engine"], timings["decoder by hand"]), **about),
        row("language", "Fisher of 16 sequences / step", ratio(timings["Fisher"], timings["engine"]), **about),
    ]


def scan(apply: Callable[[Any, Any], jax.Array], params: Any, data: Data, num_steps: int) -> Callable[[], Any]:
    """`num_steps` steps of Adam on rows drawn at random: a loss, its gradient, an update, and nothing else."""
    optimizer = optax.adam(1e-3)
    first, size = data.bounds("train")

    @jax.jit
    def steps(state: Any, key: jax.Array, rows: jax.Array) -> Any:
        def one(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
            params, moments = state
            x, targets = read_rows(rows[index])

            def loss_of(params: Any) -> jax.Array:
                losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), targets.ids)
                return jnp.sum(losses * targets.counted) / targets.counted.size

            loss, gradient = jax.value_and_grad(loss_of)(params)
            updates, moments = optimizer.update(gradient, moments, params)
            return (optax.apply_updates(params, updates), moments), loss

        index = jax.random.randint(key, (num_steps, BATCH), first, first + size)
        state, losses = jax.lax.scan(one, state, index)
        return state, jnp.mean(losses)

    held = {"state": (params, optimizer.init(params))}

    def call() -> jax.Array:
        held["state"], loss = steps(held["state"], jax.random.key(0), data.images)
        return loss

    return call


def fisher(model: Any, data: Data) -> Callable[[], Any]:
    """The empirical Fisher of `SEQUENCES` sequences, each one's gradient squared by itself."""

    def render(rows: jax.Array) -> Batch:
        x, targets = read_rows(rows)
        return Batch(x, targets.ids, counted=targets.counted)

    function = jax.jit(functools.partial(diagonal_fisher, model=model, kind="empirical", render=render))
    params, rows = model.init(jax.random.key(0), _tokens(data)), data.images[:SEQUENCES]
    return lambda: function(jax.random.key(0), params=params, examples=rows)


def _tokens(data: Data) -> Any:
    return read_rows(data.images[:1])[0]


def _parameters(model: Any, data: Data) -> int:
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), _tokens(data)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))

"""`bash launch/local.sh parity`, or `python -m experiments.parity_kl`. See README.md here."""

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

from cl_jax import cache, sources
from cl_jax.errors import UserError
from cl_jax.models.mlp import mlp
from experiments.parity_kl import outcome, toy


@dataclasses.dataclass
class Options:
    """Does KL to the base on the new inputs predict forgetting, whatever the training?"""

    new: Annotated[str, tyro.conf.arg(metavar="DATA", help_behavior_hint="")] = "tfds:mnist"
    """Digits, of which the parity is asked: tfds:<name> or idx:<folder>."""
    old: Annotated[str, tyro.conf.arg(metavar="DATA", help_behavior_hint="")] = "tfds:fashion_mnist"
    """What is to be kept, of the same size of image."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """For tfds:<name>: a folder of its files, so that no network is needed."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = Path("runs/parity_kl")
    """Where the table and the picture go."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 5
    """Bases, each fine-tuned in every way."""
    steps: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 300
    """Of fine-tuning."""


HIDDEN = (512, 256)
RATES = (3e-5, 1e-4, 2e-4, 3e-4, 1e-3, 2e-3)
PRETRAINED = {"rows": 500, "steps": 500, "batch_size": 64}  # rows of either task
BATCH_SIZE = 64
HELD_OUT = 2000  # test rows of either task


def main(words: Sequence[str] | None = None) -> None:
    """Returns when done; exits 2 at a user's mistake."""
    options = tyro.cli(Options, args=words, prog="parity", config=(tyro.conf.DisallowNone,))
    try:
        for name in ("seeds", "steps"):
            if getattr(options, name) < 1:
                raise UserError(f"--{name}: was given {getattr(options, name)}; the least allowed is 1")
        cache.keep_compiled()
        rows = list(runs(options))
    except (UserError, OSError) as error:
        print(f"parity: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    outcome.write(options.out, rows)
    print(outcome.in_words(rows))


def runs(options: Options) -> Iterator[dict[str, Any]]:
    """One row a run: every objective at every rate from every seed's base; the runs of one base train together."""
    loaded = {
        task: sources.load(name, options.data_dir) for task, name in (("parity", options.new), ("old", options.old))
    }
    shapes = {task: source.train_images.shape[1:] for task, source in loaded.items()}
    if shapes["parity"] != shapes["old"]:
        raise UserError(
            f"images of {options.new} are {shapes['parity']}, of {options.old} {shapes['old']}: one size is needed"
        )
    train, test = (
        {task: toy.examples(source, split, task) for task, source in loaded.items()} for split in ("train", "test")
    )
    held = {task: toy.take(rows, jnp.arange(min(HELD_OUT, len(rows.x)))) for task, rows in test.items()}
    model = mlp(HIDDEN, toy.OUTPUTS)
    points = list(itertools.product(range(len(toy.OBJECTIVES)), RATES))
    objective, rate = (jnp.asarray(column) for column in zip(*points, strict=True))

    for seed in range(options.seeds):
        began = time.monotonic()
        key_base, key_few, key_tune = jax.random.split(jax.random.key(seed), 3)
        number = PRETRAINED["rows"]
        few = [
            toy.take(train[task], jax.random.permutation(key_few, len(train[task].x))[:number])
            for task in ("parity", "old")
        ]
        base = toy.pretrain(model, key_base, *few, PRETRAINED["steps"], PRETRAINED["batch_size"])
        start = toy.measure(model, base, base, held["parity"], held["old"])

        def one(point: tuple[jax.Array, jax.Array], key: jax.Array = key_tune, base: Any = base) -> toy.Measured:
            params = toy.fine_tune(model, key, base, *point, train["parity"], options.steps, BATCH_SIZE)
            return toy.measure(model, params, base, held["parity"], held["old"])

        found = jax.device_get(jax.lax.map(one, (objective, rate), batch_size=4))
        print(
            f"base {seed + 1} of {options.seeds}: parity {start.parity:.3f}, old {start.old:.3f}; "
            f"{len(points)} runs in {time.monotonic() - began:.0f} s",
            file=sys.stderr,
        )
        for i, (at, learning_rate) in enumerate(points):
            yield {
                "objective": toy.OBJECTIVES[at], "learning_rate": learning_rate, "seed": seed,
                "old": float(found.old[i]), "parity": float(found.parity[i]), "kl": float(found.kl[i]),
                "old_before": float(start.old), "parity_before": float(start.parity),
                "forgotten": float(start.old - found.old[i]),
            }  # fmt: skip


if __name__ == "__main__":
    main()

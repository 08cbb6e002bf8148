"""The engine's laws for members that read text, and what fine-tuning on support does to a coder."""

import functools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from cl_jax import plan, results, sources, sweep, trunk, waves
from cl_jax.adapters import FreezeLayers, Lora
from cl_jax.adapters.lora import Used
from cl_jax.base import Pretrained
from cl_jax.checks import check_run
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Decoder, Experiment, Mlp, Run, members
from cl_jax.experiment import sweep as entries_of
from cl_jax.methods import Der, Ewc, KlAnchor, Mixture, Replay
from cl_jax.methods.self_replay import SelfReplay
from cl_jax.optimizers import Sgd
from cl_jax.schedules import TaskDecay
from cl_jax.tasks import Domains, Permuted
from tests.test_sweep import Silent, records
from tests.test_waves import two_tasks

TEXT = "text:made_support,made_prose?context=16&bytes=40000&heldout=1000"
BASE = Run(
    data=TEXT, stream=Domains(num_tasks=2), model=Decoder(width=8, layers=1, heads=2), optimizer=Sgd(learning_rate=0.5),
    steps=10, batch_size=4,
)  # fmt: skip
EWC = {"ewc": Ewc(strength=10.0, kind="sampled", num_examples=8)}
WRITTEN = {"s": SelfReplay(share=0.5, capacity=10, windows=2)}
RUNS = {
    "finetune": BASE,
    "ewc": replace(BASE, {"methods": EWC}),
    "mixture": replace(BASE, {"methods": {"mixture": Mixture(share=0.5, capacity=20)}}),
    "replay, kl": replace(BASE, {"methods": {"r": Replay(capacity=20), "k": KlAnchor(inputs="old", capacity=20)}}),
    "self_replay": replace(BASE, {"methods": WRITTEN}),
    "self_replay, lora": replace(BASE, {"methods": WRITTEN, "adapter": Lora(rank=2, alpha=2.0, first_task="lora")}),
    "lora": replace(BASE, {"adapter": Lora(rank=2, alpha=2.0, used=Used(rank=1.0))}),
    "freeze": replace(BASE, {"adapter": FreezeLayers(first=1.0), "methods": EWC}),
}
# Batched and single products round differently, and training carries it on.
ROUNDING = dict(rtol=2e-3, atol=2e-4)


@functools.cache
def text() -> Data:
    return split_source(sources.load(TEXT), 0.1)


@functools.cache
def programs() -> Programs:
    return Programs(devices=jax.devices()[:1])


def everyone(run: Run, seeds: int = 2) -> list[Any]:
    entries = entries_of("m", run, {"optimizer.learning_rate": [0.5, 0.25]})
    return members(Experiment(name="t", description="", entries=entries, seeds=tuple(range(seeds))), {TEXT: "sha"})


def lived(run: Run, width: int, chosen: slice = slice(None)) -> tuple[Any, np.ndarray]:
    shard = plan.Shard(folder=Path(), members=tuple(everyone(run)[chosen]), width=width)
    return two_tasks(waves.crew_of(shard, text(), programs()))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_side_by_side_is_one_by_one_and_neighbours_are_not_noticed(name: str) -> None:
    alone, side = lived(RUNS[name], 1), lived(RUNS[name], 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **ROUNDING), alone[0].trainable, side[0].trainable)
    np.testing.assert_allclose(alone[1], side[1], rtol=2e-3, atol=0.01)
    state, row = lived(RUNS[name], 2, slice(1, 2))
    jax.tree.map(lambda one, all: np.testing.assert_array_equal(one[0], all[1]), state, side[0])
    np.testing.assert_array_equal(row[0], side[1][1])
    assert np.isfinite(side[1]).all() and len({each.tobytes() for each in side[1]}) == 4


def test_no_strength_is_fine_tuning() -> None:
    plain = lived(BASE, 2)[1]
    for run in (
        replace(RUNS["ewc"], {"methods.ewc.strength": 0.0}),
        replace(BASE, {"methods": {"k": KlAnchor(strength=0.0)}}),
        replace(RUNS["self_replay"], {"methods.s.share": 0.0}),
    ):
        np.testing.assert_allclose(lived(run, 2)[1], plain, rtol=1e-5, atol=1e-6)


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    base = Pretrained(steps=20, batch_size=4, optimizer=Sgd(learning_rate=0.5), schedule=TaskDecay())
    run = replace(RUNS["ewc"], {"base": base})

    def train(out: Path, **progress: Any) -> list[plan.Shard]:
        shared = trunk.trunk_members(everyone(run), {TEXT: "sha"}, shared=True)
        first = list({member.id: member for member in shared.values()}.values())
        bases = plan.make_plan(out, first, 2, lambda member: 1000, "trunks")
        shards = plan.make_plan(out, everyone(run), 2, lambda member: 1000)
        for shard in shards:
            sweep.run_shard(shard, text(), Silent(**progress), programs(), trunk.Trunks(bases, shared))
        return shards

    whole = records(train(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stop_at_task=1)
    stopped = records(train(tmp_path / "stopped"))
    for name, record in whole.items():
        np.testing.assert_array_equal(record, stopped[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"der": Der()}}, "methods.der: Der is of examples with one label each, and the data are text"),
        ({"stream": Permuted(num_tasks=2)}, r"stream Permuted\(\) is of images, and the data are text"),
        ({"stream": Domains(num_tasks=3)}, r"was given 3 domains, but the data has 2 \(made_support, made_prose\)"),
        ({"scenario": "class"}, "text, whose outputs are tokens, is read as 'domain'"),
        ({"methods": {"ewc": Ewc()}}, "use kind 'sampled'"),
    ],
)
def test_what_text_cannot_be_used_for_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_run(replace(BASE, changes), text(), "x")


def test_images_are_no_text() -> None:
    digits = split_source(sources.load("digits"), 0.1)
    run = Run(data="digits", model=Mlp(hidden=(8,)))
    with pytest.raises(UserError, match=r"Domains\(\) is of text, and the data are images"):
        check_run(replace(run, {"stream": Domains()}), digits, "x")
    with pytest.raises(UserError, match=r"methods\.s: SelfReplay is of text, and the data are images: use one of l2"):
        check_run(replace(run, {"methods": WRITTEN}), digits, "x")
    with pytest.raises(UserError, match="reads text"):
        check_run(replace(run, {"model": Decoder()}), digits, "x")


@pytest.mark.slow
def test_the_smoke_of_what_a_coder_forgets(tmp_path: Path) -> None:
    """Fine-tuning forgets, and more the more it learns; replay and low rates forget less."""
    experiment = Path(__file__).parent.parent / "experiments" / "lm_forgetting"
    words = ["run", str(experiment), "--size", "smoke", "--seeds", "1", "--out", str(tmp_path / "out"), "--quiet"]
    # As a user's process: Adam's traced betas need JAX's own promotion of dtypes.
    subprocess.run([sys.executable, "-c", "from cl_jax.cli import main; main()", *words], check=True)
    bits: dict[tuple[str, float, float], dict[tuple[int, int], float]] = {}
    for row in results.read_table(tmp_path / "out").to_pylist():
        if (row["split"], row["metric"]) == ("test", "loss"):
            share = row.get("config.methods.mixture.share")
            key = (row["method"], round(row["config.optimizer.learning_rate"], 6), round(share or 0.0, 6))
            bits.setdefault(key, {})[row["after_task"], row["task"]] = row["value"] / math.log(2)

    def change(key: tuple[str, float, float], task: int, since: int) -> float:
        return bits[key][3, task] - bits[key][since, task]

    high, low = ("finetune", 0.01, 0.0), ("finetune", 0.001, 0.0)
    assert change(high, 1, 1) > 0.3 > 0.05 > change(("mixture", 0.01, 0.25), 1, 1) - change(high, 1, 1)
    assert change(low, 1, 1) < change(high, 1, 1) and change(low, 3, 1) > change(high, 3, 1)
    assert change(("mixture", 0.01, 0.25), 1, 1) < 0.5 * change(high, 1, 1), "a quarter of old text forgets less"
    assert change(("mixture", 0.01, 0.25), 3, 1) < change(low, 3, 1), "and learns more than a low rate"
    for key in bits:
        assert bits[key][0, 1] > 7.5 > bits[key][1, 1], "the base knows code"

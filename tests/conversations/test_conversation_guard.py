"""The budget on forgetting: which part of an update is taken, that no round exceeds it, and that undoing is exact."""

import json
import math
from pathlib import Path

import bigram_stream as toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.conversations import POLICIES, Guard
from cl_jax.conversations.guard import ACCEPTED, ROLLED_BACK, SCALED, decide
from cl_jax.conversations.program import scaled
from cl_jax.optimizers import Sgd
from cl_jax.train import TrainState

FLOAT32 = 1e-5  # relative: nats of some hundred targets, summed by numpy in float64
MOMENTUM = Sgd(learning_rate=5.0, use_momentum=True, momentum=0.5)


def square(tau: float) -> float:
    return tau**2


@pytest.mark.parametrize(
    ("budget", "scale", "outcome"),
    [
        (1.0, 1.0, ACCEPTED), (0.999, 0.5, SCALED), (0.25, 0.5, SCALED), (0.2, 0.25, SCALED), (0.02, 0.125, SCALED),
        (0.015, 0.0, ROLLED_BACK), (0.0, 0.0, ROLLED_BACK),
    ],
)  # fmt: skip
def test_the_first_part_within_the_budget_is_taken(budget: float, scale: float, outcome: str) -> None:
    decision = decide(Guard(budget=budget), 0.0, square)  # theta from 0 to 1 at a cost of theta^2
    assert (decision.scale, decision.outcome) == (scale, outcome)
    taus = [1.0, 0.5, 0.25, 0.125]
    assert decision.tried == [(tau, square(tau)) for tau in taus[: taus.index(scale) + 1 if scale else 4]]


def test_what_is_no_number_is_never_within_the_budget() -> None:
    decision = decide(Guard(budget=1e30), 0.0, lambda tau: math.nan if tau > 0.3 else 0.0)
    assert decision.scale == 0.25
    assert decide(Guard(budget=1e30), 0.0, lambda tau: math.inf).outcome == ROLLED_BACK
    assert decide(Guard(budget=1.0, halvings=0), 0.0, lambda tau: 2 * tau).tried == [(1.0, 2.0)]
    refused = decide(Guard(budget=1.0), 0.0, square, diverged=True)
    assert (refused.outcome, refused.tried) == (ROLLED_BACK, [])


def test_a_part_of_an_update_is_exact() -> None:
    accepted = {"a": jnp.array([1.0, -2.0]), "b": jnp.float32(3.0)}
    update = {"a": jnp.array([2.0, 2.0]), "b": jnp.float32(3.5)}
    half = scaled(accepted, update, 0.5)
    assert half["a"].tolist() == [1.5, 0.0] and float(half["b"]) == 3.25
    assert scaled(accepted, update, 0.0)["a"].tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    ("policy", "rate", "budget", "seed"),
    [("finetune", 30.0, 0.05, 0), ("finetune", 300.0, 0.0, 1), ("replay", 10.0, 0.02, 2), ("lora", 3.0, 0.1, 3)],
)
def test_no_round_exceeds_the_budget(
    policy: str, rate: float, budget: float, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, (old, params) = toys.Kept(monkeypatch), toys.contrary()
    learned = POLICIES[policy](rank=4, alpha=4.0) if policy == "lora" else POLICIES[policy]()
    settings = {"policy": learned, "guard": Guard(budget=budget), "optimizer": Sgd(learning_rate=rate)}
    done = toys.run(tmp_path, toys.talks(24), settings, old=old, params=params, seed=seed)
    costs = [toys.bits_per_byte(kernel_of(state), old.guard) for state in kept.states]
    np.testing.assert_allclose(costs, [line.guard for line in done.lines], rtol=FLOAT32)
    assert all(line.guard <= done.lines[0].guard + budget for line in done.lines)
    outcomes = {line.decision.outcome for line in done.lines[1:]}
    assert ROLLED_BACK in outcomes and (budget == 0 or SCALED in outcomes), "nothing was tested"
    told = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert [each["decision"] for each in told] == [line.decision.outcome for line in done.lines[1:]]
    assert told[-1]["conversations"] == [23, 24] and told[0]["tried"][0]["scale"] == 1.0


def kernel_of(state: TrainState) -> np.ndarray:
    """What the model computes with."""
    if hasattr(state.trainable, "factors"):
        pair = state.trainable.factors["head/kernel"]
        return state.base["head"]["kernel"] + 4.0 / 4 * pair["a"] @ pair["b"]
    return state.trainable["head"]["kernel"]


def test_without_a_guard_the_same_run_exceeds_it(tmp_path: Path) -> None:
    old, params = toys.contrary()
    done = toys.run(tmp_path, toys.talks(24), {"optimizer": Sgd(learning_rate=30.0)}, old=old, params=params)
    costs = [line.old.bits_per_byte for line in done.lines if line.old is not None]
    assert costs[-1] > costs[0] + 0.2 and not (tmp_path / "decisions.jsonl").exists()


@pytest.mark.parametrize("policy", ["ewc", "replay"])
def test_rolling_back_restores_every_bit_but_the_optimizers(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, (old, params) = toys.Kept(monkeypatch), toys.contrary()
    learned = POLICIES[policy](strength=0.3, consolidates=1) if policy == "ewc" else POLICIES[policy]()
    settings = {"policy": learned, "guard": Guard(budget=0.04), "optimizer": MOMENTUM}
    done = toys.run(tmp_path, toys.talks(16), settings, old=old, params=params)
    undone = [line.round for line in done.lines[1:] if line.decision.outcome == ROLLED_BACK]
    assert undone and len(undone) < len(done.lines) - 1
    for number in undone:
        before, after = kept.states[number - 1], kept.states[number]
        one, two = (jax.tree.leaves(state._replace(optimizer=())) for state in (before, after))
        assert [(leaf.dtype, leaf.tobytes()) for leaf in one] == [(leaf.dtype, leaf.tobytes()) for leaf in two]
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(after.optimizer)), "the optimizer remembers"
        assert done.lines[number].guard == done.lines[number - 1].guard
    learned_in = next(line.round for line in done.lines[1:] if line.decision.scale)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(kept.states[learned_in].optimizer))


def test_an_update_that_diverges_is_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"optimizer": Sgd(learning_rate=1e9)}
    old, params = toys.contrary()
    alone = toys.run(tmp_path / "alone", toys.talks(8), settings, old=old, params=params)
    assert alone.lines[-1].diverged
    settings["guard"] = Guard(budget=0.1)
    guarded = toys.run(tmp_path / "guarded", toys.talks(8), settings, old=old, params=params)
    assert not guarded.lines[-1].diverged
    assert {line.decision.outcome for line in guarded.lines[1:]} == {ROLLED_BACK}
    assert guarded.lines[-1].guard == guarded.lines[0].guard


def test_a_round_that_diverges_at_once_is_rolled_back_though_it_changed_nothing(tmp_path: Path) -> None:
    old, params = toys.contrary()
    params["head"]["kernel"] = params["head"]["kernel"].at[:, ord("p")].set(-1e7)  # no old text has a "p"
    done = toys.run(tmp_path, toys.talks(4, "pq"), {"guard": Guard(budget=0.1)}, old=old, params=params)
    assert [line.diverged for line in done.lines] == [False] * 3
    assert [line.decision for line in done.lines[1:]] == [(ROLLED_BACK, 0.0, [])] * 2

"""What the policies are made of: whose rows are remembered and replayed, what a Fisher is of, what a step sees."""

from pathlib import Path
from typing import Any

import bigram_stream as toys
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.config import replace
from cl_jax.conversations import POLICIES, Policy, policies
from cl_jax.conversations.program import Program
from cl_jax.conversations.scoring import batch_of
from cl_jax.errors import UserError
from cl_jax.fisher import diagonal_fisher


def begun(policy: Any, changes: dict[str, Any] | None = None) -> tuple[Policy, Program, train.TrainState]:
    built = policy.build(toys.bigram(), optax.scale(-1.0))
    program = Program(built, replace(toys.SETTINGS, changes or {}), 256, seed=0)
    return built, program, program.begun(toys.bigram_params(), toys.old_text().test)


def rows_in(memory: Any) -> set[bytes]:
    return {row.tobytes() for row, held in zip(np.asarray(memory.items), memory.occupied, strict=True) if held}


def test_replay_remembers_old_text_and_earlier_conversations_apart() -> None:
    policy, program, state = begun(POLICIES["replay"](earlier=2, old=3, capacity=50))
    assert policy.starts and policy.consolidates == 1
    old, each = toys.old_text().train, toys.stream(toys.talks(4)).round(0)
    state = program.consolidated(state, old, len(old), 0)
    memories = {name: memory.buffer for name, memory in state.method.items()}
    assert rows_in(memories["old"]) == {row.tobytes() for row in old} and not rows_in(memories["earlier"])
    state = program.consolidated(state, each.rows, each.used, 1)
    memories = {name: memory.buffer for name, memory in state.method.items()}
    assert rows_in(memories["old"]) == {row.tobytes() for row in old}
    assert rows_in(memories["earlier"]) == {row.tobytes() for row in each.rows[: each.used]}

    incoming = batch_of(jnp.asarray(toys.rows_of(["xyz"])[:1]))
    batch = policy.learner.method.draw(jax.random.key(1), state.method, state.trainable, incoming)
    shown = [np.asarray(row).tobytes() for row in batch.x.ids]
    known = [
        {np.asarray(batch_of(jnp.asarray(row[None])).x.ids[0]).tobytes() for row in rows}
        for rows in (each.rows[: each.used], old)
    ]
    assert len(shown) == 1 + 2 + 3 and set(shown[1:3]) <= known[0] and set(shown[3:]) <= known[1]
    np.testing.assert_allclose(batch.weight, np.full(6, 1 / 6), rtol=1e-6)


def test_online_ewc_begins_with_the_fisher_of_the_old_text() -> None:
    policy, program, state = begun(POLICIES["ewc"](kind="empirical", num_examples=100, consolidates=5, decay=0.5))
    assert policy.starts and policy.consolidates == 5
    model, params, old = toys.bigram(), toys.bigram_params(), toys.old_text().train
    first = program.consolidated(state, old, len(old), 0)
    of_old = diagonal_fisher(jax.random.key(9), model, params, jnp.asarray(old), kind="empirical", render=batch_of)
    np.testing.assert_allclose(first.method.fisher["head"]["kernel"], of_old["head"]["kernel"], rtol=1e-5)
    each = toys.stream(toys.talks(4)).round(0)
    rows = jnp.asarray(each.rows[: each.used])
    second = program.consolidated(first, each.rows, each.used, 5)
    of_round = diagonal_fisher(jax.random.key(9), model, params, rows, kind="empirical", render=batch_of)
    expected = 0.5 * of_old["head"]["kernel"] + of_round["head"]["kernel"]
    np.testing.assert_allclose(second.method.fisher["head"]["kernel"], expected, rtol=1e-5, atol=1e-12)


def test_boundaries_are_where_the_policy_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = toys.Kept(monkeypatch)
    learned = POLICIES["ewc"](strength=0.1, consolidates=2)
    toys.run(tmp_path, toys.talks(10), {"policy": learned})
    fisher, anchor, weights = (
        [np.asarray(part(state)["head"]["kernel"]) for state in kept.states]
        for part in (lambda s: s.method.fisher, lambda s: s.method.anchor, lambda s: s.trainable)
    )
    assert fisher[0].max() > 0, "nothing is known of the old text"
    for number in range(1, 6):
        assert np.array_equal(fisher[number], fisher[number - 1]) == bool(number % 2)
        assert np.array_equal(anchor[number], weights[number - number % 2])
        assert not np.array_equal(weights[number], weights[number - 1])


def test_lora_starts_as_the_model_and_trains_factors_alone() -> None:
    policy, program, state = begun(POLICIES["lora"](rank=3))
    assert policy.keeps_base and set(state.trainable.factors) == {"head/kernel"}
    before = program.params(state)
    assert np.array_equal(before["head"]["kernel"], toys.bigram_params()["head"]["kernel"])
    each = toys.stream(toys.talks(4)).round(0)
    after = program.updated(state, each.rows, each.used, 1)
    assert np.array_equal(after.base["head"]["kernel"], state.base["head"]["kernel"])
    assert not np.array_equal(program.params(after)["head"]["kernel"], before["head"]["kernel"])


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_pass_shows_each_row_of_the_round_once_in_an_order_of_its_own(steps: int) -> None:
    rows, used = toys.rows_of([f"{letter}{letter}" for letter in "abcdefghijkl" * 6])[:12], 6
    rows[:, 1, 0] = np.arange(12)  # no two alike

    def look(key: jax.Array, shown: jax.Array, info: Any) -> jax.Array:
        return jnp.concatenate([shown[2:], info.incoming.x.ids[:, 1]])

    built = POLICIES["finetune"]().build(toys.bigram(), optax.scale(-1.0))
    looking = built.learner.method._replace(
        init=lambda key, params, batch: jnp.full((2 * steps,), -1, jnp.int32), after_step=look
    )
    policy = built._replace(learner=built.learner._replace(method=looking))
    program = Program(policy, replace(toys.SETTINGS, {"steps": steps, "rows": 2}), 256, seed=0)
    state = program.begun(toys.bigram_params(), rows)
    shown, other = (np.asarray(program.updated(state, rows, used, number).method) for number in (1, 2))
    assert not np.array_equal(shown, other), "every round has an order of its own"
    for first in range(0, 2 * steps, used):
        whole = shown[first : first + used]
        assert len(set(whole)) == len(whole) and set(whole) <= set(range(used))
    assert steps < 6 or not np.array_equal(shown[:6], shown[6:])


def test_names() -> None:
    assert {policies.label(policies.named(name)) for name in POLICIES} == set(POLICIES)
    with pytest.raises(UserError, match="unknown policy 'replai'; known: ewc, finetune, frozen, lora, replay"):
        policies.named("replai")

"""Adapters against NumPy: what is trained in which task, and what the model then computes with."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.adapters import Freeze, FreezeLayers, Full, Lora
from cl_jax.adapters.freeze import freeze, freeze_layers
from cl_jax.adapters.lora import lora
from cl_jax.batch import Batch, Task
from cl_jax.errors import UserError
from cl_jax.fisher import diagonal_fisher
from cl_jax.methods.ewc import ewc
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
TASK = jnp.int32(0)
MODEL = mlp((6,), 3)
BATCH = Batch(jax.random.normal(KEY, (8, 5)), jnp.arange(8, dtype=jnp.int32) % 3)
PARAMS = MODEL.init(jax.random.key(1), BATCH.x)
ROUNDING = dict(rtol=1e-5, atol=1e-6)  # float32 sums of a handful of terms against float64


def shifted(tree):
    return jax.tree.map(lambda leaf: leaf + jnp.linspace(-1, 1, leaf.size).reshape(leaf.shape), tree)


def by_hand(params, factors, scale):
    """W + scale A B in float64, biases as they were."""
    expected = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for name, layer in expected.items():
        if f"{name}/kernel" in factors:
            a, b = (np.asarray(factors[f"{name}/kernel"][part], np.float64) for part in "ab")
            layer["kernel"] = layer["kernel"] + scale * a @ b
    return expected


@pytest.mark.parametrize("first_task", ["lora", "full"])
def test_lora_is_bitwise_a_no_op_at_the_start(first_task):
    adapter = lora(2, 8.0, first_task=first_task)
    chex.assert_trees_all_equal(adapter.effective(*adapter.init(KEY, PARAMS), TASK), PARAMS)
    assert not adapter.identity


@pytest.mark.parametrize("alpha", [8.0, jnp.float32(3.0)])
@pytest.mark.parametrize("first_task", ["lora", "full"])
def test_lora_is_base_plus_scaled_product(alpha, first_task):
    adapter = lora(2, alpha, first_task=first_task)
    base, trainable = adapter.init(KEY, PARAMS)
    moved = trainable._replace(factors=shifted(trainable.factors))
    chex.assert_trees_all_close(
        adapter.effective(base, moved, TASK), by_hand(PARAMS, moved.factors, float(alpha) / 2), **ROUNDING
    )


def test_lora_factors_are_drawn_as_said():
    params = {name: {"kernel": jnp.zeros((400, 300))} for name in ("one", "two")}
    _, trainable = lora(50).init(KEY, params)
    a = np.stack([trainable.factors[f"{name}/kernel"]["a"] for name in ("one", "two")])
    b = trainable.factors["one/kernel"]["b"]
    assert a.shape == (2, 400, 50) and b.shape == (50, 300) and not b.any()
    # N = 20 000 normal draws: mean and variance within 5 standard errors (0.035 and 0.05 of one), no correlation.
    scaled = a.reshape(2, -1) * np.sqrt(400)
    np.testing.assert_allclose(scaled.mean(axis=1), 0.0, atol=5 / np.sqrt(20_000))
    np.testing.assert_allclose(scaled.var(axis=1), 1.0, atol=5 * np.sqrt(2 / 20_000))
    np.testing.assert_allclose((scaled**4).mean(axis=1), 3.0, atol=5 * np.sqrt(96 / 20_000))
    assert abs(np.corrcoef(scaled)[0, 1]) < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("first_task", ["lora", "full"])
def test_lora_merge_keeps_the_function_and_starts_anew(first_task):
    adapter = lora(2, 8.0, merge=True, first_task=first_task)
    base, trainable = adapter.init(KEY, PARAMS)
    moved = trainable._replace(factors=shifted(trainable.factors))
    merged_base, merged = adapter.end_task(jax.random.key(2), base, moved, TASK)
    before, after = adapter.effective(base, moved, TASK), adapter.effective(merged_base, merged, TASK)
    chex.assert_trees_all_equal(after, before)
    assert all(not pair["b"].any() for pair in merged.factors.values())
    old, new = (factors["dense_0/kernel"]["a"] for factors in (trainable.factors, merged.factors))
    assert np.all(np.asarray(old) != np.asarray(new))
    chex.assert_trees_all_equal_shapes_and_dtypes((merged_base, merged), (base, trainable))
    kept = lora(2, 8.0, first_task=first_task)
    chex.assert_trees_all_equal(kept.end_task(KEY, base, moved, TASK), (base, moved))


def two_tasks(adapter, steps=3):
    """The states before training, after task 0, and after task 1, with momentum that would leak through a mask."""
    learner = train.Learner(MODEL, optax.chain(optax.trace(0.9), optax.scale(-0.1)), adapter=adapter)

    def life(key):
        states = [train.init(learner, key, BATCH, PARAMS)]
        for task in range(2):
            state = states[-1]
            for _ in range(steps):
                state, _ = train.train_step(learner, key, state, BATCH, task=task)
            states.append(train.end_task(learner, key, state, Task(jnp.int32(task), BATCH, jnp.ones(8, bool))))
        return states

    return jax.jit(life)(KEY)


def test_lora_after_a_full_first_task():
    start, first, second = (state.trainable for state in two_tasks(lora(2, 2.0, first_task="full")))
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (start.first, first.first)), strict=True))
    chex.assert_trees_all_equal(first.factors, start.factors)
    chex.assert_trees_all_equal(second.first, first.first)
    assert all((second.factors[name]["b"] != 0).any() for name in second.factors)


def test_lora_alone_never_moves_the_base():
    states = two_tasks(lora(2, 2.0))
    for state in states:
        chex.assert_trees_all_equal(state.base, PARAMS)
        assert state.trainable.first == ()
    assert all((pair["b"] != 0).any() for pair in states[1].trainable.factors.values())


def test_lora_targets_are_searched_for_among_the_matrices():
    for targets, names in [
        ("kernel", {"dense_0/kernel", "dense_1/kernel"}),
        ("dense_1", {"dense_1/kernel"}),  # its bias matches too, and is no matrix
        ("^dense_[02]/", {"dense_0/kernel"}),
        ("bias", set()),
    ]:
        _, trainable = lora(2, targets=targets).init(KEY, PARAMS)
        assert set(trainable.factors) == names


def test_freeze_holds_what_matches_from_its_task_on():
    start, first, second = (state.trainable for state in two_tasks(freeze("dense_0/")))
    assert (first["dense_0"]["kernel"] != start["dense_0"]["kernel"]).any()
    chex.assert_trees_all_equal(second["dense_0"], first["dense_0"])
    assert (second["dense_1"]["kernel"] != first["dense_1"]["kernel"]).any()
    start, first, second = (state.trainable for state in two_tasks(freeze("bias", from_task=0)))
    for name in ("dense_0", "dense_1"):
        np.testing.assert_array_equal(second[name]["bias"], start[name]["bias"])
        assert (second[name]["kernel"] != start[name]["kernel"]).any()


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("first_task", ["lora", "full"])
def test_gradients_reach_the_factors(merge, first_task):
    """Trap 4: B moves from the first step it may, A from the second."""
    *_, last = two_tasks(lora(2, 2.0, merge=merge, first_task=first_task))
    assert not bool(last.diverged)
    moved = train.effective(train.Learner(MODEL, optax.identity(), adapter=lora(2, 2.0, first_task=first_task)), last)
    assert (moved["dense_0"]["kernel"] != PARAMS["dense_0"]["kernel"]).any()


def test_configs_build_what_they_say():
    adapter = Lora(rank=3, alpha=6.0, targets="dense_0", first_task="lora").build()
    base, trainable = adapter.init(KEY, PARAMS)
    moved = trainable._replace(factors=shifted(trainable.factors))
    assert trainable.factors["dense_0/kernel"]["a"].shape == (5, 3) and set(trainable.factors) == {"dense_0/kernel"}
    chex.assert_trees_all_close(adapter.effective(base, moved, TASK), by_hand(PARAMS, moved.factors, 2.0), **ROUNDING)
    chex.assert_trees_all_equal(Full().build().effective(*Full().build().init(KEY, PARAMS), TASK), PARAMS)


def test_mistakes_are_told():
    Full().check(PARAMS)
    Lora(rank=3).check(PARAMS)
    Freeze().check(PARAMS)
    with pytest.raises(UserError, match=r"adapter.rank: was given 4, larger than the matrix dense_1/kernel \[6, 3\]"):
        Lora(rank=4).check(PARAMS)
    Lora(rank=4, targets="dense_0").check(PARAMS)
    with pytest.raises(
        UserError, match=r"adapter.targets: 'conv' matches none of the matrices dense_0/kernel, dense_1"
    ):
        Lora(targets="conv").check(PARAMS)
    with pytest.raises(UserError, match=r"adapter.targets: '\(' is not a regular expression"):
        Lora(targets="(").check(PARAMS)
    for pattern, some in [("conv", "none"), ("dense", "all")]:
        with pytest.raises(UserError, match=rf"adapter.pattern: '{pattern}' matches {some} of the parameters dense_0"):
            Freeze(pattern=pattern).check(PARAMS)
    with pytest.raises(UserError, match=r"adapter.pattern: '\[' is not a regular expression"):
        Freeze(pattern="[").check(PARAMS)


def test_ewc_holds_the_product_and_not_the_factors():
    """With P = (alpha / r) A B the penalty strength / 2 sum F (W + P - theta*)^2 reaches A and B by the chain rule, and
    F and theta* are those of W + P."""
    strength, scale, rate = 3.0, 2.0, 0.1

    def step(strength):
        method = ewc(MODEL, strength, kind="empirical")
        learner = train.Learner(MODEL, optax.scale(-rate), method, lora(2, 2 * scale))
        state = train.init(learner, KEY, BATCH, PARAMS)
        state = state._replace(trainable=shifted(state.trainable))
        state = train.end_task(learner, KEY, state, Task(TASK, BATCH, jnp.ones(8, bool)))
        anchored = train.effective(learner, state)
        state = state._replace(trainable=jax.tree.map(lambda leaf: 1.1 * leaf + 0.2, state.trainable))
        before = train.effective(learner, state)
        after, metrics = train.train_step(learner, KEY, state, BATCH, task=1)
        fisher = diagonal_fisher(KEY, MODEL, anchored, BATCH, kind="empirical")
        return anchored, before, state, after.trainable.factors, metrics.penalty, fisher

    anchored, before, state, held, penalty, fisher = jax.jit(step)(strength)
    *_, free, _, _ = jax.jit(step)(0.0)
    chex.assert_trees_all_equal(state.method.anchor, anchored)
    chex.assert_trees_all_close(state.method.fisher, fisher, **ROUNDING)
    expected = 0.0
    for name in ("dense_0", "dense_1"):
        f, p, anchor = (np.asarray(of[name]["kernel"], np.float64) for of in (fisher, before, anchored))
        spring = strength * f * (p - anchor)  # the penalty's gradient by the product's matrix
        factors = state.trainable.factors[f"{name}/kernel"]
        a, b = (np.asarray(factors[part], np.float64) for part in "ab")
        expected += 0.5 * np.sum(spring * (p - anchor))
        for part, slope in (("a", scale * spring @ b.T), ("b", scale * a.T @ spring)):
            by = np.asarray(held[f"{name}/kernel"][part], np.float64) - np.asarray(free[f"{name}/kernel"][part])
            np.testing.assert_allclose(by, -rate * slope, rtol=1e-3, atol=1e-5)
            assert np.abs(slope).max() > 0.01
    np.testing.assert_allclose(penalty, expected, rtol=1e-4)


STACK = {
    "embedding": {"embedding": jnp.ones((7, 4))},
    "layers": {"query": {"kernel": jnp.arange(3 * 4 * 5, dtype=jnp.float32).reshape(3, 4, 5)}},
    "head": {"kernel": jnp.ones((4, 7))},
}


def test_lora_adapts_each_layer_of_a_stack_by_factors_of_its_own():
    adapter = lora(2, 6.0, "query/kernel")
    base, trainable = adapter.init(KEY, STACK)
    (factors,) = trainable.factors.values()
    assert factors["a"].shape == (3, 4, 2) and factors["b"].shape == (3, 2, 5)
    moved = trainable._replace(factors=shifted(trainable.factors))
    found = adapter.effective(base, moved, TASK)
    a, b = (np.asarray(moved.factors["layers/query/kernel"][name], np.float64) for name in "ab")
    for layer in range(3):
        expected = np.asarray(STACK["layers"]["query"]["kernel"][layer]) + 3.0 * a[layer] @ b[layer]
        np.testing.assert_allclose(found["layers"]["query"]["kernel"][layer], expected, **ROUNDING)
    chex.assert_trees_all_equal(found["embedding"], STACK["embedding"])


@pytest.mark.parametrize("used", [1, 3])
def test_a_lower_rank_in_the_program_of_a_higher_one(used):
    """The same product and the same gradients as factors of that rank, none for the rest; the rank may be traced."""
    whole = lora(4, 8.0)
    base, trainable = whole.init(KEY, PARAMS)
    moved = trainable._replace(factors=shifted(trainable.factors))
    cut = jax.tree.map(lambda leaf: leaf, moved.factors)
    cut = {name: {"a": part["a"][:, :used], "b": part["b"][:used]} for name, part in cut.items()}
    found = jax.jit(lambda rank: lora(4, 8.0, used=rank).effective(base, moved, TASK))(jnp.float32(used))
    chex.assert_trees_all_close(found, by_hand(PARAMS, cut, 8.0 / used), **ROUNDING)

    def loss(factors):
        params = lora(4, 8.0, used=used).effective(base, moved._replace(factors=factors), TASK)
        return jnp.sum(jnp.square(MODEL.apply(params, BATCH.x)))

    for part in jax.grad(loss)(moved.factors).values():
        assert not np.asarray(part["a"][:, used:]).any() and not np.asarray(part["b"][used:]).any()
        assert np.asarray(part["a"][:, :used]).all() and np.asarray(part["b"][:used]).any()


@pytest.mark.parametrize("first", [0, 1, 3])
def test_first_layers_and_the_embedding_before_them_are_frozen(first):
    ones = jax.tree.map(jnp.ones_like, STACK)
    adapter = jax.jit(lambda number, task: freeze_layers(number).mask((), task, ones))
    chex.assert_trees_all_equal(adapter(jnp.float32(first), jnp.int32(0)), ones)
    found = adapter(jnp.float32(first), jnp.int32(1))
    layers = np.asarray(found["layers"]["query"]["kernel"]).reshape(3, -1)
    np.testing.assert_array_equal(layers.all(axis=1), np.arange(3) >= first)
    np.testing.assert_array_equal(layers.any(axis=1), np.arange(3) >= first)
    assert bool(np.asarray(found["embedding"]["embedding"]).any()) == (first == 0)
    assert np.asarray(found["head"]["kernel"]).all()


def test_layers_are_frozen_where_there_are_some():
    FreezeLayers().check(STACK)
    with pytest.raises(UserError, match="has no stack of layers"):
        FreezeLayers().check(PARAMS)

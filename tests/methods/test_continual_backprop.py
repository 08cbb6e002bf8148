"""Continual backprop step by step against a NumPy loop; what a birth writes and what it leaves alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.batch import Batch
from cl_jax.errors import UserError
from cl_jax.method import StepInfo
from cl_jax.methods.continual_backprop import Units, continual_backprop, hidden_layers
from cl_jax.model import Model
from cl_jax.models.cnn import cnn
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
INPUTS, OUTPUTS, ROWS = 6, 3, 7
EXAMPLE = jnp.zeros((1, INPUTS))
MODEL = mlp((5, 4), OUTPUTS)
RATE, DECAY, MATURITY, LEARNING_RATE = 0.0731, 0.8, 3, 0.3
ROUNDING = dict(rtol=1e-4, atol=1e-6)
NAMES = ("dense_0", "dense_1", "dense_2")


def examples(seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    x, y, weight = (
        generator.normal(size=(ROWS, INPUTS)),
        generator.integers(0, OUTPUTS, ROWS),
        generator.uniform(size=ROWS),
    )
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32), weight=jnp.asarray(weight, jnp.float32))


def in_float64(params):
    return [{part: np.array(params[name][part], np.float64) for part in ("kernel", "bias")} for name in NAMES]


def descended(layers, batch):
    """One step of gradient descent on sum_b weight_b loss_b by hand, and the activations before it."""
    h, inputs = np.asarray(batch.x, np.float64), []
    for depth, layer in enumerate(layers):
        inputs.append(h)
        h = h @ layer["kernel"] + layer["bias"]
        h = np.maximum(h, 0) if depth < len(layers) - 1 else h
    p = np.exp(h - h.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    g = np.asarray(batch.weight, np.float64)[:, None] * (p - np.eye(OUTPUTS)[np.asarray(batch.y)])
    new = []
    for layer, received in zip(reversed(layers), reversed(inputs), strict=True):
        step = {"kernel": received.T @ g, "bias": g.sum(axis=0)}
        new.insert(0, {part: layer[part] - LEARNING_RATE * step[part] for part in layer})
        g = (g @ layer["kernel"].T) * (received > 0)
    return new, inputs[1:]


def test_a_numpy_loop():
    method = continual_backprop(MODEL, EXAMPLE, jnp.float32(RATE), decay=jnp.float32(DECAY), maturity=MATURITY)
    learner = train.Learner(MODEL, optax.scale(-1.0), method)
    step = jax.jit(lambda key, state, batch: train.train_step(learner, key, state, batch, LEARNING_RATE)[0])
    state = train.init(learner, KEY, examples(0))
    utility, age, due = [np.zeros(5), np.zeros(4)], [np.zeros(5, int), np.zeros(4, int)], [0.0, 0.0]
    births: list[list[int]] = [[], []]
    for number in range(40):
        batch = examples(number)
        expected, h = descended(in_float64(state.trainable), batch)
        state = step(jax.random.fold_in(KEY, number), state, batch)
        found, weight = in_float64(state.trainable), np.asarray(batch.weight, np.float64)
        for depth in (0, 1):
            age[depth] += 1
            contribution = weight @ np.abs(h[depth]) / weight.sum() * np.abs(expected[depth + 1]["kernel"]).sum(axis=1)
            utility[depth] = DECAY * utility[depth] + (1 - DECAY) * contribution
        for depth in (0, 1):
            mature = age[depth] > MATURITY
            due[depth] += RATE * mature.sum()
            if due[depth] >= 1:
                due[depth] -= 1
                unit = int(np.argmin(np.where(mature, utility[depth] / (1 - DECAY ** age[depth]), np.inf)))
                for part in ("kernel", "bias"):
                    drawn = found[depth][part][..., unit]
                    assert np.abs(drawn).max() <= found[depth]["kernel"].shape[0] ** -0.5 + 1e-6
                    assert (drawn != np.float32(expected[depth][part][..., unit])).all()
                    expected[depth][part][..., unit] = drawn
                expected[depth + 1]["kernel"][unit] = 0
                utility[depth][unit], age[depth][unit] = 0, 0
                births[depth].append(unit)
        for one, other in zip(found, expected, strict=True):
            chex.assert_trees_all_close(one, other, **ROUNDING)
        for depth in (0, 1):
            units = state.method[NAMES[depth]]
            np.testing.assert_allclose(units.utility, utility[depth], **ROUNDING)
            np.testing.assert_array_equal(units.age, age[depth])
            np.testing.assert_allclose(units.due, due[depth], rtol=1e-4, atol=1e-5)
    assert all(len(units) > 4 and len(set(units)) > 1 for units in births)


def ready(unit: int, widths: dict[str, int]) -> dict[str, Units]:
    """All units are mature and one is due; the utility of `unit` is the lowest once its short life is reckoned with."""

    def layer(n: int) -> Units:
        utility = jnp.linspace(1.0, 2.0, n).at[unit].set(1.5)
        return Units(utility, jnp.full((n,), 4, jnp.int32).at[unit].set(1000), jnp.float32(0.999))

    return {name: layer(n) for name, n in widths.items()}


def test_a_birth_writes_its_weights_and_no_others():
    model = mlp((5, 4), OUTPUTS, "he", layer_norm=True)
    method = continual_backprop(model, EXAMPLE, jnp.float32(0.1), decay=0.8, maturity=3.0)
    before = jax.tree.map(lambda leaf: leaf + 0.7, model.init(KEY, EXAMPLE))
    # u = 1.5 over 1 - 0.8^1000 is less than u = 1 over 1 - 0.8^4.
    state, after, forget = jax.jit(method.rewrite)(KEY, ready(2, {"dense_0": 5, "dense_1": 4}), before)
    here = jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), before)
    for name, norm, following in (("dense_0", "norm_0", "dense_1"), ("dense_1", "norm_1", "dense_2")):
        here[name]["kernel"][:, 2] = here[name]["bias"][2] = here[following]["kernel"][2] = True
        here[norm]["scale"][2] = here[norm]["bias"][2] = True
        assert [float(after[part][leaf][2]) for part, leaf in ((norm, "scale"), (norm, "bias"), (name, "bias"))] == [
            1,
            0,
            0,
        ]
        assert (np.abs(after[name]["kernel"][:, 2]) < 5).all() and len(np.unique(after[name]["kernel"][:, 2])) > 2
        np.testing.assert_array_equal(state[name].utility[2], 0)
        np.testing.assert_array_equal(np.flatnonzero(state[name].age == 0), [2])
        np.testing.assert_allclose(state[name].due, 0.999 + 0.1 * len(state[name].age) - 1, rtol=1e-5)
    # Between the layers the second one's new incoming weight from the first one's new unit is kept.
    np.testing.assert_array_equal(np.delete(after["dense_1"]["kernel"][2], 2), 0)
    np.testing.assert_array_equal(after["dense_2"]["kernel"][2], 0)
    assert float(after["dense_1"]["kernel"][2, 2]) != 0
    chex.assert_trees_all_equal(forget, here)
    changed = jax.tree.map(lambda old, new: np.asarray(old != new), before, after)
    chex.assert_trees_all_equal(changed, here)


@pytest.mark.parametrize(
    "optimizer", [optax.trace(0.9), optax.scale_by_adam(), optax.scale_by_rms(), optax.scale_by_rss()]
)
def test_the_optimizer_forgets_there_alone(optimizer):
    params = MODEL.init(KEY, EXAMPLE)
    forget = jax.tree.map(lambda leaf: np.arange(leaf.size).reshape(leaf.shape) % 3 == 1, params)
    moments = jax.tree.map(jnp.ones_like, optimizer.init(params))
    found = train.forgotten(optimizer, moments, forget)
    of_weights = [leaf for leaf in jax.tree.leaves(found) if leaf.ndim]
    copies = len(of_weights) // len(jax.tree.leaves(params))
    assert copies >= 1
    for i, leaf in enumerate(of_weights):
        np.testing.assert_array_equal(leaf == 0, jax.tree.leaves(forget)[i % len(jax.tree.leaves(params))])
    assert all(leaf == 1 for leaf in jax.tree.leaves(found) if not leaf.ndim)


def test_nothing_is_born_before_it_is_due_or_mature():
    params = MODEL.init(KEY, EXAMPLE)
    rewrite = jax.jit(continual_backprop(MODEL, EXAMPLE, jnp.float32(1e-4)).rewrite)
    early, young = ready(1, {"dense_0": 5, "dense_1": 4}), ready(1, {"dense_0": 5, "dense_1": 4})
    early = {name: units._replace(due=jnp.float32(0.5), age=units.age + 1000) for name, units in early.items()}
    young = {name: units._replace(due=jnp.float32(3.0), age=units.age * 0 + 100) for name, units in young.items()}
    for state in (early, young):
        after = rewrite(KEY, state, params)
        chex.assert_trees_all_equal(after.params, params)
        assert not any(leaf.any() for leaf in jax.tree.leaves(after.forget))
        for name, units in after.state.items():
            chex.assert_trees_all_equal(units._replace(due=state[name].due), state[name])


def test_rows_of_no_weight_do_not_count():
    method = continual_backprop(MODEL, EXAMPLE, 0.1)
    params, batch = MODEL.init(KEY, EXAMPLE), examples(0)
    half = batch._replace(x=batch.x.at[3:].mul(100.0), weight=jnp.where(jnp.arange(ROWS) < 3, 0.25, 0.0))
    alone = jax.tree.map(lambda leaf: leaf[:3], batch)._replace(weight=None)
    states = [
        jax.jit(method.after_step)(
            KEY, method.init(KEY, params, each), StepInfo(each, each, params, params, params, EXAMPLE)
        )
        for each in (half, alone)
    ]
    chex.assert_trees_all_close(*states, rtol=1e-5)
    assert all(float(units.utility.max()) > 0 for units in states[0].values())


def test_the_order_of_layers_is_that_of_use():
    """Not that of their names: dense_10 comes before dense_2 there."""
    chain = hidden_layers(mlp((3,) * 11, OUTPUTS, layer_norm=True), EXAMPLE)
    assert [hidden.layer for hidden in chain] == [f"dense_{i}" for i in range(11)]
    assert [hidden.following for hidden in chain] == [f"dense_{i}" for i in range(1, 12)]
    assert [hidden.norms for hidden in chain] == [(f"norm_{i}",) for i in range(11)]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (cnn((2,), (4,), OUTPUTS), (1, 4, 4, 1)),
        (mlp((), OUTPUTS), (1, INPUTS)),
        (Model(MODEL.init, MODEL.apply, fresh=MODEL.fresh), (1, INPUTS)),
        (MODEL._replace(fresh=None), (1, INPUTS)),
    ],
)
def test_other_models_are_refused(model, shape):
    with pytest.raises(UserError, match="use model Mlp with a hidden layer, or give yours `tap` and `fresh`"):
        continual_backprop(model, jax.ShapeDtypeStruct(shape, jnp.float32), 1e-4)


def test_dead_units_live_again():
    """A layer that computes nothing but zeros learns once its units are replaced, and never without."""
    batch = examples(3)._replace(weight=None)

    @jax.jit
    @jax.vmap
    def final_loss(rate):
        learner = train.Learner(MODEL, optax.scale(-1.0), continual_backprop(MODEL, EXAMPLE, rate, maturity=20.0))
        params = MODEL.init(KEY, EXAMPLE)
        params["dense_0"]["bias"] -= 100.0
        state = train.init(learner, KEY, batch, params)

        def one(state, number):
            return train.train_step(learner, jax.random.fold_in(KEY, number), state, batch, 0.5)

        return jax.lax.scan(one, state, jnp.arange(400, dtype=jnp.int32))[1].loss[-1]

    never, sometimes = final_loss(jnp.array([0.0, 0.01]))
    assert float(sometimes) < 0.5 < float(never)

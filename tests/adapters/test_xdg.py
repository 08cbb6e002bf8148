"""Context-dependent gating against masks on the columns of weights, and what methods see of it."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.adapters import Xdg
from cl_jax.adapters.adapter import layers_of
from cl_jax.adapters.xdg import xdg
from cl_jax.batch import Batch, whole_task
from cl_jax.errors import UserError
from cl_jax.fisher import diagonal_fisher
from cl_jax.methods.ewc import ewc
from cl_jax.model import Model
from cl_jax.models.cnn import cnn
from cl_jax.models.mlp import mlp
from cl_jax.models.resnet import resnet18

KEY = jax.random.key(0)
MODELS = {"mlp": mlp((10, 7), 3, "he"), "cnn": cnn((4, 6), (8,), 3)}
X = jnp.asarray(np.random.default_rng(0).normal(size=(9, 8, 8, 2)), jnp.float32)
BATCH = Batch(X, jnp.arange(9, dtype=jnp.int32) % 3)
# float32 sums of a few hundred products in another order.
ROUNDING = dict(rtol=1e-5, atol=1e-6)


@functools.partial(jax.jit, static_argnames=("name", "num_tasks"))
def initial(share, key, name, num_tasks):
    return xdg(num_tasks, share).init(key, MODELS[name].init(jax.random.key(1), X))


def start(name: str, share: float = 0.5, num_tasks: int = 3, key=KEY):
    return xdg(num_tasks, share), *initial(share, key, name, num_tasks)


@pytest.mark.parametrize(("share", "silent"), [(0.0, (0, 0)), (0.5, (5, 4)), (0.8, (8, 6)), (1.0, (9, 6))])
def test_each_task_silences_its_share(share, silent):
    """round(share n), half to even, and never all: of 10 and of 7 units."""
    _, gates, _ = start("mlp", share)
    for name, count in zip(("dense_0", "dense_1"), silent, strict=True):
        assert gates[name].dtype == bool
        np.testing.assert_array_equal((~np.asarray(gates[name])).sum(axis=1), [count] * 3)
    assert set(gates) == {"dense_0", "dense_1"}


def test_gates_are_drawn_once_a_task():
    few = start("mlp")[1]
    many = start("mlp", num_tasks=400)[1]
    assert all((np.asarray(few[name]) == np.asarray(many[name])[:3]).all() for name in few)  # whatever else is to come
    other = start("mlp", num_tasks=400, key=jax.random.key(7))[1]
    assert (np.asarray(other["dense_0"]) != np.asarray(many["dense_0"])).any()
    # Each of 10 units is silent in half of 400 tasks, each pair of tasks agrees on half of them: 5 standard errors.
    gates = np.asarray(many["dense_0"])
    np.testing.assert_allclose(gates.mean(axis=0), 0.5, atol=5 * 0.5 / np.sqrt(400))
    np.testing.assert_allclose((gates[1:] == gates[:-1]).mean(), 0.5, atol=5 * 0.5 / np.sqrt(4000))


def test_the_share_may_be_swept():
    _, _, params = start("mlp")
    together = jax.jit(jax.vmap(lambda share: xdg(3, share).init(KEY, params)[0]))(jnp.array([0.2, 0.8]))
    for i, share in enumerate((0.2, 0.8)):
        chex.assert_trees_all_equal({name: gate[i] for name, gate in together.items()}, start("mlp", share)[1])


def test_gates_are_masks_on_columns():
    """Of kernels and biases of all layers but the last, convolutions and dense ones; a task's own."""
    adapter, gates, params = start("cnn")
    apply, logits = jax.jit(MODELS["cnn"].apply), []
    for task in range(3):
        masked = jax.tree.map(np.asarray, params)
        for layer, gate in gates.items():
            masked[layer] = {part: leaf * np.asarray(gate)[task] for part, leaf in masked[layer].items()}
        masked = jax.tree.map(jnp.asarray, masked)
        found = apply(adapter.effective(gates, params, jnp.int32(task)), X)
        np.testing.assert_allclose(found, apply(masked, X), **ROUNDING)
        logits.append(found)
    assert min(float(np.abs(one - two).max()) for one, two in itertools.pairwise(logits)) > 1e-3


def test_a_step_moves_no_weight_of_a_silent_unit():
    adapter, gates, params = start("mlp")
    learner = train.Learner(MODELS["mlp"], optax.scale(-0.1), adapter=adapter)
    state = train.init(learner, KEY, BATCH, params)
    after, _ = jax.jit(lambda state: train.train_step(learner, KEY, state, BATCH, task=1))(state)
    moved = jax.tree.map(lambda old, new: np.asarray(old != new), state.trainable, after.trainable)
    gates = {layer: np.asarray(gate)[1] for layer, gate in state.base.items()}
    for layer, below in (("dense_0", None), ("dense_1", gates["dense_0"]), ("dense_2", gates["dense_1"])):
        into, out_of = moved[layer]["kernel"], moved[layer]["bias"]
        active = gates.get(layer, np.ones(3, bool))
        assert not into[:, ~active].any() and not out_of[~active].any() and into[:, active].any()
        assert below is None or not into[~below].any()


def test_methods_hold_weights_and_not_weights_times_gates():
    """Online EWC's newest anchor holds old springs: of units that its task silenced too."""
    adapter, gates, params = start("mlp")
    learner = train.Learner(MODELS["mlp"], optax.scale(-0.1), ewc(MODELS["mlp"], 1.0, anchors="online"), adapter)

    @jax.jit
    def life(params):
        state = train.init(learner, KEY, BATCH, params)
        states = []
        for task in range(2):
            state, _ = train.train_step(learner, KEY, state, BATCH, task=task)
            state = train.end_task(learner, KEY, state, whole_task(task, BATCH))
            states.append(state)
        return states

    first, second = life(params)
    for name, gate in first.base.items():
        silent = ~np.asarray(gate)[0]
        fisher = np.asarray(first.method.fisher[name]["kernel"])
        assert not fisher[:, silent].any() and fisher[:, ~silent].any()
        assert not np.asarray(first.method.fisher[name]["gate"]).any()
        np.testing.assert_array_equal(second.method.anchor[name]["kernel"], second.trainable[name]["kernel"])
    assert all(np.asarray(second.trainable[name]["kernel"]).all() for name in gates)


def test_the_fisher_of_a_gated_model():
    """By what layers received, convolutions and dense ones, and by whole gradients of single examples."""
    adapter, gates, params = start("cnn")
    gated = adapter.effective(gates, params, jnp.int32(1))

    def fisher(model):
        return jax.jit(lambda p: diagonal_fisher(KEY, model, p, BATCH))(gated)

    fast, slow = fisher(MODELS["cnn"]), fisher(MODELS["cnn"]._replace(tap=None))
    chex.assert_trees_all_close(fast, slow, rtol=1e-4, atol=1e-7)
    assert max(float(layer["kernel"].max()) for layer in fast.values()) > 1e-3


def test_the_head_is_the_last_layer():
    def names(*layers):
        return layers_of({layer: {"bias": jnp.zeros(1), "kernel": jnp.zeros((1, 1))} for layer in layers})

    assert names("dense_10", "dense_9", "conv_11") == ["conv_11", "dense_9", "dense_10"]
    assert names("head", "stem", "stage_0")[-1] == "head"
    with pytest.raises(UserError, match="no layer with a `kernel`, but w:"):
        layers_of({"w": jnp.zeros((2, 2))})


def test_what_cannot_be_gated_is_told():
    shape = jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32)
    for model, message in (
        (resnet18(4, 3), r"normalises them \(in stage_0_block_0_norm_0\)"),
        (mlp((), 3), "has none: give it a hidden layer"),
    ):
        with pytest.raises(UserError, match=message):
            Xdg().check(jax.eval_shape(model.init, KEY, shape))
    plain = resnet18(4, 3, normalization="none")
    Xdg().check(jax.eval_shape(plain.init, KEY, shape))
    deaf = Model(MODELS["mlp"].init, MODELS["mlp"].apply)
    with pytest.raises(UserError, match="which this model does not heed"):
        train.init(train.Learner(deaf, optax.scale(-0.1), adapter=Xdg().build(2)), KEY, BATCH)

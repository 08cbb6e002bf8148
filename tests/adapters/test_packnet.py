"""PackNet against a NumPy loop of the paper's procedure, and what no later task may touch."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.adapters import Packnet
from cl_jax.adapters.packnet import packnet
from cl_jax.batch import Batch, whole_task
from cl_jax.errors import UserError
from cl_jax.model import Model
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
TASKS, STEPS, RATE, SHARE = 3, 6, 0.3, 0.6
PRUNED_BEFORE = 4  # round(6 / 1.5)
MODEL = mlp((8,), 3)
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(TASKS, 12, 5))
Y = GENERATOR.integers(0, 3, (TASKS, 12))
BATCHES = [Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)) for x, y in zip(X, Y, strict=True)]
PARAMS = MODEL.init(jax.random.key(1), BATCHES[0].x)
ROUNDING = dict(rtol=1e-4, atol=1e-5)  # 18 steps in float32 against float64


def states(adapter, optimizer=None, *, within=True, tasks=TASKS):
    """Before any training and after each task's boundary."""
    learner = train.Learner(MODEL, optimizer or optax.scale(-RATE), adapter=adapter)

    def life(key):
        found = [train.init(learner, key, BATCHES[0], PARAMS)]
        for task in range(tasks):

            def one(state, step, task=task):
                if within:
                    state = train.during(learner, state, task, step, STEPS)
                return train.train_step(learner, key, state, BATCHES[task], task=task)[0], None

            state, _ = jax.lax.scan(one, found[-1], jnp.arange(STEPS, dtype=jnp.int32))
            found.append(train.end_task(learner, key, state, whole_task(task, BATCHES[task])))
        return found

    return jax.jit(life)(KEY)


def gradients(w, b, head, bias, x, y):
    """Of the mean cross-entropy, by hand."""
    hidden = np.maximum(x @ w + b, 0)
    logits = hidden @ head + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    out = (p / p.sum(axis=1, keepdims=True) - np.eye(3)[y]) / len(y)
    into = (out @ head.T) * (hidden > 0)
    return x.T @ into, into.sum(axis=0), hidden.T @ out, out.sum(axis=0)


def the_paper_s_procedure():
    """The kernel, its owners and the bias after each task; and every task's head."""
    w, b, head, bias = (np.array(PARAMS[name][part], np.float64) for name in ("dense_0", "dense_1")
                        for part in ("kernel", "bias"))  # fmt: skip
    heads, owner, after = [(head.copy(), bias.copy()) for _ in range(TASKS)], np.zeros(w.shape, int), []
    for task in range(TASKS):
        for step in range(STEPS):
            if step == PRUNED_BEFORE and task < TASKS - 1:
                own = np.sort(np.abs(w[owner == task]))
                gone = (owner == task) & (np.abs(w) <= own[round(SHARE * own.size) - 1])
                w[gone], owner[gone] = 0, task + 1
            of_w, of_b, *of_head = gradients(np.where(owner <= task, w, 0), b, *heads[task], X[task], Y[task])
            w = w - RATE * np.where(owner == task, of_w, 0)
            b = b - RATE * of_b * (task == 0)
            heads[task] = tuple(value - RATE * of for value, of in zip(heads[task], of_head, strict=True))
        after.append((w.copy(), owner.copy(), b.copy()))
    return after, heads


def test_it_is_the_paper_s_procedure():
    expected, heads = the_paper_s_procedure()
    start, *after = states(packnet(TASKS, SHARE))
    for state, (w, owner, b) in zip(after, expected, strict=True):
        np.testing.assert_array_equal(state.base.owner["dense_0"]["kernel"], owner)
        np.testing.assert_allclose(state.trainable["dense_0"]["kernel"], w, **ROUNDING)
        np.testing.assert_allclose(state.trainable["dense_0"]["bias"], b, **ROUNDING)
    for task, head in enumerate(heads):
        for part, value in zip(("kernel", "bias"), head, strict=True):
            np.testing.assert_allclose(after[-1].trainable["dense_1"][part][task], value, **ROUNDING)
    # 40 weights: 24 are freed, then 14 of these, then none.
    assert [np.bincount(owner.ravel(), minlength=3).tolist() for _, owner, _ in expected] == [
        [16, 24, 0], [16, 10, 14], [16, 10, 14]]  # fmt: skip
    chex.assert_trees_all_equal(packnet(TASKS).effective(start.base, start.trainable, jnp.int32(2)), PARAMS)


@pytest.mark.parametrize("own_head", [True, False])
def test_no_task_changes_what_an_earlier_one_computes(own_head):
    """Bitwise, though momentum goes on from task to task."""
    adapter = packnet(TASKS, SHARE, own_head=own_head)
    after = states(adapter, optax.chain(optax.trace(0.9), optax.scale(-RATE / 3)))[1:]
    of = jax.jit(adapter.effective)
    effective = [[of(state.base, state.trainable, task) for state in after] for task in range(TASKS)]
    for task, seen in enumerate(effective):
        for later in seen[task + 1 :]:
            chex.assert_trees_all_equal(later, seen[task])
    for one, two in itertools.pairwise(effective):
        assert all((one[-1][name]["kernel"] != two[-1][name]["kernel"]).any() for name in PARAMS)
        chex.assert_trees_all_equal(one[-1]["dense_0"]["bias"], two[-1]["dense_0"]["bias"])
        assert (one[-1]["dense_1"]["bias"] != two[-1]["dense_1"]["bias"]).any() == own_head
    shape = (TASKS, 8, 3) if own_head else (8, 3)
    assert after[0].trainable["dense_1"]["kernel"].shape == shape


def test_without_retraining_the_boundary_prunes():
    """The same weights whether `during` was never called or had nothing to do; and never twice."""
    adapter = packnet(TASKS, SHARE, retrain=0.0)
    for within in (True, False):
        found = states(adapter, within=within, tasks=1)
        owner, kernel = found[1].base.owner["dense_0"]["kernel"], found[1].trainable["dense_0"]["kernel"]
        assert int((owner == 1).sum()) == 24 and not kernel[owner == 1].any() and kernel[owner == 0].all()
    pruned_within = states(packnet(TASKS, SHARE), tasks=1)[1]
    assert int((pruned_within.base.owner["dense_0"]["kernel"] == 1).sum()) == 24


def test_equals_go_together_and_shares_may_be_swept():
    trained = {"dense_0": {"kernel": jnp.array([[0.0, 3.0, 0.0, -1.0, 0.0, -2.0]])}}
    params = {**trained, "dense_1": {"kernel": jnp.ones((6, 2))}}

    def owners(share):
        adapter = packnet(2, share)
        base, weights = adapter.init(KEY, params)
        base, weights = adapter.during(base, weights, jnp.int32(0), jnp.int32(4), STEPS)
        return base.owner["dense_0"]["kernel"][0], weights["dense_0"]["kernel"][0]

    found, weights = jax.jit(jax.vmap(owners))(jnp.array([0.0, 0.2, 0.5, 0.67, 1.0]))
    np.testing.assert_array_equal(found, [
        [0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0], [1, 0, 1, 0, 1, 0], [1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1],
    ])  # fmt: skip
    np.testing.assert_array_equal(weights[3], [0, 3, 0, 0, 0, -2])


def test_members_side_by_side_sort_at_one_step_only():
    """Under `vmap` the sort stays within a condition, which only one step of a task meets."""

    def one(share, step):
        adapter = packnet(2, share)
        return adapter.during(*adapter.init(KEY, PARAMS), jnp.int32(0), step, STEPS)

    def names(jaxpr, inside):
        for equation in jaxpr.eqns:
            yield equation.primitive.name, inside
            for held in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "jaxpr")):
                if hasattr(held, "jaxpr"):
                    yield from names(held.jaxpr, inside or equation.primitive.name == "cond")

    jaxpr = jax.make_jaxpr(jax.vmap(one, in_axes=(0, None)))(jnp.array([0.3, 0.6]), jnp.int32(1)).jaxpr
    assert {inside for name, inside in names(jaxpr, False) if name == "sort"} == {True}


def test_what_cannot_be_packed_is_told():
    shape = jax.ShapeDtypeStruct((1, 5), jnp.float32)
    flat = jax.eval_shape(mlp((), 3).init, KEY, shape)
    Packnet(own_head=False).check(flat)
    Packnet().check(PARAMS)
    with pytest.raises(UserError, match=r"adapter.own_head: the model's one layer, dense_0, is its head"):
        Packnet().check(flat)
    with pytest.raises(UserError, match=r"adapter.retrain: was given -1"):
        Packnet(retrain=-1.0).check(PARAMS)
    linear = Model(lambda key, x: {"w": jnp.ones((5, 3))}, lambda params, x: x @ params["w"])
    with pytest.raises(UserError, match="no layer with a `kernel`, but w"):
        train.init(train.Learner(linear, optax.scale(-1.0), adapter=packnet(2)), KEY, BATCHES[0])

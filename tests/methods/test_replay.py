"""Replay: the weights by hand, what is stored when, and the laws every method keeps."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch, Reference, Task
from cl_jax.errors import UserError
from cl_jax.losses import task_loss
from cl_jax.method import Method, StepInfo, chain
from cl_jax.methods.replay import INSERTIONS, WEIGHTINGS, replay
from cl_jax.model import Model

KEY = jax.random.key(0)
LOGITS = jnp.zeros((0, 3))  # nothing that replay looks at
MODEL = Model(
    init=lambda key, x: {"kernel": jax.random.normal(key, (x.shape[1], 3)), "bias": jnp.ones((1, 3))},
    apply=lambda params, x: x @ params["kernel"] + params["bias"],
)
# float32 sums of a dozen terms of order 1, taken in another order.
ROUNDING = 1e-6


def examples(rows, with_active=False) -> Batch:
    """Row i of a data set: inputs made of i, label i mod 3."""
    rows = np.asarray(rows)
    x = np.stack([np.sin(rows), np.cos(rows), rows], axis=-1).astype(np.float32)
    active = jnp.asarray(np.ones((len(rows), 3), bool)) if with_active else None
    return Batch(jnp.asarray(x), jnp.asarray(rows % 3, jnp.int32), active)


def render(reference: Reference) -> Batch:
    """What the sweep engine does: rows of a data set on the device."""
    data = examples(range(40))
    return Batch(data.x[reference.row], data.y[reference.row], reference=reference)


def references(rows) -> Reference:
    index = jnp.asarray(np.asarray(rows), jnp.int32)
    return Reference(index, jnp.zeros_like(index))


def rows_in(state) -> list[int]:
    """The data set's rows that a buffer of whole examples holds."""
    return sorted(int(i) for i in np.asarray(state.buffer.items.x[:, 2])[np.asarray(state.buffer.occupied)])


def compiled(method: Method) -> Method:
    """The method with each slot under `jit`: one compilation instead of one an operation."""
    return Method(*(jax.jit(slot) for slot in method))


def parameters(key=KEY):
    return MODEL.init(key, jnp.zeros((1, 3)))


def started(method: Method, batch: Batch, *, inserted=None, finished=0):
    """State after one insertion of the batch `inserted` and `finished` tasks."""
    state = method.init(KEY, None, batch)
    if inserted is not None:
        state = method.after_step(KEY, state, info_of(inserted))
    return state._replace(tasks_finished=jnp.int32(finished))


class Gradient(NamedTuple):
    w: jax.Array = jnp.ones((2,))


def info_of(batch: Batch) -> StepInfo:
    wrong = jax.tree.map(lambda leaf: leaf[::-1] * 0, batch)  # what was trained on is not what is stored
    return StepInfo(batch, wrong, Gradient(), Gradient(), Gradient(), LOGITS)


@pytest.mark.parametrize(
    ("weighting", "finished", "current", "each_replayed"),
    [
        ("union", 0, 1 / 6, 1 / 6),  # B = 4, R = 2
        ("union", 3, 1 / 6, 1 / 6),
        ("sum", 1, 1 / 4, 1 / 2),
        ("balanced", 0, 1 / 4, 0.0),  # first task: t = 1
        ("balanced", 1, 1 / 8, 1 / 4),  # t = 2: 1/2 of 1/4, 1/2 of 1/2
        ("balanced", 3, 1 / 16, 3 / 8),  # t = 4: 1/4 of 1/4, 3/4 of 1/2
    ],
)
def test_weights_by_hand(weighting, finished, current, each_replayed):
    method = compiled(replay(8, batch_size=2, weighting=weighting))
    batch = examples([10, 11, 12, 13])
    state = started(method, batch, inserted=examples([1, 2, 3, 4]), finished=finished)
    drawn = method.draw(KEY, state, None, batch)
    np.testing.assert_allclose(drawn.weight, [current] * 4 + [each_replayed] * 2, rtol=ROUNDING)
    assert drawn.weight.dtype == jnp.float32
    np.testing.assert_array_equal(drawn.x[:4], batch.x)
    np.testing.assert_array_equal(drawn.y[:4], batch.y)
    np.testing.assert_array_equal(drawn.y[4:], drawn.x[4:, 2].astype(jnp.int32) % 3)
    assert set(drawn.x[4:, 2].tolist()) <= {1, 2, 3, 4}
    assert drawn.active is None and drawn.reference is None


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        # Incoming weights (1/2, 1/2, 0), R = 2, t = 2; the row of weight 0 is padding and not one of the B.
        ("union", [1 / 4, 1 / 4, 0, 1 / 4, 1 / 4]),
        ("sum", [1 / 2, 1 / 2, 0, 1 / 2, 1 / 2]),
        ("balanced", [1 / 4, 1 / 4, 0, 1 / 4, 1 / 4]),
    ],
)
def test_weights_of_a_weighted_batch(weighting, expected):
    method = compiled(replay(8, batch_size=2, weighting=weighting))
    batch = examples([10, 11, 12])._replace(weight=jnp.array([0.5, 0.5, 0.0]))
    state = started(method, batch, inserted=examples([1, 2, 3]), finished=1)
    np.testing.assert_allclose(method.draw(KEY, state, None, batch).weight, expected, rtol=ROUNDING)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("weighted", [False, True])
def test_an_empty_buffer_is_fine_tuning(weighting, weighted):
    method = compiled(replay(8, weighting=weighting, batch_size=6))
    batch, params = examples([10, 11, 12, 13], True), parameters()
    if weighted:
        batch = batch._replace(weight=jnp.array([0.1, 0.2, 0.3, 0.4]))
    state = started(method, batch, finished=2)
    drawn = method.draw(KEY, state, None, batch)
    assert drawn.y.shape == (10,)
    assert np.isfinite(drawn.x).all()
    assert not drawn.weight[4:].any()
    loss = jax.jit(jax.value_and_grad(lambda p, b: task_loss(MODEL, p, b)))
    both = [loss(params, b) for b in (batch, drawn)]
    chex.assert_trees_all_close(*both, rtol=ROUNDING, atol=ROUNDING)


def test_every_step_stores_what_came_in():
    method = compiled(replay(6, policy="ring", batch_size=3))
    state = started(method, examples([0]))
    state = method.after_step(KEY, state, info_of(examples([1, 2, 3, 4])))
    state = method.after_step(KEY, state, info_of(examples([5, 6, 7, 8])))
    assert rows_in(state) == [3, 4, 5, 6, 7, 8]
    assert int(state.buffer.seen) == 8
    after = method.end_task(KEY, state, None, Task(jnp.int32(0), examples([20, 21]), jnp.ones(2, bool)))
    chex.assert_trees_all_equal(after.buffer, state.buffer)
    assert int(after.tasks_finished) == 1


def test_a_boundary_stores_each_valid_example_once():
    method = compiled(replay(20, insert="boundary"))
    state = started(method, examples([0]))
    chex.assert_trees_all_equal(method.after_step(KEY, state, info_of(examples([1, 2]))), state)
    valid = jnp.array([True, True, False, True, False])
    state = method.end_task(KEY, state, None, Task(jnp.int32(0), examples([1, 2, 3, 4, 5]), valid))
    assert rows_in(state) == [1, 2, 4]
    assert int(state.buffer.seen) == 3


def test_a_boundary_shuffles():
    method = compiled(replay(9, insert="boundary"))
    task = Task(jnp.int32(0), examples(range(9)), jnp.ones(9, bool))
    orders = []
    for seed in range(2):
        state = method.end_task(jax.random.key(seed), started(method, examples([0])), None, task)
        assert rows_in(state) == list(range(9))
        orders.append(state.buffer.items.x[:, 2].tolist())
    assert orders[0] != orders[1] != list(range(9))


def test_a_ring_at_the_boundary_keeps_examples_of_the_last_task():
    method = compiled(replay(4, policy="ring", insert="boundary"))
    state = started(method, examples([0]))
    for number, rows in enumerate([range(10), range(10, 20)]):
        state = method.end_task(KEY, state, None, Task(jnp.int32(number), examples(rows), jnp.ones(10, bool)))
    assert len(rows_in(state)) == 4
    assert set(rows_in(state)) <= set(range(10, 20))
    assert int(state.tasks_finished) == 2


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced"])
@pytest.mark.parametrize("insert", INSERTIONS)
def test_references_are_rendered_when_drawn(policy, insert):
    method = compiled(replay(9, num_classes=3, policy=policy, insert=insert, store=lambda b: b.reference, load=render))
    incoming = render(references([30, 31, 32]))
    state = method.init(KEY, None, incoming)
    assert jax.tree.leaves(state.buffer.items)[0].shape == (9,)
    past = references([3, 6, 9, 12, 1])  # labels 0, 0, 0, 0, 1
    if insert == "step":
        state = method.after_step(KEY, state, info_of(render(past)))
    else:
        state = method.end_task(KEY, state, None, Task(jnp.int32(0), past, jnp.ones(5, bool)))
    if policy == "class_balanced":
        assert state.buffer.seen.tolist() == [4, 1, 0]
        assert int(state.buffer.occupied.sum()) == 4
    drawn = method.draw(KEY, state, None, incoming)
    again = render(drawn.reference)
    chex.assert_trees_all_equal((drawn.x, drawn.y), (again.x, again.y))
    assert set(drawn.reference.row[3:].tolist()) <= {3, 6, 9, 12, 1}


def test_task_items_of_a_users_own():
    method = compiled(
        replay(
            9,
            insert="boundary",
            store=lambda b: b.reference,
            load=render,
            task_items=lambda rows: Reference(rows, rows * 0),
        )
    )
    state = method.init(KEY, None, render(references([0])))
    state = method.end_task(KEY, state, None, Task(jnp.int32(0), jnp.array([7, 8]), jnp.ones(2, bool)))
    assert sorted(state.buffer.items.row[:2].tolist()) == [7, 8]


def test_capacity_one():
    method = compiled(replay(1, batch_size=1))
    state = started(method, examples([0]), inserted=examples([4]))
    drawn = method.draw(KEY, state, None, examples([10, 11]))
    assert drawn.x[:, 2].tolist() == [10, 11, 4]


@pytest.mark.parametrize(("insert", "weighting"), [("step", "union"), ("boundary", "balanced")])
def test_a_run_is_stable_batched_and_reproducible(insert, weighting):
    """Under `scan` state keeps structure and dtypes; vmapped equals looped; no key is used twice."""
    method = chain(replay=replay(5, num_classes=3, policy="class_balanced", insert=insert, weighting=weighting))
    sample = examples(range(4), True)

    def run(key):
        key_params, key_init, key_steps, key_end = jax.random.split(key, 4)
        params = parameters(key_params)
        state = method.init(key_init, params, sample)

        def step(carry, key):
            params, state = carry
            key_draw, key_after = jax.random.split(key)
            batch = method.draw(key_draw, state, params, sample)
            loss, gradient = jax.value_and_grad(lambda p: task_loss(MODEL, p, batch))(params)
            after = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
            state = method.after_step(key_after, state, StepInfo(sample, batch, gradient, params, after, LOGITS))
            return (after, state), loss

        (params, state), losses = jax.lax.scan(step, (params, state), jax.random.split(key_steps, 4))
        task = Task(jnp.int32(0), sample, jnp.ones(4, bool))
        return method.end_task(key_end, state, params, task), losses

    once = jax.jit(run)
    with jax.debug_key_reuse(True):
        looped, again = ([once(jax.random.key(seed)) for seed in range(2)] for _ in range(2))
    chex.assert_trees_all_equal(looped, again)
    batched = jax.jit(jax.vmap(run))(jnp.stack([jax.random.key(seed) for seed in range(2)]))
    for member, (state, losses) in enumerate(looped):
        one = jax.tree.map(lambda leaf, m=member: leaf[m], batched)
        chex.assert_trees_all_close((state, losses), one, rtol=ROUNDING, atol=ROUNDING)
    assert int(looped[0][0]["replay"].buffer.seen.sum()) == (16 if insert == "step" else 4)


def test_a_training_step_does_not_copy_the_buffer():
    method = compiled(replay(20000))
    batch, params = examples(range(4)), parameters()
    state = method.init(KEY, params, batch)

    def step(params, state, key):
        key_draw, key_after = jax.random.split(key)
        drawn = method.draw(key_draw, state, params, batch)
        gradient = jax.grad(lambda p: task_loss(MODEL, p, drawn))(params)
        after = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        return after, method.after_step(key_after, state, StepInfo(batch, drawn, gradient, params, after, LOGITS))

    analysis = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, KEY).compile().memory_analysis()
    if analysis is None:
        pytest.skip("this backend does not say how much memory a program needs")
    # The winner of each slot takes 4 bytes a slot; the inputs, which are what must not be copied, 12 here.
    assert analysis.temp_size_in_bytes < state.buffer.items.x.nbytes


def test_examples_that_do_not_fit_together():
    method = compiled(replay(4))
    state = started(method, examples([0]), inserted=examples([1]))
    with pytest.raises(UserError, match=r"incoming examples have `active` and the replayed ones do not"):
        method.draw(KEY, state, None, examples([1, 2], True))
    with pytest.raises(UserError, match=r"incoming examples have `reference` and the replayed"):
        method.draw(KEY, state, None, render(references([1, 2])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(capacity=4, policy="rings"), "unknown buffer policy 'rings'.*Did you mean 'ring'"),
        (dict(capacity=4, weighting="unoin"), "unknown replay weighting 'unoin'.*Did you mean 'union'"),
        (dict(capacity=4, insert="steps"), "unknown replay insertion 'steps'.*Did you mean 'step'"),
        (dict(capacity=0), "capacity 0"),
        (dict(capacity=4, batch_size=0), "batch_size 0"),
        (dict(capacity=4, policy="class_balanced"), "num_classes=None"),
        (dict(capacity=4, policy="class_balanced", num_classes=5), "capacity 4 for 5 classes"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments, message):
    with pytest.raises(UserError, match=message):
        replay(**arguments)

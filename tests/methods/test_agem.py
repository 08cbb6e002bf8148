"""A-GEM: the projection and its reference gradient by hand, and what the memory keeps when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from cl_jax.batch import Reference, Task
from cl_jax.errors import UserError
from cl_jax.method import Method, StepInfo
from cl_jax.methods.agem import Agem, agem, without_conflict
from cl_jax.methods.episodic_memory import episodic_memory, past_slots, sample_past
from tests.methods.softmax_regression import MODEL, PARAMS, examples, flat, gradient, tree_of

KEY = jax.random.key(0)
LOGITS = jnp.zeros((0, 4))  # nothing that a memory looks at
# float32 sums of two dozen terms of order 1, twice over.
ROUNDING = dict(rtol=1e-5, atol=1e-6)


def compiled(method: Method) -> Method:
    """The method with each slot under `jit`: one compilation instead of one an operation."""
    return Method(*(jax.jit(slot) for slot in method))


def stepped(method, state, batch, key=KEY):
    return method.after_step(key, state, StepInfo(batch, batch, PARAMS, PARAMS, PARAMS, LOGITS))


def finished(method, state, number, batch, valid=None, key=KEY):
    valid = jnp.ones(batch.y.shape, bool) if valid is None else valid
    return method.end_task(key, state, PARAMS, Task(jnp.int32(number), batch, valid))


def numbers_in(state, at=None):
    """The numbers of the examples that a memory holds, buffer by buffer; None: an empty slot."""
    held = np.round(np.asarray(state.buffers.items.x[..., 4]) * 40).astype(int)
    rows = [
        [int(n) if full else None for n, full in zip(*row, strict=True)]
        for row in zip(held, np.asarray(state.buffers.occupied), strict=True)
    ]
    return rows if at is None else rows[at]


@pytest.mark.parametrize("towards", [-2.0, -0.1, 0.0, 3.0])
def test_the_projection_by_hand(towards):
    generator = np.random.default_rng(0)
    r, other = generator.normal(size=(2, 24))
    g = other - (other @ r) / (r @ r) * r + towards * r
    found = flat(jax.jit(without_conflict)(tree_of(g), tree_of(r)))
    np.testing.assert_allclose(found, g - min(towards, 0.0) * r, **ROUNDING)
    assert found @ r > -1e-4


def test_without_a_reference_nothing_changes():
    g = tree_of(np.arange(24) - 12.0)
    for r in (np.zeros(24), np.full(24, 1e-30)):  # the square of the latter is 0 in float32
        np.testing.assert_array_equal(flat(without_conflict(g, tree_of(r))), flat(g))


def test_the_reference_is_the_gradient_of_what_finished_tasks_left():
    """Two finished tasks with heads of their own, and a third one in training, whose examples must not count."""
    method = compiled(agem(MODEL, 4, 24, batch_size=100))  # 6 slots a task; a batch larger than all of them
    parts = [examples(np.arange(4 * i, 4 * i + 4), i % 2) for i in range(3)]
    state = method.init(KEY, PARAMS, parts[0])
    away = tree_of(-gradient(PARAMS, parts[0]))
    first = stepped(method, state, parts[0])  # stored, but its task is not over
    np.testing.assert_array_equal(flat(method.gradients(KEY, first, away, PARAMS, parts[0])), flat(away))
    for number, part in enumerate(parts[:2]):
        state = finished(method, stepped(method, state, part), number, part)
    state = stepped(method, state, parts[2])
    r = (gradient(PARAMS, parts[0]) + gradient(PARAMS, parts[1])) / 2
    g = np.random.default_rng(1).normal(size=24) - 2 * r
    assert g @ r < 0
    found = method.gradients(KEY, state, tree_of(g), PARAMS, parts[2])
    np.testing.assert_allclose(flat(found), g - (g @ r) / (r @ r) * r, **ROUNDING)


def test_a_ring_a_class_as_the_authors_have_it():
    """Slot (task, class, count of the class modulo its slots), an example at a time."""
    method = compiled(episodic_memory(2, 16, policy="class_ring", num_classes=2))
    state, expected = method.init(KEY, PARAMS, examples(range(3), 0)), [[None] * 8, [None] * 8]
    for task, first in ((0, 0), (1, 20)):
        count = [0, 0]
        for start in range(first, first + 15, 3):
            batch = examples(range(start, start + 3), task)  # the labels of task 1 are 2 and 3
            state = stepped(method, state, batch)
            for number, y in zip(range(start, start + 3), np.asarray(batch.y) - 2 * task, strict=True):
                expected[task][4 * y + count[y]] = number
                count[y] = (count[y] + 1) % 4
        assert numbers_in(state) == expected
        assert np.asarray(past_slots(state)).any(axis=1).tolist() == [number < task for number in range(2)]
        state = finished(method, state, task, batch)


def test_a_ring_keeps_the_last_examples_of_each_task():
    method = compiled(episodic_memory(3, 12))
    state = method.init(KEY, PARAMS, examples(range(5)))
    for task, start in enumerate((0, 10, 20)):
        for more in (0, 5):
            state = stepped(method, state, examples(range(start + more, start + more + 5)))
        state = finished(method, state, task, examples(range(5)))
    assert [sorted(row) for row in numbers_in(state)] == [list(range(start + 6, start + 10)) for start in (0, 10, 20)]
    more = stepped(method, state, examples(range(5)))  # of a fourth task there are no slots
    np.testing.assert_array_equal(more.buffers.items.x, state.buffers.items.x)


def test_a_boundary_keeps_a_random_sample_of_the_valid_examples():
    method = compiled(episodic_memory(2, 8, insert="boundary"))
    valid, kept = jnp.arange(10) < 7, []
    for seed in range(300):
        state = finished(
            method, method.init(KEY, PARAMS, examples([0])), 0, examples(range(10)), valid, jax.random.key(seed)
        )
        assert len(set(numbers_in(state, 0))) == 4 and numbers_in(state, 1) == [None] * 4
        kept += numbers_in(state, 0)
    counts = np.bincount(kept, minlength=10)
    assert counts[7:].sum() == 0
    factor = (1 - 4 / 7) * 7 / 6  # without replacement
    assert np.sum((counts[:7] - 1200 / 7) ** 2) / (1200 / 7 * factor) < chi2.ppf(1 - 1e-4, 6)
    few = finished(method, method.init(KEY, PARAMS, examples([0])), 0, examples(range(10)), jnp.arange(10) < 2)
    assert numbers_in(few, 0)[2:] == [None, None] and set(numbers_in(few, 0)[:2]) == {0, 1}


def test_one_buffer_for_all_tasks_is_offered_a_batch_at_each_boundary():
    """As in Mammoth: a reservoir of 6 over 3 random examples of each of 4 tasks holds each of the 12 equally often."""
    method = compiled(episodic_memory(4, 6, insert="shared", policy="reservoir", offered=3))

    @jax.vmap
    def held(seed):
        key, state = jax.random.key(seed), method.init(KEY, PARAMS, examples([0]))
        for task in range(4):
            part = examples(range(8 * task, 8 * task + 8))
            state = finished(method, state, task, part, key=jax.random.fold_in(key, task))
        return state

    state = jax.jit(held)(jnp.arange(2000))
    assert state.buffers.seen.tolist() == [[12]] * 2000 and bool(state.buffers.occupied.all())
    numbers = np.round(np.asarray(state.buffers.items.x[:, 0, :, 4]) * 40).astype(int)
    assert all(len(set(row)) == 6 for row in numbers)
    # Of each task half of its three on average; tasks compete for slots, examples of one task likewise.
    counts = np.bincount(numbers.ravel(), minlength=32)
    np.testing.assert_allclose(counts, 2000 * 6 / 32, atol=5 * np.sqrt(2000 * 6 / 32))


def test_the_reference_batch_is_drawn_without_replacement():
    method = compiled(episodic_memory(3, 30))  # 10 slots a task
    state = method.init(KEY, PARAMS, examples([0]))
    for task, numbers in enumerate((range(7), range(10, 15))):  # unfilled slots in between
        state = finished(method, stepped(method, state, examples(numbers)), task, examples([0]))
    state = stepped(method, state, examples(range(20, 24)))
    draw = jax.jit(jax.vmap(lambda key: sample_past(key, state, 20)))
    items, valid = draw(jax.random.split(KEY, 900))
    numbers = np.round(np.asarray(items.x[..., 4]) * 40).astype(int)
    stored = np.r_[0:7, 10:15]
    assert (np.asarray(valid) == (np.arange(20) < 12)).all()
    assert (np.sort(numbers[:, :12], axis=1) == stored).all()
    counts = np.bincount(numbers[:, :4].ravel(), minlength=24)  # the first four are a sample too
    assert counts.sum() == counts[stored].sum()
    factor = (1 - 4 / 12) * 12 / 11
    assert np.sum((counts[stored] - 300) ** 2) / (300 * factor) < chi2.ppf(1 - 1e-4, 11)


def test_references_are_kept_and_rendered():
    data = examples(range(40))

    def render(reference):
        return data._replace(x=data.x[reference.row], y=data.y[reference.row], reference=reference)

    def seen(rows):
        return render(Reference(jnp.asarray(rows, jnp.int32), jnp.zeros(len(rows), jnp.int32)))

    method = compiled(agem(MODEL, 2, 8, store=lambda batch: batch.reference, load=render, insert="boundary"))
    state = method.init(KEY, PARAMS, seen([0]))
    state = finished(method, state, 0, seen([5, 9]).reference, jnp.ones(2, bool))
    r = gradient(PARAMS, examples([5, 9]))
    found = method.gradients(KEY, state, tree_of(-r), PARAMS, seen([1]))
    assert np.abs(flat(found)).max() < 1e-6 < np.abs(r).max()


def test_what_waits_for_a_boundary():
    assert [Agem(insert=insert).waits_for_boundary for insert in ("step", "boundary", "shared")] == [False, True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch_size=0), "batch_size 0"),
        (dict(insert="setp"), "unknown memory insertion 'setp'.*Did you mean 'step'"),
        (dict(policy="rnig"), "unknown buffer policy 'rnig'.*Did you mean 'ring'"),
        (dict(capacity=3), "capacity 3 for 4 tasks leaves a task without a slot.*at least 4"),
        (dict(policy="class_ring"), "'class_ring' with num_classes=None"),
        (dict(capacity=8, policy="class_ring", num_classes=3), "capacity 2 for 3 classes"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments, message):
    with pytest.raises(UserError, match=message):
        agem(MODEL, 4, **{"capacity": 20, **arguments})

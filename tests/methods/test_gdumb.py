"""GDumb: the sampler against the paper's rule, draw by draw, and the training at a boundary against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch, Reference, whole_task
from cl_jax.errors import UserError
from cl_jax.method import Method, StepInfo
from cl_jax.methods.gdumb import Memory, empty_memory, gdumb, greedy_insert
from cl_jax.model import Model

KEY = jax.random.key(0)
NEW = {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "bias": jnp.zeros(3)}  # what every new model starts from
MODEL = Model(
    init=lambda key, x: NEW,
    apply=lambda params, x: x @ params["kernel"] + params["bias"][None, :],
)
insert = jax.jit(greedy_insert)


def numbered(first: int, num: int) -> jax.Array:
    return jnp.arange(first, first + num, dtype=jnp.int32)


def labels(values) -> jax.Array:
    return jnp.asarray(values, jnp.int32)


def check_books(memory: Memory) -> None:
    """Slots fill from the first, counts count, and the items of a class are numbered without gaps."""
    label, place, count = (np.asarray(part) for part in (memory.label, memory.place, memory.stored))
    assert (label[: count.sum()] >= 0).all() and (label[count.sum() :] == -1).all()
    for c, num in enumerate(count):
        assert sorted(place[label == c].tolist()) == list(range(num))


def test_each_item_is_taken_or_left_by_the_papers_rule():
    """Algorithm 1 on a stream whose classes come and go; which of those allowed leaves is left to chance."""
    stream = np.random.default_rng(0).choice(5, 150, p=[0.5, 0.3, 0.1, 0.05, 0.05])
    stream[:60] = np.where(stream[:60] > 2, 0, stream[:60])  # two classes come late
    capacity, met = 11, set()
    memory = empty_memory(numbered(0, 1), capacity, 5)
    for i, y in enumerate(stream):
        before, memory = memory, insert(jax.random.fold_in(KEY, i), memory, numbered(i, 1), labels([y]))
        check_books(memory)
        held = [int(c) for c in before.label if c >= 0]
        changed = np.flatnonzero(np.asarray(memory.items != before.items) | np.asarray(memory.label != before.label))
        if y in met and not held.count(y) < capacity / len(met):
            assert len(changed) == 0
        elif len(held) < capacity:
            assert changed.tolist() == [len(held)]
        else:
            (slot,) = changed
            left = int(before.label[slot])
            assert held.count(left) == max(map(held.count, range(5)))
        if len(changed):
            assert int(memory.items[changed[0]]) == i and int(memory.label[changed[0]]) == y
        met.add(y)
        assert set(np.flatnonzero(memory.met)) == met
    assert len(met) == 5


@pytest.mark.parametrize("order", ["mixed", "sorted"])
@pytest.mark.parametrize("capacity", [12, 14])
def test_the_memory_ends_up_balanced(order, capacity):
    """Counts differ by one at most, whatever came when: K / C each where C divides K."""
    stream = np.repeat(np.arange(4), 40)
    stream = np.random.default_rng(1).permutation(stream) if order == "mixed" else stream
    memory = empty_memory(numbered(0, 1), capacity, 4)
    for i in range(0, 160, 20):
        memory = insert(jax.random.fold_in(KEY, i), memory, numbered(i, 20), labels(stream[i : i + 20]))
    check_books(memory)
    count = np.asarray(memory.stored)
    assert count.sum() == capacity and count.max() - count.min() == (1 if capacity % 4 else 0)
    held = np.asarray(memory.items)
    assert len(set(held)) == capacity
    np.testing.assert_array_equal(stream[held], memory.label)


def test_few_of_a_class_are_all_kept():
    memory = insert(KEY, empty_memory(numbered(0, 1), 10, 3), numbered(0, 33), labels([0] * 30 + [1] * 3))
    assert memory.stored.tolist() == [7, 3, 0]
    assert {30, 31, 32} <= set(memory.items.tolist())


def test_who_leaves_is_uniform_within_the_largest_class_and_among_the_largest_classes():
    memory = insert(KEY, empty_memory(numbered(0, 1), 7, 4), numbered(0, 7), labels([0, 1, 1, 0, 2, 1, 0]))
    assert memory.stored.tolist() == [3, 3, 1, 0]
    many = jax.jit(jax.vmap(greedy_insert, in_axes=(0, None, None, None)))
    after = many(jax.random.split(KEY, 6000), memory, numbered(7, 1), labels([3]))
    slot, times = np.unique(np.argmax(np.asarray(after.items) == 7, axis=1), return_counts=True)
    assert slot.tolist() == [0, 1, 2, 3, 5, 6]
    assert np.sum((times - 1000) ** 2 / 1000) < 20.5  # chi-squared of 5 degrees of freedom, 1 in 1000


def test_labels_outside_are_not_taken():
    memory = insert(KEY, empty_memory(numbered(0, 1), 4, 3), numbered(0, 5), labels([-1, 3, 1, 7, -3]))
    assert memory.items[:1].tolist() == [2] and memory.stored.tolist() == [0, 1, 0]
    assert memory.met.tolist() == [False, True, False]


def batch_of(num: int) -> Batch:
    generator = np.random.default_rng(2)
    x = jnp.asarray(generator.normal(size=(num, 4)), jnp.float32)
    active = jnp.broadcast_to(jnp.array([True, True, False]), (num, 3))
    return Batch(x, jnp.asarray(generator.integers(0, 2, num), jnp.int32), active)


def info_of(batch: Batch) -> StepInfo:
    nothing = jax.tree.map(jnp.zeros_like, NEW)
    return StepInfo(batch, batch, nothing, nothing, nothing, jnp.zeros((batch.y.shape[0], 3)))


def trained_by_hand(x, y, active, steps, rate, final, momentum, weight_decay, clip) -> dict[str, np.ndarray]:
    theta = {name: np.asarray(leaf, np.float64) for name, leaf in NEW.items()}
    m = {name: np.zeros_like(leaf) for name, leaf in theta.items()}
    for s in range(steps):
        z = np.where(active, x @ theta["kernel"] + theta["bias"], -np.inf)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        error = (p / p.sum(axis=1, keepdims=True) - np.eye(3)[y]) / len(y)
        g = {"kernel": x.T @ error, "bias": error.sum(axis=0)}
        norm = np.sqrt(sum((leaf**2).sum() for leaf in g.values()))
        now = rate * (final + (1 - final) * (1 + np.cos(np.pi * s / steps)) / 2)
        for name in theta:
            m[name] = momentum * m[name] + g[name] * min(1, clip / norm) + weight_decay * theta[name]
            theta[name] = theta[name] - now * m[name]
    return theta


@pytest.mark.parametrize("clip", [10.0, 0.1])
def test_the_training_at_a_boundary_by_hand(clip):
    """Each batch is the whole memory, so that the order does not matter."""
    numbers = dict(final=0.1, momentum=0.8, weight_decay=0.05, clip=clip)
    method = gdumb(MODEL, 50, num_steps=6, batch_size=8, learning_rate=0.5, **numbers)
    method, batch, params = Method(*map(jax.jit, method)), batch_of(8), jax.tree.map(lambda leaf: leaf + 1.0, NEW)
    state = method.after_step(KEY, method.init(KEY, params, batch), info_of(batch))
    jax.tree.map(np.testing.assert_array_equal, method.evaluated(state, params), params)  # before any boundary
    state = method.end_task(KEY, state, params, whole_task(0, batch))
    shown = method.evaluated(state, params)
    x, y, active = (np.asarray(part) for part in batch[:3])
    expected = trained_by_hand(x.astype(np.float64), y, active, 6, 0.5, **numbers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), shown, expected)


def test_a_boundary_trains_on_every_stored_example_and_on_no_other():
    """One epoch, batches of one: a kernel of zeros has moved exactly where some stored input is not zero."""
    start = {"kernel": jnp.zeros((30, 3)), "bias": jnp.zeros(3)}
    model = MODEL._replace(init=lambda key, x: start)
    x, y = jnp.eye(30), jnp.arange(30, dtype=jnp.int32) % 3
    method = gdumb(model, 7, num_steps=7, batch_size=1, weight_decay=0.0)
    method = Method(*map(jax.jit, method))
    state = method.init(KEY, start, Batch(x, y))
    for i in range(0, 30, 10):
        part = Batch(x[i : i + 10], y[i : i + 10])
        state = method.after_step(jax.random.fold_in(KEY, i), state, info_of(part))
    state = method.end_task(KEY, state, start, whole_task(0, Batch(x, y)))
    moved = np.flatnonzero(np.asarray(state.trained["kernel"]).any(axis=1))
    assert sorted(np.argmax(state.memory.items.x, axis=1).tolist()) == moved.tolist() and len(moved) == 7


def test_what_trains_in_the_stream_is_left_alone():
    method, plain = gdumb(MODEL, 5, num_steps=2), Method()
    for slot in ("draw", "loss", "penalty", "gradients", "proximal", "rewrite", "restart"):
        assert getattr(method, slot) is getattr(plain, slot)


def test_references_are_kept_and_rendered():
    data = batch_of(20)

    def render(reference: Reference) -> Batch:
        return Batch(data.x[reference.row], data.y[reference.row], reference=reference)

    method = gdumb(MODEL, 6, num_steps=3, store=lambda batch: batch.reference, load=render)
    method = Method(*map(jax.jit, method))
    incoming = render(Reference(numbered(4, 10), jnp.zeros(10, jnp.int32)))
    state = method.after_step(KEY, method.init(KEY, NEW, incoming), info_of(incoming))
    assert set(state.memory.items.row.tolist()) <= set(range(4, 14))
    np.testing.assert_array_equal(state.memory.label, data.y[state.memory.items.row])
    state = method.end_task(KEY, state, NEW, whole_task(0, incoming))
    assert bool(state.present) and (state.trained["kernel"] != NEW["kernel"]).any()


@pytest.mark.parametrize("name", ["capacity", "num_steps", "batch_size"])
def test_mistakes_are_told_before_anything_runs(name):
    with pytest.raises(UserError, match=f"gdumb {name} 0"):
        gdumb(**{"model": MODEL, "capacity": 5, "num_steps": 3, "batch_size": 2, name: 0})

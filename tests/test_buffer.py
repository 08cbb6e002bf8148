"""Buffers against a one-by-one NumPy reference, against chi-squared bounds, and under jit, vmap and scan."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from cl_jax import buffer as buffers
from cl_jax.batch import Reference
from cl_jax.errors import UserError

KEY = jax.random.key(0)
# One compilation a shape instead of one an operation.
insert = jax.jit(buffers.insert, static_argnames="policy")
sample = jax.jit(buffers.sample, static_argnames="num")
reservoir_draws = jax.jit(buffers.reservoir_draws, static_argnames="num_regions")
# The keys are fixed, so a test passes or fails for good; a right implementation had a chance of 1e-4 to fail.
CHI_SQUARED_QUANTILE = 1 - 1e-4


def numbered(start: int, stop: int) -> Reference:
    """Items that say where in the stream they came."""
    index = np.arange(start, stop, dtype=np.int32)
    return Reference(jnp.asarray(index), jnp.asarray(100 + index))


def one_by_one(key, policy, capacity, num_classes, items, valid, classes):
    """Algorithm R and FIFO as a book states them, on Python lists; returns slots (None: empty) and counts."""
    num_regions = num_classes if policy in buffers.BY_CLASS else 1
    quota = capacity // num_regions
    slots, seen = [None] * capacity, [0] * num_regions
    for item, is_valid, label in zip(items, valid, classes, strict=True):
        region = int(label) if policy in buffers.BY_CLASS else 0
        if not is_valid or not 0 <= region < num_regions:
            continue
        n = seen[region]
        seen[region] += 1
        if policy in ("ring", "class_ring"):
            offset = n % quota
        elif n < quota:
            offset = n
        else:
            draw = reservoir_draws(key, np.full(1, n), np.full(1, region), num_regions)
            offset = int(draw[0])
            assert 0 <= offset <= n
        if offset < quota:
            slots[region * quota + offset] = int(item)
    return slots, seen


def as_lists(buffer):
    """Slots (None: empty) and counts of a buffer of `numbered` items."""
    np.testing.assert_array_equal(buffer.items.task, np.where(buffer.occupied, 100 + buffer.items.row, 0))
    slots = [int(i) if full else None for i, full in zip(buffer.items.row, buffer.occupied, strict=True)]
    return slots, np.atleast_1d(buffer.seen).tolist()


@pytest.mark.parametrize("policy", buffers.POLICIES)
@pytest.mark.parametrize(("capacity", "sizes"), [(7, (4, 1, 30)), (1, (1, 4)), (10, (4, 4))])
def test_insert_equals_one_by_one(policy, capacity, sizes):
    num_classes = min(3, capacity)
    total = sum(sizes)
    rng = np.random.default_rng(capacity)
    valid = jnp.asarray(rng.random(total) < 0.8)
    classes = jnp.asarray(rng.integers(-1, num_classes + 1, total), jnp.int32)  # some out of range: not valid
    buffer = buffers.init(numbered(0, 1), capacity, policy, num_classes)
    single = buffer
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        buffer = insert(KEY, buffer, numbered(start, start + size), policy, valid[rows], classes[rows])
        start += size
    for i in range(total):
        single = insert(KEY, single, numbered(i, i + 1), policy, valid[i : i + 1], classes[i : i + 1])
    assert as_lists(buffer) == one_by_one(KEY, policy, capacity, num_classes, range(total), valid, classes)
    chex.assert_trees_all_equal(buffer, single)


@pytest.mark.parametrize("batch", [1, 24])
def test_reservoir_keeps_every_item_equally_often(batch):
    capacity, total, runs = 5, 24, 8000

    def run(key):
        buffer = buffers.init(numbered(0, 1), capacity, "reservoir")
        for i, start in enumerate(range(0, total, batch)):
            step_key = jax.random.fold_in(key, i)
            buffer = insert(step_key, buffer, numbered(start, start + batch), "reservoir")
        return buffer.items.row

    kept = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(KEY, runs)))
    assert all(len(set(row)) == capacity for row in kept[:100])
    counts, rate = np.bincount(kept.ravel(), minlength=total), capacity / total
    # `capacity` of `total` without replacement: the counts' covariance is that of a multinomial times this factor.
    factor = (1 - rate) * total / (total - 1)
    statistic = np.sum((counts - runs * rate) ** 2) / (runs * rate * factor)
    assert statistic < chi2.ppf(CHI_SQUARED_QUANTILE, total - 1)
    # The first, the first that has to replace another, and the last: each alone within 4 standard deviations.
    spread = 4 * np.sqrt(runs * rate * (1 - rate))
    np.testing.assert_allclose(counts[[0, capacity, total - 1]], runs * rate, atol=spread)


def test_reservoir_draws_are_uniform_up_to_and_including_the_position():
    runs, positions = 4000, jnp.arange(12)
    keys = jax.random.split(KEY, runs)
    draws = np.asarray(jax.vmap(lambda key: buffers.reservoir_draws(key, positions, positions * 0, 1))(keys))
    for n in range(1, 12):
        expected = runs / (n + 1)
        counts = np.bincount(draws[:, n], minlength=n + 1)
        assert counts.shape == (n + 1,)
        assert np.sum((counts - expected) ** 2) / expected < chi2.ppf(CHI_SQUARED_QUANTILE, n)
    assert not draws[:, 0].any()


def test_reservoir_draws_differ_between_regions_and_positions():
    position, region = jnp.full(100, 2**30), jnp.arange(100)
    assert len(np.unique(buffers.reservoir_draws(KEY, position, region, 100))) == 100
    assert len(np.unique(buffers.reservoir_draws(KEY, position + region, region * 0, 1))) == 100


def test_ring_keeps_the_last_items():
    buffer = buffers.init(numbered(0, 1), 8, "ring")
    for start, stop in [(0, 5), (5, 30), (30, 31)]:
        buffer = insert(KEY, buffer, numbered(start, stop), "ring")
        assert sorted(np.asarray(buffer.items.row[buffer.occupied])) == list(range(max(0, stop - 8), stop))
    assert int(buffer.seen) == 31


def test_class_balanced_quotas():
    capacity, num_classes, quota = 11, 3, 3
    buffer = buffers.init(numbered(0, 1), capacity, "class_balanced", num_classes)
    classes = jnp.array([0] * 50 + [2] * 2, jnp.int32)
    buffer = insert(KEY, buffer, numbered(0, 52), "class_balanced", classes=classes)
    chex.assert_trees_all_equal(np.asarray(buffer.occupied), np.array([1] * 3 + [0] * 3 + [1, 1, 0] + [0, 0], bool))
    assert buffer.items.row[6:8].tolist() == [50, 51]
    assert (buffer.items.row[:quota] < 50).all()
    assert buffer.seen.tolist() == [50, 0, 2]
    items, valid = sample(KEY, buffer, 4000)
    assert valid.all()
    drawn, counts = np.unique(items.row, return_counts=True)
    assert drawn.tolist() == sorted(buffer.items.row[np.array([0, 1, 2, 6, 7])].tolist())
    assert np.sum((counts - 800) ** 2) / 800 < chi2.ppf(CHI_SQUARED_QUANTILE, 4)


@pytest.mark.parametrize("policy", buffers.POLICIES)
def test_unfilled_slots_are_never_returned(policy):
    buffer = buffers.init(numbered(0, 1), 50, policy, 5)
    classes = jnp.array([4, 1, 3], jnp.int32)
    items, valid = sample(KEY, buffer, 64)
    assert not valid.any()
    assert not items.row.any()
    for count in range(1, 4):
        buffer = insert(KEY, buffer, numbered(6 + count, 7 + count), policy, classes=classes[count - 1 : count])
        items, valid = sample(KEY, buffer, 256)
        assert valid.all()
        assert set(items.row.tolist()) == set(range(7, 7 + count))


def test_invalid_items_are_neither_stored_nor_counted():
    buffer = buffers.init(numbered(0, 1), 4, "reservoir")
    valid = jnp.array([False, True, True, False, True, False])
    buffer = insert(KEY, buffer, numbered(0, 6), "reservoir", valid)
    assert as_lists(buffer) == ([1, 2, 4, None], [3])
    same = insert(KEY, buffer, numbered(6, 9), "reservoir", jnp.zeros(3, bool))
    chex.assert_trees_all_equal(buffer, same)


@pytest.mark.parametrize("policy", buffers.POLICIES)
def test_restored_buffer_goes_on_where_it_was(policy):
    classes = jnp.arange(20, dtype=jnp.int32) % 2
    buffer = buffers.init(numbered(0, 1), 4, policy, 2)
    buffer = insert(KEY, buffer, numbered(0, 20), policy, classes=classes)
    restored = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), buffer)
    assert int(restored.seen.sum()) == 20
    more = [insert(KEY, b, numbered(20, 40), policy, classes=classes) for b in (buffer, restored)]
    chex.assert_trees_all_equal(*more)
    chex.assert_trees_all_equal_shapes_and_dtypes(buffer, more[0])


@pytest.mark.parametrize("policy", buffers.POLICIES)
def test_vmapped_scan_equals_a_loop(policy):
    def step(buffer, key, start):
        key_insert, key_sample = jax.random.split(key)
        drawn = sample(key_sample, buffer, 3)
        index = start + jnp.arange(4, dtype=jnp.int32)
        items = Reference(index, 100 + index)
        return insert(key_insert, buffer, items, policy, classes=index % 2), drawn

    def run(key):
        buffer = buffers.init(numbered(0, 1), 6, policy, 2)
        keys, starts = jax.random.split(key, 5), jnp.arange(0, 20, 4, dtype=jnp.int32)
        return jax.lax.scan(lambda carry, xs: step(carry, *xs), buffer, (keys, starts))

    keys = jax.random.split(KEY, 3)
    batched = jax.jit(jax.vmap(run))(keys)
    one_step = jax.jit(step)
    for member in range(3):
        buffer = buffers.init(numbered(0, 1), 6, policy, 2)
        for i, key in enumerate(jax.random.split(keys[member], 5)):
            buffer, drawn = one_step(buffer, key, jnp.int32(4 * i))
            chex.assert_trees_all_equal(drawn, jax.tree.map(lambda leaf, m=member, i=i: leaf[m, i], batched[1]))
        chex.assert_trees_all_equal(buffer, jax.tree.map(lambda leaf, m=member: leaf[m], batched[0]))


@pytest.mark.parametrize("policy", buffers.POLICIES)
def test_no_key_is_used_twice(policy):
    with jax.debug_key_reuse(True):
        buffer = buffers.init(numbered(0, 1), 4, policy, 2)
        key_insert, key_sample = jax.random.split(jax.random.key(1))
        insert(key_insert, buffer, numbered(0, 9), policy, classes=jnp.arange(9, dtype=jnp.int32) % 2)
        sample(key_sample, buffer, 5)


def test_items_keep_shape_and_dtype():
    items = {"x": jnp.full((3, 2, 2), 7, jnp.uint8), "mask": (jnp.ones((3, 4), bool), jnp.full(3, 0.5, jnp.bfloat16))}
    buffer = buffers.init(jax.eval_shape(lambda: items), 5, "reservoir")
    buffer = insert(KEY, buffer, items, "reservoir")
    drawn, _ = sample(KEY, buffer, 3)
    chex.assert_trees_all_equal(drawn, items)
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, items)


@pytest.mark.parametrize("members", [None, 3])
def test_a_step_writes_in_place(members):
    """Reading, training on and writing one buffer must not copy it: the step's scratch memory stays far smaller."""

    def step(buffer, weights, key):
        items, _ = sample(key, buffer, 8)
        gradient = jax.grad(lambda w: jnp.sum((items @ w) ** 2))(weights)
        new = jnp.ones((8, 64))
        return insert(key, buffers.after(buffer, gradient), new, "reservoir"), weights - gradient

    args = buffers.init(jnp.zeros((1, 64)), 5000, "reservoir"), jnp.ones(64), KEY
    if members is not None:
        args = jax.tree.map(lambda leaf: jnp.stack([leaf] * members), args)
        step = jax.vmap(step)
    analysis = jax.jit(step, donate_argnums=(0, 1)).lower(*args).compile().memory_analysis()
    if analysis is None:
        pytest.skip("this backend does not say how much memory a program needs")
    assert analysis.temp_size_in_bytes < args[0].items.nbytes / 4


def test_after_changes_nothing():
    buffer = insert(KEY, buffers.init(numbered(0, 1), 4, "ring"), numbered(0, 3), "ring")
    for value in (0.0, -1.0, jnp.nan, jnp.inf):
        chex.assert_trees_all_equal(buffers.after(buffer, {"w": jnp.full((2, 2), value)}), buffer)


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"unknown buffer policy 'resevoir'.*Did you mean 'reservoir'"):
        buffers.init(numbered(0, 1), 4, "resevoir")
    with pytest.raises(UserError, match="capacity 0"):
        buffers.init(numbered(0, 1), 0, "ring")
    with pytest.raises(UserError, match="num_classes=None"):
        buffers.init(numbered(0, 1), 4, "class_balanced")
    with pytest.raises(UserError, match=r"capacity 4 for 5 classes.*at least 5"):
        buffers.init(numbered(0, 1), 4, "class_balanced", 5)
    buffer = buffers.init(numbered(0, 1), 4, "class_balanced", 2)
    with pytest.raises(UserError, match="needs `classes`"):
        buffers.insert(KEY, buffer, numbered(0, 3), "class_balanced")
    with pytest.raises(UserError, match="'ring' on a buffer made for 'class_balanced'"):
        buffers.insert(KEY, buffer, numbered(0, 3), "ring")
    with pytest.raises(UserError, match="unknown buffer policy"):
        buffers.insert(KEY, buffer, numbered(0, 3), "fifo")
    with pytest.raises(UserError, match=r"float32\[3\].*do not match the stored.*float32\[2\]"):
        buffers.insert(KEY, buffers.init(jnp.zeros((1, 2)), 4, "ring"), jnp.zeros((5, 3)), "ring")


@pytest.mark.parametrize("policy", buffers.POLICIES)
def test_distinct_draws_are_distinct_and_uniform(policy):
    """Every subset of the occupied slots: each slot equally often, at each place of the draw."""
    buffer = insert(KEY, buffers.init(numbered(0, 1), 9, policy, 3), numbered(0, 5), policy, None, jnp.arange(5) % 3)
    draw = jax.jit(lambda key: buffers.sample_distinct(key, buffer, 3))
    items, valid = jax.vmap(draw)(jax.random.split(KEY, 1000))
    rows = np.asarray(items.row)
    assert valid.all() and all(len(set(row)) == 3 for row in rows.tolist())
    for place in range(3):
        counts = np.bincount(rows[:, place], minlength=5)
        assert counts.shape == (5,)
        assert ((counts - 200) ** 2 / 200).sum() < chi2.ppf(CHI_SQUARED_QUANTILE, 4)


@pytest.mark.parametrize("stored", [0, 1, 4])
def test_more_distinct_draws_than_items(stored):
    buffer = buffers.init(numbered(0, 1), 6, "reservoir")
    if stored:
        buffer = insert(KEY, buffer, numbered(1, 1 + stored), "reservoir")
    items, valid = buffers.sample_distinct(KEY, buffer, 8)
    assert valid.tolist() == [True] * stored + [False] * (8 - stored)
    assert sorted(items.row[:stored].tolist()) == list(range(1, 1 + stored))
    assert set(items.row[stored:].tolist()) <= set(range(1, 1 + stored)) | ({0} if stored == 0 else set())

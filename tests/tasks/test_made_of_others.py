"""Streams made of another one: repeated tasks, unequal tasks, noisy labels; and class orders of their own seed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Reference
from cl_jax.data import SPLITS, split_source
from cl_jax.sources import Source
from cl_jax.tasks import NoisyLabels, Permuted, Repeated, Split, Unequal
from cl_jax.tasks.render import active_outputs, labels_of, old_outputs
from cl_jax.tasks.stream import Curriculum, View, largest_task, make_curriculum, smallest_task
from tests.test_tasks import data, rows_of, shown

ORDER = (2, 0, 2, 1)
BASES = {"permuted": Permuted(num_tasks=3), "split": Split(num_tasks=3)}


@functools.cache
def drawing(config: Any) -> Any:
    made = data()
    return jax.jit(lambda key: make_curriculum(key, config.build(made), made))


def curriculum_of(config: Any, seed: int = 0) -> Curriculum:
    return drawing(config)(jax.random.key(seed))


@functools.cache
def labelling(config: Any, scenario: str) -> Any:
    made = data()
    view = View(config.build(made), scenario)
    rows = jnp.arange(sum(made.sizes), dtype=jnp.int32)
    return jax.jit(lambda tables, task: labels_of(view, tables, Reference(rows, jnp.full_like(rows, task)), made))


def labels(config: Any, scenario: str, task: int, rows: np.ndarray) -> np.ndarray:
    """What the rows are taken for in a task, by seed 0."""
    return np.asarray(labelling(config, scenario)(curriculum_of(config).tables, jnp.int32(task)))[rows]


@pytest.mark.parametrize("name", BASES)
def test_a_repeated_task_is_the_task_it_repeats(name: str) -> None:
    config = Repeated(stream=BASES[name], order=ORDER)
    base, stream = BASES[name].build(data()), config.build(data())
    alone, repeated = curriculum_of(BASES[name]), curriculum_of(config)
    assert stream.num_tasks == config.num_tasks == 4
    for place, task in enumerate(ORDER):
        for split in SPLITS:
            rows = rows_of(alone.segments[split], task)
            np.testing.assert_array_equal(rows_of(repeated.segments[split], place), rows)
        np.testing.assert_array_equal(shown(stream, repeated, place, 5), shown(base, alone, task, 5))
        expected = labels(BASES[name], "domain", task, rows)
        np.testing.assert_array_equal(labels(config, "domain", place, rows), expected)


@pytest.mark.parametrize("name", BASES)
def test_a_repeated_task_trains_the_outputs_of_its_first_visit(name: str) -> None:
    """Places 0 to 3 show tasks 2, 0, 2, 1; their outputs are numbered as they come: 0, 1, 0, 2."""
    base = BASES[name].build(data())
    config, k = Repeated(stream=BASES[name], order=ORDER), base.classes_per_task
    stream, curriculum, heads = config.build(data()), curriculum_of(config), [0, 1, 0, 2]
    view = View(stream, "class")
    assert view.num_outputs == 3 * k and View(stream, "domain").num_outputs == k
    for place, head in enumerate(heads):
        rows = rows_of(curriculum.segments["train"], place)
        within = labels(config, "domain", place, rows)
        np.testing.assert_array_equal(labels(config, "class", place, rows), head * k + within)
    owner, places = np.repeat(np.arange(3), k), jnp.arange(4, dtype=jnp.int32)
    for present, seen in enumerate([[0], [0, 1], [0, 1], [0, 1, 2]]):
        before = [[], [0], [0, 1], [0, 1]][present]
        np.testing.assert_array_equal(old_outputs(view, jnp.int32(present)), np.isin(owner, before))
        of_seen, of_own = np.isin(owner, seen), owner[None] == np.array(heads)[:, None]
        found = active_outputs(view, places, jnp.int32(present), "seen")
        np.testing.assert_array_equal(found, np.broadcast_to(of_seen, found.shape))
        present_task = np.array(heads)[:, None] == heads[present]
        found = active_outputs(view, places, jnp.int32(present), "current")
        np.testing.assert_array_equal(found, np.where(present_task, of_own, of_seen))
        by_task = active_outputs(view._replace(scenario="task"), places, jnp.int32(0), "seen")
        np.testing.assert_array_equal(by_task, of_own)


def test_a_repetition_of_a_repetition() -> None:
    config = Repeated(stream=Repeated(stream=Split(num_tasks=3), order=(2, 1)), order=(1, 0, 1))
    assert config.build(data()).schedule == (1, 2, 1)
    base, repeated = (curriculum_of(one).segments["train"] for one in (Split(num_tasks=3), config))
    for place, task in enumerate((1, 2, 1)):
        np.testing.assert_array_equal(rows_of(repeated, place), rows_of(base, task))


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("order", ["falling", "rising", "random"])
def test_unequal_tasks_keep_their_shares(name: str, order: str) -> None:
    orders = set()
    config = Unequal(stream=BASES[name], ratio=0.25, order=order)
    stream = config.build(data())
    for seed in range(5):
        base = curriculum_of(BASES[name], seed)
        unequal, shares = curriculum_of(config, seed), np.array([1.0, 0.5, 0.25])
        whole = np.asarray(base.segments["train"].size)
        allowed = {"falling": [shares], "rising": [shares[::-1]]}.get(order)
        if allowed is None:
            allowed = [shares[list(p)] for p in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))]
        sizes = np.asarray(unequal.segments["train"].size)
        assert sizes.tolist() in [np.round(share * whole).tolist() for share in allowed]
        orders.add(tuple(np.argsort(sizes / whole).tolist()))
        for task in range(3):
            rows = rows_of(unequal.segments["train"], task)
            assert set(rows.tolist()) <= set(rows_of(base.segments["train"], task).tolist())
            assert smallest_task(stream, data(), "train") <= len(rows) <= largest_task(stream, data(), "train")
        for split in ("validation", "test"):
            jax.tree.map(np.testing.assert_array_equal, unequal.segments[split], base.segments[split])
        np.testing.assert_array_equal(shown(stream, unequal, 1, 3), shown(BASES[name].build(data()), base, 1, 3))
    assert len(orders) == 1 if order != "random" else len(orders) > 1


def test_shares_of_a_repeated_stream_and_of_what_is_repeated() -> None:
    equal = np.asarray(curriculum_of(Permuted(num_tasks=2)).segments["train"].size)[0]

    def sizes(stream: Any) -> list[int]:
        return np.asarray(curriculum_of(stream).segments["train"].size).tolist()

    unequal = Unequal(stream=Permuted(num_tasks=2), ratio=0.5)
    assert sizes(Repeated(stream=unequal, order=(1, 0, 1))) == [round(equal * share) for share in (0.5, 1, 0.5)]
    repeated = Unequal(stream=Repeated(stream=Permuted(num_tasks=2), order=(0, 1, 0)), ratio=0.25)
    assert sizes(repeated) == [round(equal * share) for share in (1, 0.5, 0.25)]
    assert sizes(Unequal(stream=unequal, ratio=0.5)) == [round(equal * share) for share in (1, 0.25)]
    assert repeated.build(data()).least_share == 0.25 and repeated.num_tasks == 3


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_exactly_a_share_of_the_training_labels_is_wrong(name: str, scenario: str) -> None:
    k, train, wrong = BASES[name].build(data()).classes_per_task, data().sizes[0], {}
    for share in (0.1, 0.25):
        config = NoisyLabels(stream=BASES[name], share=share)
        for task in range(3):
            rows = np.concatenate([rows_of(curriculum_of(BASES[name]).segments[split], task) for split in SPLITS])
            true, given = (labels(one, scenario, task, rows) for one in (BASES[name], config))
            assert (given // k == true // k).all() and (rows[given != true] < train).all()
            for row in rows[given != true]:
                wrong.setdefault((share, int(row)), set()).add(int(given[rows == row][0]) % k)
    found = {share: {row for other, row in wrong if other == share} for share in (0.1, 0.25)}
    assert all(len(labels) == 1 for labels in wrong.values())  # in every task the same
    assert found[0.1] < found[0.25] and all(wrong[0.1, row] == wrong[0.25, row] for row in found[0.1])
    if name == "permuted":
        assert [len(found[share]) for share in (0.1, 0.25)] == [round(0.1 * train), round(0.25 * train)]


def test_wrong_labels_are_uniform_over_the_others_and_the_seeds_own() -> None:
    """Chi-squared over the 6 wrong labels of 3500 rows; 20.5 is the 99.9 % quantile at 5 degrees."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 7, 10_000).astype(np.int32)
    source = Source("one pixel", np.zeros((10_000, 1, 1, 1), np.uint8), truth, None, None, num_classes=7, pixel_max=1)
    made = split_source(source, validation=0.125)  # 7000 training rows
    stream, found = NoisyLabels(stream=Permuted(num_tasks=1), share=0.5).build(made), []
    rows, no_task = jnp.arange(7000, dtype=jnp.int32), jnp.zeros(7000, jnp.int32)

    @jax.jit
    def given(seed: jax.Array) -> jax.Array:
        tables = stream.tables(jax.random.key(seed), made)
        return labels_of(View(stream, "domain"), tables, Reference(rows, no_task), made)

    for seed in (0, 1):
        shift = (np.asarray(given(jnp.int32(seed))) - np.asarray(made.labels[:7000])) % 7
        counts = np.bincount(shift, minlength=7)
        assert counts[0] == 3500
        assert ((counts[1:] - 3500 / 6) ** 2 / (3500 / 6)).sum() < 20.5
        found.append(shift)
    assert 0.2 < ((found[0] > 0) == (found[1] > 0)).mean() < 0.8


def test_further_tables_leave_the_streams_own_alone() -> None:
    """Everything of the other stream is what it is alone, images too."""
    for config in (Permuted(num_tasks=3), Split(num_tasks=3)):
        made = NoisyLabels(stream=Unequal(stream=config, order="random"), share=0.0)
        one, other = curriculum_of(config), curriculum_of(made)
        jax.tree.map(np.testing.assert_array_equal, one.tables, other.tables[0][0])
        np.testing.assert_array_equal(shown(made.build(data()), other, 2, 5), shown(config.build(data()), one, 2, 5))
        rows = rows_of(one.segments["train"], 2)
        np.testing.assert_array_equal(labels(made, "class", 2, rows), labels(config, "class", 2, rows))
        jax.tree.map(np.asarray, other.tables)  # they go to the host, which a typed key cannot


def test_a_class_order_of_its_own_seed() -> None:
    orders = {
        (own, seed): tuple(np.asarray(curriculum_of(Split(num_tasks=3, class_seed=own), seed).tables))
        for own in (None, 0, 1)
        for seed in range(3)
    }
    for own in (0, 1):
        assert len({orders[own, seed] for seed in range(3)}) == 1
        assert sorted(orders[own, 0]) == list(range(7))
    assert len(set(orders.values())) == 5  # three of the runs' seeds, two of their own


def test_derived_permutations_need_no_tables() -> None:
    sizes = set()
    for num_tasks in (4, 500):
        curriculum = curriculum_of(Permuted(num_tasks=num_tasks, permutations="derived"))
        sizes.add(sum(leaf.size for leaf in jax.tree.leaves(curriculum.tables)))
    assert sizes == {2}
    config = Permuted(num_tasks=4, permutations="derived")
    stream, original = config.build(data()), np.asarray(data().images[7]).ravel()  # no two pixels of it are equal
    seen = [shown(stream, curriculum_of(config, seed), task, 7).ravel() for seed in (0, 1) for task in range(4)]
    assert all(sorted(image) == sorted(original) for image in seen)
    assert len({tuple(image) for image in [original, *seen]}) == 9
    # One permutation of a task for every image.
    order = [int(np.flatnonzero(original == value)[0]) for value in seen[2]]
    other = np.asarray(data().images[3]).ravel()
    np.testing.assert_array_equal(shown(stream, curriculum_of(config), 2, 3).ravel(), other[order])
    first = Permuted(num_tasks=4, permutations="derived", first_identity=True).build(data())
    np.testing.assert_array_equal(shown(first, curriculum_of(config), 0, 7).ravel(), original)
    np.testing.assert_array_equal(shown(first, curriculum_of(config), 2, 7).ravel(), seen[2])

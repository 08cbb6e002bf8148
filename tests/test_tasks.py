"""Task streams: which rows, which view, which labels and outputs; checked against NumPy on a set of tiny images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Reference
from cl_jax.data import SPLITS, Data, split_source
from cl_jax.errors import UserError
from cl_jax.sources import Source
from cl_jax.tasks import Permuted, Rotated, Split
from cl_jax.tasks.render import active_outputs, labels_of, render
from cl_jax.tasks.stream import (
    EXPOSURES,
    TRAINING_MASKS,
    View,
    largest_task,
    make_curriculum,
    sample_references,
    smallest_task,
    task_rows,
)

COUNTS = (16, 20, 12, 30, 18, 14, 10)  # rows of each class


def source(with_test: bool = False) -> Source:
    """Images of 4 x 4 whose first pixel is their number; no two pixels of an image are equal."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(len(COUNTS)), COUNTS)).astype(np.int32)
    images = np.stack([np.r_[i, 130 + generator.permutation(15)] for i in range(len(labels))]).astype(np.uint8)
    images, cut = images.reshape(-1, 4, 4, 1), 90 if with_test else len(labels)
    test = (images[cut:], labels[cut:]) if with_test else (None, None)
    return Source("tiny", images[:cut], labels[:cut], *test, num_classes=len(COUNTS), pixel_max=200)


@functools.cache
def data() -> Data:
    return split_source(source(), validation=0.2)


def curriculum_of(stream, seed=0):
    return jax.jit(lambda key: make_curriculum(key, stream, data()))(jax.random.key(seed))


def rows_of(segments, task):
    start, size = int(segments.start[task]), int(segments.size[task])
    return np.asarray(segments.order)[start : start + size]


def shown(stream, curriculum, task, row):
    """Image `row` as `task` sees it, uint8 [H, W]."""
    image = stream.transform(curriculum.tables, jnp.int32(task), data().images[row : row + 1])
    assert image.dtype == jnp.uint8
    return np.asarray(image)[0, :, :, 0]


@pytest.mark.parametrize("with_test", [False, True])
def test_splits_are_disjoint_and_complete(with_test):
    whole, made = source(with_test), split_source(source(with_test), validation=0.25)
    numbers = np.asarray(made.images[:, 0, 0, 0])
    assert made.images.dtype == jnp.uint8 and made.labels.dtype == jnp.int32
    assert sorted(numbers) == list(range(sum(COUNTS))) and sum(made.sizes) == sum(COUNTS)
    every = whole.train_images if whole.test_images is None else np.concatenate([whole.train_images, whole.test_images])
    labels = (
        whole.train_labels if whole.test_labels is None else np.concatenate([whole.train_labels, whole.test_labels])
    )
    np.testing.assert_array_equal(made.images, every[numbers])
    np.testing.assert_array_equal(made.labels, labels[numbers])
    assert made.sizes == ((68, 22, 30) if with_test else (72, 24, 24))
    if with_test:
        assert sorted(numbers[-30:]) == list(range(90, 120))
    for at, split in enumerate(SPLITS):
        first, size = made.bounds(split)
        assert made.class_counts[at] == tuple(np.bincount(made.labels[first : first + size], minlength=7).tolist())


@pytest.mark.parametrize("validation", [0.0, 1.0])
def test_an_empty_split_is_told(validation):
    with pytest.raises(UserError, match=r"data 'tiny' with validation=.*each needs at least one"):
        split_source(source(), validation=validation)


def test_permutations_differ_by_task_and_seed():
    stream = Permuted(num_tasks=4).build(data())
    tables = [np.asarray(curriculum_of(stream, seed).tables) for seed in (0, 1)]
    np.testing.assert_array_equal(np.sort(tables, axis=-1), np.broadcast_to(np.arange(16), (2, 4, 16)))
    assert len({tuple(row) for row in np.concatenate(tables)}) == 8
    np.testing.assert_array_equal(curriculum_of(stream, 0).tables, tables[0])
    original = np.asarray(data().images[7]).ravel()
    for task in range(4):
        seen = shown(stream, curriculum_of(stream), task, 7)
        np.testing.assert_array_equal(seen.ravel(), original[tables[0][task]])
        assert (seen.ravel() != original).any()


def test_first_identity_changes_the_first_task_only():
    tables = curriculum_of(Permuted(num_tasks=3, first_identity=True).build(data())).tables
    np.testing.assert_array_equal(tables[0], np.arange(16))
    np.testing.assert_array_equal(tables[1:], curriculum_of(Permuted(num_tasks=3).build(data())).tables[1:])


@pytest.mark.parametrize("permutations", ["stored", "derived"])
def test_only_the_pixels_of_the_square_move(permutations):
    inside = np.zeros((4, 4), bool)
    inside[1:3, 1:3] = True
    stream = Permuted(num_tasks=6, square=2, permutations=permutations).build(data())
    original, moved = np.asarray(data().images[7, :, :, 0]), 0
    for task in range(6):
        seen = shown(stream, curriculum_of(stream), task, 7)
        np.testing.assert_array_equal(seen[~inside], original[~inside])
        assert sorted(seen[inside]) == sorted(original[inside])
        moved += int((seen[inside] != original[inside]).any())
    assert moved >= 4
    with pytest.raises(UserError, match="was given 5; the most allowed is the smaller side of 4 x 4"):
        Permuted(square=5).build(data())


def test_rotation_by_quarter_turns():
    stream = Rotated(num_tasks=4, max_degrees=360, angles="even").build(data())
    curriculum = curriculum_of(stream)
    for task in range(4):
        original = np.asarray(data().images[3, :, :, 0])
        np.testing.assert_array_equal(shown(stream, curriculum, task, 3), np.rot90(original, task))


def test_rotation_blanks_what_turns_in_from_outside():
    stream = Rotated(num_tasks=2, max_degrees=90, angles="even").build(data())  # 0 and 45 degrees
    seen = shown(stream, curriculum_of(stream), 1, 3)
    original = np.asarray(data().images[3, :, :, 0])
    assert seen[0, 0] == seen[0, 3] == seen[3, 0] == seen[3, 3] == 0
    assert {seen[1, 1], seen[1, 2], seen[2, 1], seen[2, 2]} <= set(original.ravel())
    assert set(seen.ravel()) - {0} <= set(original.ravel())


def test_random_angles_are_the_seeds():
    stream = Rotated(num_tasks=3).build(data())
    first, again, other = (np.asarray(curriculum_of(stream, seed).tables) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and len(np.unique(first, axis=0)) > 1


@pytest.mark.parametrize("class_order", ["random", "natural"])
def test_split_tasks_are_disjoint_and_complete(class_order):
    stream = Split(num_tasks=3, class_order=class_order).build(data())  # 2 classes a task, 1 of 7 left over
    labels, orders = np.asarray(data().labels), []
    for seed in range(5):
        segments = curriculum_of(stream, seed).segments
        owned = [set(labels[rows_of(segments["train"], task)].tolist()) for task in range(3)]
        assert [len(classes) for classes in owned] == [2, 2, 2] and len(set.union(*owned)) == 6
        for split in SPLITS:
            first, size = data().bounds(split)
            for task in range(3):
                expected = [row for row in range(first, first + size) if labels[row] in owned[task]]
                np.testing.assert_array_equal(rows_of(segments[split], task), expected)
                assert smallest_task(stream, data(), split) <= len(expected) <= largest_task(stream, data(), split)
        orders.append(owned)
    if class_order == "natural":
        assert orders == [[{0, 1}, {2, 3}, {4, 5}]] * 5
    else:
        assert len({str(order) for order in orders}) == 5


def test_more_split_tasks_than_classes_are_told():
    with pytest.raises(UserError, match=r"given 8 split tasks, but the data has 7 classes, which is the most"):
        Split(num_tasks=8).build(data())


@pytest.mark.parametrize("scenario", ["domain", "task", "class"])
def test_labels_of_split_tasks(scenario):
    view = View(Split(num_tasks=3).build(data()), scenario)
    curriculum = curriculum_of(view.stream)
    assert view.num_outputs == (2 if scenario == "domain" else 6)
    by_class = {}
    for task in range(3):
        rows = rows_of(curriculum.segments["train"], task)
        labels = labels_of(view, curriculum.tables, Reference(jnp.asarray(rows), jnp.full(len(rows), task)), data())
        assert set(np.asarray(labels)) == ({0, 1} if scenario == "domain" else {2 * task, 2 * task + 1})
        for original, label in zip(np.asarray(data().labels)[rows], np.asarray(labels), strict=True):
            assert by_class.setdefault((task, int(original)), int(label)) == label
    assert len(by_class) == 6  # one label for each class, whatever the row


def test_labels_of_permuted_tasks():
    stream = Permuted(num_tasks=3).build(data())
    reference, original = Reference(jnp.arange(20), jnp.full(20, 2)), np.asarray(data().labels[:20])
    for scenario, offset, outputs in [("domain", 0, 7), ("task", 14, 21), ("class", 14, 21)]:
        view = View(stream, scenario)
        labels = labels_of(view, curriculum_of(stream).tables, reference, data())
        np.testing.assert_array_equal(labels, original + offset)
        assert view.num_outputs == outputs


@pytest.mark.parametrize("mask", TRAINING_MASKS)
@pytest.mark.parametrize("scenario", ["domain", "task", "class"])
def test_active_outputs(scenario, mask):
    """Examples of tasks 0, 1 and 2 while task 1 trains: two outputs a task."""
    view = View(Split(num_tasks=3).build(data()), scenario, mask)
    own = [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    seen = [1, 1, 1, 1, 0, 0]
    expected = {
        "domain": [[1, 1]] * 3,
        "task": own,
        "class": {"all": [[1] * 6] * 3, "seen": [seen] * 3, "current": [seen, own[1], seen]}[mask],
    }[scenario]
    found = active_outputs(view, jnp.arange(3), jnp.int32(1), mask)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, np.array(expected, bool))


@pytest.mark.parametrize("exposure", EXPOSURES)
def test_epochs_are_without_replacement_and_keep_to_their_tasks(exposure):
    stream = Split(num_tasks=3).build(data())
    segments = curriculum_of(stream).segments["train"]
    own = [rows_of(segments, task) for task in range(3)]
    draw = jax.jit(functools.partial(sample_references, exposure=exposure, batch_size=4))
    for task in range(3):
        tasks = {"current": [task], "seen": range(task + 1), "all": range(3)}[exposure]
        allowed = {(int(row), t) for t in tasks for row in own[t]}
        per_epoch, orders = len(allowed) // 4, []
        steps = jnp.arange(2 * per_epoch, dtype=jnp.int32)
        found = draw(jax.random.key(3), segments, task=jnp.int32(task), steps=steps)
        assert found.row.dtype == found.task.dtype == jnp.int32
        pairs = list(zip(np.asarray(found.row).ravel(), np.asarray(found.task).ravel(), strict=True))
        for epoch in range(2):
            drawn = pairs[epoch * per_epoch * 4 : (epoch + 1) * per_epoch * 4]
            assert len(set(drawn)) == len(drawn) and set(drawn) <= allowed
            orders.append(drawn)
        assert orders[0] != orders[1]
        assert {t for _, t in pairs} == set(tasks)
        np.testing.assert_array_equal(draw(jax.random.key(3), segments, task=jnp.int32(task), steps=steps[5:6]).row[0],
                                      found.row[5])  # fmt: skip


def test_every_row_is_drawn_in_the_end():
    stream = Split(num_tasks=3, class_order="natural").build(data())
    segments = curriculum_of(stream).segments["train"]
    steps = jnp.arange(300, dtype=jnp.int32)
    found = sample_references(jax.random.key(0), segments, "current", jnp.int32(1), steps, 5)
    assert set(np.asarray(found.row).ravel()) == set(rows_of(segments, 1))


def test_a_task_smaller_than_a_batch_is_walked_round():
    segments = curriculum_of(Split(num_tasks=7, class_order="natural").build(data())).segments["validation"]
    own = rows_of(segments, 2)
    assert 0 < len(own) < 16
    found = sample_references(jax.random.key(0), segments, "current", jnp.int32(2), jnp.arange(3, dtype=jnp.int32), 16)
    for batch in np.asarray(found.row):
        rows, counts = np.unique(batch, return_counts=True)
        assert set(rows) == set(own) and np.ptp(counts) <= 1


def test_positions_past_a_tasks_end_repeat_its_last_row():
    segments = curriculum_of(Split(num_tasks=3).build(data())).segments["train"]
    for task in range(3):
        own = rows_of(segments, task)
        found = task_rows(segments, jnp.int32(task), jnp.arange(len(own) + 5, dtype=jnp.int32))
        np.testing.assert_array_equal(found.row, np.r_[own, [own[-1]] * 5])
        np.testing.assert_array_equal(found.task, task)


@pytest.mark.parametrize("config", [Permuted(num_tasks=3), Rotated(num_tasks=3), Split(num_tasks=3)])
def test_render_scales_and_transforms_example_by_example(config):
    view = View(config.build(data()), "class")
    curriculum = curriculum_of(view.stream)
    assert all(leaf.size <= len(data().labels) for leaf in jax.tree.leaves(curriculum))  # no images in it
    reference = Reference(jnp.arange(6), jnp.array([0, 1, 2, 2, 1, 0]))
    mixed = render(view, curriculum.tables, data(), reference, jnp.int32(1), mask="seen", one_task=False)
    assert mixed.x.dtype == jnp.float32 and mixed.y.dtype == jnp.int32
    for i, task in enumerate(np.asarray(reference.task)):
        expected = shown(view.stream, curriculum, task, i).astype(np.float32) / 200
        np.testing.assert_allclose(mixed.x[i, :, :, 0], expected, rtol=1e-6)
    same = reference._replace(task=jnp.full(6, 2))
    one, many = (
        render(view, curriculum.tables, data(), same, jnp.int32(1), mask="seen", one_task=flag)
        for flag in (True, False)
    )
    jax.tree.map(np.testing.assert_array_equal, one, many)

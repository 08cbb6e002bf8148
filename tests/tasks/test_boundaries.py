"""Boundaries: which example is shown when, against counting and the shares as plain formulas."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import plan, sources, sweep
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Experiment, Mlp, Run, members
from cl_jax.experiment import sweep as entries_of
from cl_jax.methods import Replay
from cl_jax.optimizers import Sgd
from cl_jax.tasks import BOUNDARIES, Fuzzy, LinearDecay, Permuted, Scattered, Sharp, Split
from cl_jax.tasks.boundaries import Layout, blurry_references, is_sharp
from cl_jax.tasks.stream import Segments, sample_references
from tests.test_sweep import Silent
from tests.test_tasks import curriculum_of, data, rows_of

LAYOUT = Layout(num_tasks=4, steps=25, batch_size=8)
ODD = Layout(num_tasks=3, steps=7, batch_size=5)
SEEDS = 1500
DEVIATIONS = 5.0  # of a share counted over the seeds: one slot in two million lies further out


@functools.partial(jax.jit, static_argnums=1)
def shown(boundary: Any, layout: Layout, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Task and slot of its own sequence, int32 [T, n] each."""
    slots = jnp.arange(layout.num_slots, dtype=jnp.int32)
    return jax.vmap(lambda task: boundary.shown(key, layout, task, slots))(jnp.arange(layout.num_tasks))


@functools.cache
def counted(boundary: Any, layout: Layout = LAYOUT) -> np.ndarray:
    """How often each task is shown at each slot, over the seeds: shares [T tasks, T periods, n]."""
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    tasks, _ = jax.jit(jax.vmap(lambda key: shown(boundary, layout, key)))(keys)
    return np.stack([(np.asarray(tasks) == task).mean(axis=0) for task in range(layout.num_tasks)])


def assert_shares(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(expected.sum(axis=0), 1.0)
    assert (np.abs(found - expected) <= DEVIATIONS * np.sqrt(expected * (1 - expected) / SEEDS) + 1e-9).all()


@pytest.mark.parametrize("boundary", [Sharp(), Fuzzy(width=0.0), LinearDecay(width=0.0), Scattered(share=0.0)])
@pytest.mark.parametrize("layout", [LAYOUT, ODD])
def test_without_width_each_period_shows_its_own_task_in_order(boundary: Any, layout: Layout) -> None:
    tasks, slots = shown(boundary, layout, jax.random.key(3))
    assert tasks.dtype == slots.dtype == jnp.int32
    np.testing.assert_array_equal(tasks, np.repeat(np.arange(layout.num_tasks)[:, None], layout.num_slots, axis=1))
    np.testing.assert_array_equal(slots, np.repeat(np.arange(layout.num_slots)[None], layout.num_tasks, axis=0))


@pytest.mark.parametrize("boundary", [Fuzzy(width=0.3), Fuzzy(width=1.0), Scattered(share=0.25), Scattered(share=1.0)])
@pytest.mark.parametrize("layout", [LAYOUT, ODD])
def test_a_blurry_stream_is_the_sharp_one_in_another_order(boundary: Any, layout: Layout) -> None:
    tasks, slots = map(np.ravel, shown(boundary, layout, jax.random.key(1)))
    found = list(zip(tasks.tolist(), slots.tolist(), strict=True))
    everything = [(task, slot) for task in range(layout.num_tasks) for slot in range(layout.num_slots)]
    assert sorted(found) == everything and found != everything


@pytest.mark.parametrize("layout", [LAYOUT, ODD])
@pytest.mark.parametrize("width", [0.3, 1.0])
def test_a_decaying_task_goes_on_in_its_sequence(width: float, layout: Layout) -> None:
    tasks, slots = (np.asarray(part) for part in shown(LinearDecay(width=width), layout, jax.random.key(1)))
    half, last = int(width * layout.num_slots / 2), layout.num_tasks - 1
    for task in range(layout.num_tasks):
        length = layout.num_slots + half * (task == 0) - half * (task == last)
        assert sorted(slots[tasks == task].tolist()) == list(range(length))
        assert (tasks[task] <= task).all() and (tasks[task] >= task - 1).all()  # nothing before its time


@pytest.mark.parametrize("width", [0.3, 1.0])
def test_fuzzy_shares_rise_linearly_around_each_boundary(width: float) -> None:
    n, half = LAYOUT.num_slots, int(width * LAYOUT.num_slots / 2)
    time = np.arange(4 * n).reshape(4, n) + 0.5
    risen = [np.clip((time - boundary * n) / (2 * half) + 0.5, 0, 1) for boundary in range(1, 4)]
    begun = np.stack([np.ones_like(time), *risen, np.zeros_like(time)])
    assert_shares(counted(Fuzzy(width=width)), begun[:-1] - begun[1:])


@pytest.mark.parametrize("width", [0.3, 1.0])
def test_linear_decay_shares_fall_after_each_boundary(width: float) -> None:
    n, window = LAYOUT.num_slots, 2 * int(width * LAYOUT.num_slots / 2)
    expected = np.zeros((4, 4, n))
    for period in range(4):
        old = np.clip(1 - (np.arange(n) + 0.5) / window, 0, 1) * (period > 0)
        expected[period, period] = 1 - old
        if period:
            expected[period - 1, period] = old
    assert_shares(counted(LinearDecay(width=width)), expected)


def test_scattered_slots_are_of_any_time_and_the_others_of_their_own() -> None:
    found = counted(Scattered(share=0.25)).reshape(4, 4, LAYOUT.steps, LAYOUT.batch_size)
    moved = np.broadcast_to(0.25, (4, 4, LAYOUT.steps, 2))  # 2 of 8 in each batch
    stay = np.broadcast_to(np.eye(4)[:, :, None, None], (4, 4, LAYOUT.steps, 6))
    assert_shares(found, np.concatenate([moved, stay], axis=-1))


def test_pairs_and_boundaries_and_seeds_are_drawn_apart() -> None:
    boundary, n = Fuzzy(width=1.0), LAYOUT.num_slots
    one, other = (np.asarray(shown(boundary, LAYOUT, jax.random.key(seed))[0]) for seed in (0, 1))
    swapped = one != np.arange(4)[:, None]
    assert (one != other).any()
    assert (swapped[1, n // 2 :] != swapped[2, n // 2 :]).any()  # around two boundaries
    np.testing.assert_array_equal(swapped[0, n // 2 :], swapped[1, : n // 2][::-1])  # both of a pair, or none


@pytest.mark.parametrize("boundary", [Fuzzy(width=0.5), LinearDecay(width=0.5), Scattered(share=0.4)])
def test_a_width_is_traced(boundary: Any) -> None:
    """Members with other widths side by side show what each shows alone."""
    several = jax.tree.map(lambda value: jnp.float32([0.0, value, 1.0]), boundary)
    together = jax.jit(jax.vmap(lambda one: shown(one, LAYOUT, jax.random.key(5))))(several)
    for i, value in enumerate([0.0, jax.tree.leaves(boundary)[0], 1.0]):
        alone = shown(jax.tree.map(lambda _, value=value: value, boundary), LAYOUT, jax.random.key(5))
        jax.tree.map(lambda many, one, i=i: np.testing.assert_array_equal(many[i], one), together, alone)


STREAMS = {"permuted": Permuted(num_tasks=3), "split": Split(num_tasks=3)}  # of equal and of unequal tasks
KEYS = jax.random.split(jax.random.key(7), 2)
BATCH, STEPS = 4, 13


@functools.cache
def segments_of(name: str) -> Segments:
    return curriculum_of(STREAMS[name].build(data())).segments["train"]


@functools.cache
def drawn_by(name: str, boundary: Any) -> Any:
    """`(task, steps int32 [STEPS]) -> references`."""
    layout, segments = Layout(3, STEPS, BATCH), segments_of(name)
    return jax.jit(lambda task, numbers: blurry_references(KEYS[0], KEYS[1], segments, boundary, layout, task, numbers))


@functools.cache
def references(name: str, boundary: Any, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Row and task of each slot of each period, [T, STEPS, B] each."""
    numbers = first + jnp.arange(STEPS, dtype=jnp.int32)
    found = [drawn_by(name, boundary)(jnp.int32(task), numbers) for task in range(3)]
    return np.stack([each.row for each in found]), np.stack([each.task for each in found])


@pytest.mark.parametrize("name", STREAMS)
def test_the_sharp_sequence_is_that_of_exposure_to_the_current_task(name: str) -> None:
    segments = segments_of(name)
    sharp = jax.jit(
        lambda task, numbers: sample_references(
            jax.random.fold_in(KEYS[0], task), segments, "current", task, numbers, BATCH
        )
    )
    for first in (0, STEPS):  # into a second epoch
        rows, tasks = references(name, Sharp(), first)
        for task in range(3):
            expected = sharp(jnp.int32(task), first + jnp.arange(STEPS, dtype=jnp.int32))
            np.testing.assert_array_equal(rows[task], expected.row)
            np.testing.assert_array_equal(tasks[task], expected.task)


@pytest.mark.parametrize(
    ("name", "boundary"), [("permuted", Scattered(share=0.5)), ("split", Fuzzy(width=1.0)), ("permuted", Fuzzy())]
)
def test_steps_of_one_pass_show_no_example_twice(name: str, boundary: Any) -> None:
    segments = segments_of(name)
    rows, tasks = references(name, boundary)
    sharp_rows, sharp_tasks = references(name, Sharp())

    def pairs(rows: np.ndarray, tasks: np.ndarray) -> list[tuple[int, int]]:
        return sorted(zip(rows.ravel().tolist(), tasks.ravel().tolist(), strict=True))

    assert pairs(rows, tasks) == pairs(sharp_rows, sharp_tasks)
    if name == "permuted":  # less than a pass
        assert len(set(pairs(rows, tasks))) == rows.size
    own = [set(rows_of(segments, task).tolist()) for task in range(3)]
    assert all(row in own[task] for row, task in pairs(rows, tasks))
    assert any(len(set(batch.tolist())) > 1 for batch in tasks.reshape(-1, BATCH))  # batches are mixed


@pytest.mark.parametrize("boundary", [Fuzzy(width=1.0), LinearDecay(width=1.0), Scattered(share=0.5)])
def test_a_batch_is_a_formula_of_its_step(boundary: Any) -> None:
    rows, tasks = references("permuted", boundary)
    backwards = jnp.arange(STEPS, dtype=jnp.int32)[::-1]
    again = drawn_by("permuted", boundary)(jnp.int32(1), backwards)
    np.testing.assert_array_equal(again.row, rows[1, ::-1])
    np.testing.assert_array_equal(again.task, tasks[1, ::-1])


def test_a_stream_too_long_to_shuffle_is_told() -> None:
    Scattered().check(Layout(2, 2**22, 1))
    with pytest.raises(UserError, match=r"shuffles fewer than 16777216 examples, and .* is 16777216: lower one"):
        Scattered().check(Layout(4, 2**20, 4))


def test_names() -> None:
    assert [name for name, cls in BOUNDARIES.items() if is_sharp(cls())] == ["sharp"]


def recorded(run: Run, out: Path, axes: dict[str, list[float]] | None = None) -> list[np.ndarray]:
    """The record of each member that the engine trains, on the digits."""
    entries = entries_of("x", run, axes)
    everyone = members(Experiment(name="x", description="", entries=entries, seeds=(0,)), {"digits": "sha"})
    (shard,) = plan.make_plan(out, everyone, 2, lambda member: 1000)
    sweep.run_shard(shard, DIGITS, Silent(), PROGRAMS)
    read = sweep.read_record(shard)
    assert read is not None and not read.diverged.any()
    return list(read.record)


DIGITS = split_source(sources.load("digits"), 0.1)
PROGRAMS = Programs(devices=jax.devices()[:1])
RUN = Run(model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.2), steps=20, batch_size=8)
REPLAY = {"replay": Replay(capacity=30)}


@pytest.mark.slow
def test_the_engine_trains_what_is_shown(tmp_path: Path) -> None:
    run = replace(RUN, {"stream": Permuted(num_tasks=3), "methods": REPLAY, "steps": 150})
    (sharp,) = recorded(run, tmp_path / "sharp")
    blurry = replace(run, {"boundary": Fuzzy()})
    zero, wide = recorded(blurry, tmp_path / "blurry", {"boundary.width": [0.0, 1.0]})
    # Another program, which shows each image by itself.
    np.testing.assert_allclose(zero, sharp, rtol=1e-4, atol=1e-3)
    assert wide[1, 1, 0, 1] > zero[1, 1, 0, 1] + 0.05  # half a task before its period it is not unknown


@pytest.mark.slow
def test_classes_of_a_blurry_stream_all_compete(tmp_path: Path) -> None:
    """Cross-entropy of a class shown before its task's period is finite, in training and in evaluation."""
    of_classes = {"stream": Split(num_tasks=5), "scenario": "class", "training_mask": "all"}
    run = replace(RUN, {**of_classes, "methods": REPLAY, "steps": 100})
    (record,) = recorded(replace(run, {"boundary": Scattered(share=0.5)}), tmp_path)
    assert np.isfinite(record).all()
    assert record[1, 1, 0, 1:].mean() > 0.15  # tasks whose period has not come, by chance 0.1

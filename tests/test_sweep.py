"""The sweep engine: one trace a group, the data once, members apart from each other, resumed = uninterrupted."""

import dataclasses
import gc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import compiled, devices, plan, program, sources, sweep, waves
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.experiment import Entry, Experiment, Mlp, Run, members
from cl_jax.experiment import sweep as entries_of
from cl_jax.methods import Ewc, Replay
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted

BASE = Run(
    stream=Permuted(num_tasks=3), model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.2), steps=20, batch_size=8
)
EWC = replace(BASE, {"methods": {"ewc": Ewc(anchors="online")}})
BOTH = replace(BASE, {"methods": {"ewc": Ewc(anchors="online"), "replay": Replay(capacity=30)}})
TRACED: list[str] = []
LIVE: list[int] = []  # copies of the data set on the device before and after the 64 members
# Shared, so that no test compiles what another one did.
PROGRAMS = Programs(TRACED.append, jax.devices()[:1])


class Silent:
    """Progress that says nothing, and stops the run when a task begins, if told to."""

    def __init__(self, stop_at_task: int | None = None):
        self.stop_at_task, self.said = stop_at_task, []

    def compiling(self, shard: plan.Shard) -> None:
        pass

    def restored(self, member_steps: int) -> None:
        pass

    def advanced(self, shard: plan.Shard, task: int, member_steps: int) -> None:
        if task == self.stop_at_task:
            raise KeyboardInterrupt

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(scope="module")
def data() -> Data:
    return split_source(sources.load("digits"), 0.1)


def experiment(entries: tuple[Entry, ...], seeds: int) -> Experiment:
    return Experiment(name="test", description="", entries=entries, seeds=tuple(range(seeds)))


def shards_of(out: Path, entries: tuple[Entry, ...], seeds: int, width: int | None = 4) -> list[plan.Shard]:
    return plan.make_plan(out, members(experiment(entries, seeds), {"digits": "sha"}), width, lambda member: 1000)


def records(shards: list[plan.Shard]) -> dict[str, np.ndarray]:
    """The record of each member by id."""
    found = {}
    for shard in shards:
        read = sweep.read_record(shard)
        assert read is not None
        found.update({member.id: read[0][i] for i, member in enumerate(shard.members)})
    return found


def run_all(shards: list[plan.Shard], data: Data, **progress: Any) -> Silent:
    said = Silent(**progress)
    for shard in shards:
        sweep.run_shard(shard, data, said, PROGRAMS)
    return said


def images_on_the_device(data: Data) -> int:
    """Copies of the data set, those of other tests of this process included."""
    gc.collect()  # else some of theirs go between two counts
    return sum(array.shape == data.images.shape for array in jax.live_arrays())


STRENGTHS = {"methods.ewc.strength": [0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3]}


@pytest.fixture(scope="module")
def finished(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[plan.Shard], list[str]]:
    """64 members in three groups, and what was traced for them."""
    entries = (*entries_of("finetune", BASE), *entries_of("ewc", EWC, STRENGTHS), *entries_of("ewc + replay", BOTH))
    entries += entries_of("ewc at another rate", replace(EWC, {"optimizer.learning_rate": 0.1}), STRENGTHS)[:6]
    shards = shards_of(tmp_path_factory.mktemp("sweep"), entries, seeds=4)
    jax.clear_caches()  # else a process full of other tests' programs drops some midway, and traces them again
    TRACED.clear()
    LIVE.append(images_on_the_device(data))
    run_all(shards, data)
    LIVE.append(images_on_the_device(data))
    return shards, list(TRACED)


def test_64_members_trace_each_group_once(finished: tuple[list[plan.Shard], list[str]]) -> None:
    shards, traced = finished
    assert sum(len(shard.members) for shard in shards) == 64 and len(shards) == 3
    counts = {name: traced.count(name) for name in set(traced)}
    assert counts == {"world": 1, "row": 1, "init": 3, "steps": 3, "end_task": 3}


def test_strength_zero_is_fine_tuning_and_seeds_share_their_start(
    finished: tuple[list[plan.Shard], list[str]],
) -> None:
    found = records(finished[0])
    by_name = {(m.entry.label, m.entry.run.methods.get("ewc"), m.seed): m.id for s in finished[0] for m in s.members}
    for seed in range(4):
        plain = found[by_name["finetune", None, seed]]
        zero = found[by_name["ewc", Ewc(anchors="online", strength=0.0), seed]]
        # Another program may sum in another order, so the losses agree closely and not bitwise.
        np.testing.assert_allclose(zero, plain, rtol=1e-4, atol=5e-3)
        for name, id in by_name.items():
            if name[2] == seed:
                np.testing.assert_array_equal(found[id][0], plain[0])  # before training
    assert not np.array_equal(found[by_name["finetune", None, 0]][0], found[by_name["finetune", None, 1]][0])


def test_a_member_does_not_notice_its_neighbours(
    finished: tuple[list[plan.Shard], list[str]], data: Data, tmp_path: Path
) -> None:
    """Bitwise at one width: each member of a large sweep equals the same member in a sweep of one."""
    everyone = records(finished[0])
    for entry in (entries_of("ewc", EWC, {"methods.ewc.strength": [30.0]})[0], entries_of("ewc + replay", BOTH)[0]):
        alone = shards_of(tmp_path / entry.label, (entry,), seeds=3)
        run_all(alone, data)
        for member, record in records(alone).items():
            np.testing.assert_array_equal(record, everyone[member])


def test_the_data_is_held_once(data: Data) -> None:
    """By the compiled program's own account: 63 more members cost their state, not 63 data sets."""
    big = dataclasses.replace(data, images=jnp.zeros((data.images.shape[0] * 40, 8, 8, 1), jnp.uint8))
    held = int(big.images.nbytes)
    used, own = {}, {}
    for count in (1, 64):
        shard_members = members(experiment(entries_of("ewc", EWC), count), {"digits": "sha"})
        # All side by side: the most that could be copied.
        shard = plan.Shard(folder=Path(), members=tuple(shard_members), width=count)
        crew = waves.crew_of(shard, data, PROGRAMS)
        (wave,) = waves.muster(crew, np.arange(count))
        state = waves.first_states(crew, wave)
        stacked_all = (wave.runs, wave.seeds, wave.curriculum, state)
        analysis = PROGRAMS.compiled_steps(wave, state, big, 20).memory_analysis()
        used[count] = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        own[count] = sum(leaf.nbytes for leaf in jax.tree.leaves(stacked_all) if leaf.dtype != jax.dtypes.prng_key)
    assert used[1] > held
    # Arguments, outputs and the loop's own copy of what it writes.
    assert used[64] - used[1] < 4 * (own[64] - own[1])
    assert used[64] - used[1] < 63 * held / 2


def test_one_array_of_images_lives_on_the_device(finished: tuple[list[plan.Shard], list[str]]) -> None:
    before, after = LIVE
    assert before == after >= 1


@pytest.mark.parametrize("task", [0, 1, 2])
def test_resumed_is_uninterrupted(
    task: int, finished: tuple[list[plan.Shard], list[str]], data: Data, tmp_path: Path
) -> None:
    entries = entries_of("ewc + replay", BOTH)
    everyone = records(finished[0])
    for shard in shards_of(tmp_path, entries, seeds=4):
        with pytest.raises(KeyboardInterrupt):
            run_all([shard], data, stop_at_task=task)
        said = run_all([shard], data)
        # The boundary's own checkpoint may still be under way when the next task is stopped: one task is trained twice.
        assert task == 0 or "continues after task" in said.said[0]
        for member, record in records([shard]).items():
            np.testing.assert_array_equal(record, everyone[member])


def test_only_new_seeds_and_strengths_are_trained(
    finished: tuple[list[plan.Shard], list[str]], data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = entries_of("ewc", EWC, {"methods.ewc.strength": [1.0, 10.0]})
    more = entries_of("ewc", EWC, {"methods.ewc.strength": [1.0, 10.0, 100.0]})
    run_all(shards_of(tmp_path, few, seeds=2), data)
    before = {path: path.read_bytes() for path in tmp_path.rglob("record.npz")}
    shards = shards_of(tmp_path, more, seeds=4, width=None)
    assert sorted(len(shard.members) for shard in shards if shard.done) == [4]
    assert sorted(len(shard.members) for shard in shards if not shard.done) == [8]
    run_all(shards, data)
    assert all(path.read_bytes() == content for path, content in before.items())
    everyone = records(finished[0])
    for member, record in records(shards).items():
        np.testing.assert_array_equal(record, everyone[member])  # width 4 was taken over from the first run
    monkeypatch.setattr(sweep, "_run", lambda *arguments: pytest.fail("trained a finished shard again"))
    run_all(shards_of(tmp_path, more, seeds=4), data)


def test_a_diverging_member_is_flagged_and_leaves_the_others_alone(
    finished: tuple[list[plan.Shard], list[str]], data: Data, tmp_path: Path
) -> None:
    wild = entries_of("ewc", EWC, {"optimizer.learning_rate": [1e6], "methods.ewc.strength": [10.0]})
    shards = shards_of(tmp_path, (*wild, *entries_of("ewc", EWC, {"methods.ewc.strength": [10.0]})), seeds=2)
    run_all(shards, data)
    (shard,) = shards
    read = sweep.read_record(shard)
    assert read is not None and read[1].tolist() == [True, True, False, False]
    everyone = records(finished[0])
    for number, member in enumerate(shard.members[2:], 2):
        np.testing.assert_array_equal(read[0][number], everyone[member.id])


def test_state_bytes_and_width() -> None:
    data = split_source(sources.load("digits"), 0.1)
    plain, heavy = program.state_bytes(BASE, data), program.state_bytes(EWC, data)
    weights = 4 * (64 * 8 + 8 + 8 * 10 + 10)
    assert weights <= plain < heavy and heavy - plain >= 2 * weights  # a Fisher and an anchor
    assert plan.widest(plain, "cpu") == 8 and plan.widest(2**22, "cpu") == 2 and plan.widest(2**30, "cpu") == 1
    assert plan.choose_width(20, 8, 1) == 7 and plan.choose_width(7, 8, 1) == 7 and plan.choose_width(1, 8, 1) == 1
    assert (
        plan.choose_width(20, 8, 2) == 5
        and plan.choose_width(45, 8, 2) == 8
        and plan.choose_width(7, 8, 2) == 4
        and plan.choose_width(3, 64, 8) == 1
    )


def test_programs_are_dropped_where_they_are_too_many(
    finished: tuple[list[plan.Shard], list[str]], data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled again they give the same bits."""
    everyone, traced = records(finished[0]), []
    programs = Programs(traced.append, jax.devices()[:1])
    monkeypatch.setattr(compiled, "crowded", lambda: len(traced) > 0)
    entry = entries_of("ewc + replay", BOTH)[0]
    for seeds in (1, 2):
        shards = shards_of(tmp_path / str(seeds), (entry,), seeds)
        for shard in shards:
            sweep.run_shard(shard, data, Silent(), programs)
        for member, record in records(shards).items():
            np.testing.assert_array_equal(record, everyone[member])
    assert traced.count("steps") == 2


def test_crowded(tmp_path: Path) -> None:
    maps, most = tmp_path / "maps", tmp_path / "most"
    most.write_text("10\n")
    for lines, expected in ((5, False), (6, True)):
        maps.write_text("a map\n" * lines)
        assert devices.crowded(maps, most) is expected
    assert not devices.crowded(tmp_path / "absent", most)

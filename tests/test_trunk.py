"""Task 1 trained once for members that cannot differ before its end: the same results, for the reckoned cost."""

from pathlib import Path

import jax
import numpy as np
import pytest

from cl_jax import plan, runner, sources, sweep, trunk
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.experiment import Entry, Experiment, Mlp, Run, members
from cl_jax.experiment import sweep as entries_of
from cl_jax.methods import L2, METHODS, Ewc, Replay
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted
from cl_jax.waves import crew_of, first_states, muster, to_host, train_task
from tests.test_sweep import Silent, records

BASE = Run(
    stream=Permuted(num_tasks=3), model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.2), steps=20, batch_size=8
)
EWC = replace(BASE, {"methods": {"ewc": Ewc(kind="empirical")}})
ENTRIES = (
    *entries_of("finetune", BASE),
    *entries_of("ewc", EWC, {"methods.ewc.strength": [1.0, 10.0, 100.0]}),
    *entries_of("replay", replace(BASE, {"methods": {"replay": Replay(capacity=30)}})),
)
PROGRAMS = Programs(devices=jax.devices()[:2])
WAITING = [
    method
    for method in (cls() for cls in METHODS.values())
    if getattr(method, "waits_for_boundary", False) and not getattr(method, "needs_text", False)
]


class Counting(Silent):
    """Counts what is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.skipped = 0, 0

    def advanced(self, shard: plan.Shard, task: int, member_steps: int) -> None:
        self.steps += member_steps

    def restored(self, member_steps: int) -> None:
        self.skipped += member_steps


@pytest.fixture(scope="module")
def data() -> Data:
    return split_source(sources.load("digits"), 0.1)


def job_of(out: Path, entries: tuple[Entry, ...], *, shared: bool = True, seeds: int = 2, width: int = 2) -> runner.Job:
    experiment = Experiment(name="test", description="", entries=entries, seeds=tuple(range(seeds)))
    everyone = members(experiment, {"digits": "sha"})
    by_member = trunk.trunk_members(everyone, {"digits": "sha"}, shared=shared)
    first = list({member.id: member for member in by_member.values()}.values())
    return runner.Job(
        experiment=experiment,
        data={},
        shards=plan.make_plan(out, everyone, width, lambda member: 1000),
        trunks=plan.make_plan(out, first, width, lambda member: 1000, "trunks"),
        trunk_of=by_member,
        out=out,
    )


def run_all(job: runner.Job, data: Data, programs: Programs = PROGRAMS) -> Counting:
    progress, trunks = Counting(), trunk.Trunks(job.trunks, job.trunk_of)
    for shard in job.shards:
        sweep.run_shard(shard, data, progress, programs, trunks)
    return progress


@pytest.mark.parametrize("method", WAITING)
def test_what_waits_for_a_boundary_trains_as_fine_tuning_until_then(method: Ewc | L2, data: Data) -> None:
    """Its state does not change, and its penalty adds nothing: the same weights but for the order of sums."""
    found = []
    for methods in ({"m": method}, {}):
        (entry,) = entries_of("m", replace(BASE, {"methods": methods}))
        everyone = members(Experiment(name="t", description="", entries=(entry,), seeds=(0,)), {"digits": "sha"})
        crew = crew_of(plan.Shard(folder=Path(), members=tuple(everyone), width=1), data, PROGRAMS)
        (wave,) = muster(crew, np.arange(1))
        before = to_host(wave, first_states(crew, wave))
        after = to_host(wave, train_task(crew, wave, first_states(crew, wave), 0, Silent()))
        jax.tree.map(np.testing.assert_array_equal, before.method, after.method)
        found.append(after.trainable)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


def test_replay_does_not_wait() -> None:
    assert trunk.trunk_of(ENTRIES[-1].run) is None
    assert trunk.trunk_of(replace(EWC, {"methods": {"ewc": Ewc(), "replay": Replay()}})) is None
    assert trunk.trunk_of(EWC) == BASE == trunk.trunk_of(BASE)


def test_shared_results_equal_unshared_ones_bitwise_and_cost_what_is_reckoned(data: Data, tmp_path: Path) -> None:
    shared, unshared = job_of(tmp_path / "a", ENTRIES), job_of(tmp_path / "b", ENTRIES, shared=False)
    counts = [run_all(shared, data), run_all(unshared, data)]
    one, other = records(shared.shards), records(unshared.shards)
    assert set(one) == set(other) and len(one) == 10
    for id, record in one.items():
        np.testing.assert_array_equal(record, other[id])
    # 2 seeds, 3 tasks of 20 steps: 4 configurations share task 1, replay trains its own.
    assert counts[0].steps == 2 * 20 * (1 + 4 * 2 + 3) and counts[0].skipped == 0
    assert counts[1].steps == 2 * 20 * (4 * 3 + 3)


def test_the_reckoned_steps_are_those_of_the_progress(data: Data, tmp_path: Path) -> None:
    job = job_of(tmp_path, ENTRIES)
    assert job.steps_to_do == 2 * 20 * (1 + 4 * 2 + 3)
    run_all(job, data)
    assert job.steps_to_do == 0
    more = job_of(tmp_path, (*ENTRIES, *entries_of("ewc", EWC, {"methods.ewc.strength": [3.0]})))
    assert more.steps_to_do == 2 * 20 * 2  # the trunk is there already
    assert run_all(more, data).steps == 2 * 20 * 2


def test_a_stop_during_the_trunk_or_after_it_changes_nothing(data: Data, tmp_path: Path) -> None:
    whole = job_of(tmp_path / "whole", ENTRIES[:4])
    run_all(whole, data)
    job = job_of(tmp_path / "stopped", ENTRIES[:4])
    for task in (0, 1, 2):
        for shard in job.shards:
            trunks = trunk.Trunks(job.trunks, job.trunk_of)
            with pytest.raises(KeyboardInterrupt):
                sweep.run_shard(shard, data, Silent(stop_at_task=task), PROGRAMS, trunks)
        if task == 0:
            assert not any(shard.done for shard in job.trunks)
            trunk.Trunks(job.trunks, job.trunk_of).start(job.shards[0], data, Silent(), PROGRAMS)
    run_all(job, data)
    expected = records(whole.shards)
    for id, record in records(job.shards).items():
        np.testing.assert_array_equal(record, expected[id])


def test_a_diverged_trunk_is_a_diverged_member(data: Data, tmp_path: Path) -> None:
    wild = entries_of("ewc", EWC, {"optimizer.learning_rate": [1e6, 0.2]})
    job = job_of(tmp_path, wild)
    run_all(job, data)
    (shard,) = job.shards
    read = sweep.read_record(shard)
    assert read is not None and read.diverged.tolist() == [True, True, False, False]

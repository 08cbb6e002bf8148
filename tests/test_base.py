"""A base that stands for the first task: trained once a seed, whatever adapts it."""

from pathlib import Path

import numpy as np
import pytest

from cl_jax import sources, trunk
from cl_jax.adapters import Lora
from cl_jax.base import Pretrained
from cl_jax.checks import check_parts
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Mlp, Run
from cl_jax.experiment import sweep as entries_of
from cl_jax.methods import Ewc, Mixture, Replay
from cl_jax.optimizers import Sgd
from cl_jax.schedules import TaskDecay
from cl_jax.tasks import Permuted
from tests.test_sweep import records
from tests.test_trunk import job_of, run_all

BASE = Pretrained(steps=150, batch_size=16, optimizer=Sgd(learning_rate=0.5), schedule=TaskDecay())
PLAIN = Run(
    stream=Permuted(num_tasks=3), model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.05), steps=20, batch_size=8,
    base=BASE,
)  # fmt: skip
MIXTURE = replace(PLAIN, {"methods": {"mixture": Mixture(capacity=30)}})
ENTRIES = (
    *entries_of("finetune", PLAIN, {"optimizer.learning_rate": [0.05, 0.01]}),
    *entries_of("lora", replace(PLAIN, {"adapter": Lora(rank=2, alpha=2.0, first_task="lora")})),
    *entries_of("replay", replace(PLAIN, {"methods": {"replay": Replay(capacity=30)}})),
    *entries_of("mixture", MIXTURE, {"methods.mixture.share": [0.0, 0.5]}),
    *entries_of("ewc", replace(PLAIN, {"methods": {"ewc": Ewc(strength=10.0)}})),
)
AFTER_BASE, TEST, ACCURACY = 1, 1, 0


@pytest.fixture(scope="module")
def data() -> Data:
    return split_source(sources.load("digits"), 0.1)


def test_all_start_from_one_base_of_their_seed(data: Data, tmp_path: Path) -> None:
    job = job_of(tmp_path, ENTRIES)
    # 2 seeds: the base once, then two tasks of 7 configurations.
    assert job.steps_to_do == 2 * (150 + 7 * 2 * 20)
    progress = run_all(job, data)
    found = records(job.shards)
    labels = {member.id: (member.entry.label, member.seed) for shard in job.shards for member in shard.members}
    after = {label: found[id][AFTER_BASE] for id, label in labels.items()}
    for (label, seed), row in after.items():
        np.testing.assert_allclose(row, after["finetune", seed], atol=1e-6, err_msg=label)
    assert not np.allclose(after["finetune", 0], after["finetune", 1])
    assert after["finetune", 0][TEST, ACCURACY, 0] > 0.6, "the base has learned its task"
    assert progress.steps == 2 * (150 + 7 * 2 * 20)


def test_the_base_is_the_first_task_of_a_run_of_its_own_settings(data: Data, tmp_path: Path) -> None:
    own = replace(
        PLAIN, {"base": None, "optimizer": BASE.optimizer, "schedule": BASE.schedule, "steps": 150, "batch_size": 16}
    )
    assert trunk.trunk_of(PLAIN) == own
    one = records(_done(job_of(tmp_path / "a", entries_of("x", own), seeds=1), data))
    other = records(_done(job_of(tmp_path / "b", entries_of("x", PLAIN), seeds=1), data))
    np.testing.assert_array_equal(next(iter(one.values()))[AFTER_BASE], next(iter(other.values()))[AFTER_BASE])


def test_unshared_bases_give_the_same_results(data: Data, tmp_path: Path) -> None:
    entries = ENTRIES[1:3]
    shared = records(_done(job_of(tmp_path / "a", entries, seeds=1), data))
    unshared = records(_done(job_of(tmp_path / "b", entries, shared=False, seeds=1), data))
    for id, record in shared.items():
        np.testing.assert_array_equal(record, unshared[id])


def test_no_share_of_old_examples_is_fine_tuning(data: Data, tmp_path: Path) -> None:
    job = job_of(tmp_path, (ENTRIES[0], *ENTRIES[4:6]), seeds=1)
    found = records(_done(job, data))
    by_name = {
        (member.entry.label, getattr(member.entry.run.methods.get("mixture"), "share", None)): found[member.id]
        for shard in job.shards
        for member in shard.members
    }
    np.testing.assert_allclose(by_name["finetune", None], by_name["mixture", 0.0], atol=1e-6)
    assert not np.allclose(by_name["finetune", None], by_name["mixture", 0.5], atol=1e-3)


@pytest.mark.parametrize("base", [Sgd(), "pretrained", Pretrained])
def test_what_is_no_base_is_refused(base: object) -> None:
    with pytest.raises(UserError, match=r"base: expected Pretrained\(\) or Weights\(\) or None"):
        check_parts(replace(PLAIN, {"base": base}), "x")


def _done(job, data: Data):
    run_all(job, data)
    return job.shards

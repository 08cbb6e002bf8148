"""An earlier run for others to continue from, and how the tests run one: in programs that they share."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from cl_jax import runner, sweep, trunk
from cl_jax.compiled import Programs
from tests.test_sweep import Silent, records

CONFIG = """
from cl_jax.adapters import Lora
from cl_jax.config import replace
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.methods import Ewc, Replay
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted

base = Run(
    stream=Permuted(num_tasks=4), model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.2), steps=20, batch_size=8
)
ewc = replace(base, {"methods": {"ewc": Ewc(kind="empirical")}})
both = replace(base, {"methods": {"ewc": Ewc(kind="empirical"), "replay": Replay(capacity=30)}})
lora = replace(base, {"adapter": Lora(rank=2, first_task="lora")})
wild = replace(base, {"optimizer.learning_rate": 1e6})
"""
FINETUNE, WILD = "*sweep('finetune', base),", "*sweep('wild', wild),"
BOTH = "*sweep('both', both, {'methods.ewc.strength': [1.0, 10.0]}),"
EWC = "*sweep('ewc', ewc, {'methods.ewc.strength': [10.0]}),"
PROGRAMS = Programs(devices=jax.devices()[:1])


def write(path: Path, entries: str, seeds: tuple[int, ...] = (0, 1), name: str = "test") -> Path:
    text = f"experiment = Experiment(name={name!r}, description='', entries=({entries}), seeds={seeds})"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{CONFIG}\n{text}\n")
    return path


def run(path: Path, out: Path, from_: str | None = None, keep: int | None = None, **progress: Any) -> runner.Job:
    """As `cl-jax run --width 2`, in the programs that the tests share."""
    job = runner.prepare(path, out, width=2, from_=from_)
    out.mkdir(exist_ok=True)
    (out / "experiment.json").write_text(json.dumps({"name": job.experiment.name, "description": ""}))
    if job.forks is not None:
        job.forks.write(out)
    said, trunks = Silent(**progress), trunk.Trunks(job.trunks, job.trunk_of)
    for shard in job.shards:
        data = job.data[shard.members[0].entry.run.data, 0.1]
        sweep.run_shard(shard, data, said, PROGRAMS, trunks, forks=job.forks, keep=keep)
    runner.gather(job)
    return job


def by_name(job: runner.Job) -> dict[tuple[str, float | None, int], np.ndarray]:
    """Records by label, strength and seed."""
    found = records(job.shards)
    return {
        (m.entry.label, getattr(m.entry.run.methods.get("ewc"), "strength", None), m.seed): found[m.id]
        for shard in job.shards
        for m in shard.members
    }


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> runner.Job:
    """A run of three groups with the checkpoints of all its boundaries."""
    folder = tmp_path_factory.mktemp("parent")
    return run(write(folder / "parent.py", FINETUNE + BOTH + WILD), folder / "before")

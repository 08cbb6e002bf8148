"""Diagnostics where a run does not simply start, on data that simply is there: continued runs, streamed data."""

from pathlib import Path

import jax
import numpy as np
import pytest

from cl_jax import runner, sources, sweep
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import split_source
from cl_jax.diagnostics import table
from cl_jax.experiment import sweep as entries_of
from tests.earlier_run import parent as parent
from tests.earlier_run import run, write
from tests.test_sweep import BASE, Silent, shards_of

pytestmark = pytest.mark.slow  # programs of their own
ASKED = "{'diagnostics': ('parameter_drift', 'forward_kl', 'plasticity')}"


def test_a_continued_run_knows_the_weights_from_there_on(parent: runner.Job, tmp_path: Path) -> None:
    file = write(tmp_path / "a.py", f"*sweep('finetune', replace(base, {ASKED})),")
    job = run(file, tmp_path / "out", f"{parent.out}:2:finetune")
    found = table.read_table(job.out)
    assert found is not None
    pairs: dict[str, set[tuple[int, int | None]]] = {}
    for row in found.to_pylist():
        pairs.setdefault(row["quantity"], set()).add((row["after_task"], row["task"]))
    assert pairs["distance"] == pairs["fisher_distance"] == {(3, 2), (4, 2), (4, 3)}
    assert pairs["forward_kl"] == {(after, task) for after in (3, 4) for task in range(1, after + 1)}
    assert pairs["weight_norm"] == {(2, None), (3, None), (4, None)} and "distance_from_start" not in pairs


def test_streamed_is_resident(tmp_path: Path) -> None:
    asked = replace(BASE, {"diagnostics": ("forward_kl", "stability_gap", "gradient_interference")})
    found = []
    for name, budget in (("resident", None), ("streamed", 50_000)):
        data = split_source(sources.load("digits"), 0.1, budget=budget)
        (shard,) = shards_of(tmp_path / name, entries_of("finetune", asked), seeds=2)
        sweep.run_shard(shard, data, Silent(), Programs(devices=jax.devices()[:1]))
        read = table.read_part(shard.folder, shard.members)
        assert read is not None
        found.append(read[0])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)
    assert np.isfinite(found[0]).any()

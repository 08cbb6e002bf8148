"""Evaluating the newest tasks alone: what is measured is what it was, the rest is NaN, and no number comes of it."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import cli, evaluate, metrics, plan, results, sources, sweep
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.experiment import Experiment, Mlp, Run, members
from cl_jax.experiment import sweep as entries_of
from cl_jax.models.mlp import mlp
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted
from cl_jax.tasks.stream import View, make_curriculum
from tests.test_sweep import Silent

PROGRAMS = Programs(devices=jax.devices()[:1])
BASE = Run(
    stream=Permuted(num_tasks=4), model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.2), steps=20, batch_size=8
)


@pytest.fixture(scope="module")
def data() -> Data:
    return split_source(sources.load("digits"), 0.1)


def test_a_row_is_a_part_of_the_whole_row(data: Data) -> None:
    recent = 2
    stream, model = Permuted(num_tasks=4).build(data), mlp((9,), 10)
    view, curriculum = View(stream, "domain"), make_curriculum(jax.random.key(3), stream, data)
    several = jax.vmap(lambda key: model.init(key, jnp.zeros((1, 64))))(jax.random.split(jax.random.key(1), 2))

    @jax.jit
    def rows(after: jax.Array) -> Any:
        def row(params: Any, **given: Any) -> jax.Array:
            return evaluate.evaluate(model, lambda task: params, view, curriculum, data, after, **given)

        return jax.vmap(row)(several), jax.vmap(lambda params: row(params, recent=recent))(several)

    for after in range(5):
        whole, part = map(np.asarray, rows(jnp.int32(after)))
        known = [task for task in range(4) if after in (0, 4) or after - recent <= task < after]
        np.testing.assert_allclose(part[..., known], whole[..., known], rtol=1e-6)
        assert np.isnan(np.delete(part, known, axis=-1)).all() and np.isfinite(whole).all()
        first, end = evaluate.evaluated_tasks(4, after, recent)
        assert list(range(int(first), int(end))) == known
        assert list(map(int, evaluate.evaluated_tasks(4, after, None))) == [0, 4]
    assert [int(evaluate.evaluated_tasks(4, after, 1)[0]) for after in range(5)] == [0, 0, 1, 2, 0]


@pytest.fixture(scope="module")
def tables(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[int | None, Any]:
    """Two rates, of which the second diverges, by `recent`; what each member's results table holds."""
    found = {}
    for recent in (None, 1):
        entries = entries_of("x", replace(BASE, {"recent": recent}), {"optimizer.learning_rate": [0.2, 1e6]})
        everyone = members(Experiment(name="x", description="", entries=entries, seeds=(0,)), {"digits": "sha"})
        out = tmp_path_factory.mktemp("recent")
        (shard,) = plan.make_plan(out, everyone, 2, lambda member: 1000)
        sweep.run_shard(shard, data, Silent(), PROGRAMS)
        read = sweep.read_record(shard)
        assert read is not None and read.diverged.tolist() == [False, True]
        results.write_table(out / results.RESULTS, results.rows(shard.members, *read))
        table = results.read_table(out)
        found[recent] = metrics.accuracy_matrices(table, [member.id for member in everyone], "test", 4), table.num_rows
    return found


@pytest.mark.slow
def test_metrics_that_need_no_more_are_what_they_were(tables: dict[int | None, Any]) -> None:
    (whole, initial), rows = tables[None]
    (part, same), fewer = tables[1]
    np.testing.assert_array_equal(same, initial)
    known = np.eye(4, dtype=bool) | (np.arange(4) == 3)[:, None]
    np.testing.assert_array_equal(np.isnan(part), np.broadcast_to(~known, part.shape))
    np.testing.assert_allclose(part[:, known], whole[:, known], atol=1e-6)  # the diverged member too
    for metric in (metrics.average_accuracy, metrics.learning_accuracy, metrics.backward_transfer):
        np.testing.assert_allclose(metric(part), metric(whole), atol=1e-6)
    assert np.isnan(metrics.forgetting(part)).all() and np.isnan(metrics.average_incremental_accuracy(part)).all()
    # Of each member, split and metric: 4 before training, 3 on the diagonal and the last 4, of 20.
    assert rows == 2 * 2 * 2 * 20 and fewer == 2 * 2 * 2 * 11


CONFIG = """
from cl_jax.config import replace
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.methods import L2
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted

base = Run(
    stream=Permuted(num_tasks=4, permutations="derived"), model=Mlp(hidden=(8,)), optimizer=Sgd(), passes=1, recent=1
)
l2 = replace(base, {"methods": {"l2": L2()}})
experiment = Experiment(
    name="long", description="", seeds=(0, 1),
    entries=(*sweep("finetune", base), *sweep("l2", l2, {"methods.l2.strength": [1.0, 10.0]})),
)
"""


@pytest.mark.slow
def test_a_long_stream_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "config.py", tmp_path / "out"
    config.write_text(CONFIG)
    cli.main(["plan", str(config), "--out", str(out)])
    said = capsys.readouterr().out
    assert "1 pass is 40 steps a task; up to 14 of a task's 1294 examples are left out of each" in said
    cli.main(["run", str(config), "--out", str(out)])
    said = capsys.readouterr().out
    assert "finetune" in said and "l2" in said and "Traceback" not in said
    assert (out / "report" / "report.html").is_file()
    with pytest.raises(SystemExit):
        cli.main(["run", str(config), "--out", str(tmp_path / "halved"), "--halving", "2"])
    assert "--halving 2: compares accuracy on all tasks so far" in capsys.readouterr().err

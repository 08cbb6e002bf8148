"""Adapters that give every task weights of its own, through the sweep engine: each task is evaluated with its own."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import checks, plan, program, sources, sweep
from cl_jax.adapters import Packnet, TaskLora, Xdg
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Experiment, Mlp, Resnet18, Run, members
from cl_jax.experiment import sweep as entries_of
from cl_jax.methods import Ewc, Replay
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted

TASKS = 3
BASE = Run(
    stream=Permuted(num_tasks=TASKS),
    model=Mlp(hidden=(16,)),
    optimizer=Sgd(learning_rate=0.1, use_momentum=True, momentum=0.8),
    steps=60,
    batch_size=16,
)
PROGRAMS = Programs(devices=jax.devices()[:1])


class Silent:
    """Progress that says nothing."""

    def compiling(self, shard: plan.Shard) -> None: ...
    def restored(self, member_steps: int) -> None: ...
    def advanced(self, shard: plan.Shard, task: int, member_steps: int) -> None: ...
    def say(self, message: str) -> None: ...


@pytest.fixture(scope="module")
def data() -> Data:
    return split_source(sources.load("digits"), 0.1)


def record_of(run: Run, data: Data, folder: Path, axes: Any = None) -> np.ndarray:
    """float32 [members, T + 1, splits, metrics, T]."""
    experiment = Experiment(name="test", description="", entries=entries_of("one", run, axes), seeds=(0, 1))
    (shard,) = plan.make_plan(folder, members(experiment, {"digits": "sha"}), 4, lambda member: 1000)
    sweep.run_shard(shard, data, Silent(), PROGRAMS)
    read = sweep.read_record(shard)
    assert read is not None and not read[1].any()
    return read[0]


@pytest.mark.parametrize(
    ("adapter", "axes"),
    [
        (Packnet(), {"adapter.share": [0.5, 0.75]}),
        pytest.param(TaskLora(cumulative=True), {"adapter.alpha": [2.0, 4.0]}, marks=pytest.mark.slow),
    ],
    ids=["packnet", "task_lora"],
)
def test_a_task_keeps_its_weights_and_its_row(adapter: Any, axes: Any, data: Data, tmp_path: Path) -> None:
    """Whatever comes later, bitwise: the accuracy and loss of a task are those right after it."""
    record = record_of(replace(BASE, {"adapter": adapter}), data, tmp_path, axes)
    for task in range(TASKS):
        for after in range(task + 2, TASKS + 1):
            np.testing.assert_array_equal(record[:, after, :, :, task], record[:, task + 1, :, :, task])
        # Its own weights learned it, and those that came before did not.
        own, before = record[:, task + 1, 1, 0, task], record[:, task, 1, 0, task]
        assert (own > 0.45).all() and (own > before + 0.15).all()
    assert len({row.tobytes() for row in record}) == len(record)  # swept, so none is another


def test_each_task_is_evaluated_through_its_own_gates(data: Data) -> None:
    """The row after two tasks, against a NumPy network with every unit's gate."""
    run = jax.tree.map(np.float32, replace(BASE, {"adapter": Xdg(share=0.5), "methods": {"ewc": Ewc()}}))
    seed = jnp.int32(3)

    @jax.jit
    def life(data: Data) -> Any:
        curriculum, params = program.drawn(program.world_of(run), seed, data)
        state = program.init(run, seed, curriculum, params, data)

        def one(state: Any, task: jax.Array) -> Any:
            state, _ = program.steps(run, seed, curriculum, state, data, task, jnp.int32(0), run.steps)
            return program.end_task(run, seed, curriculum, state, data, task)

        state, _ = jax.lax.scan(one, state, jnp.arange(2, dtype=jnp.int32))
        shown = (state.base, state.trainable)
        return curriculum, shown, program.row(program.evaluation_of(run), curriculum, shown, data, jnp.int32(2))

    curriculum, (gates, params), row = jax.tree.map(np.asarray, life(data))
    assert gates["dense_0"].sum(axis=1).tolist() == [8] * TASKS
    images, labels = np.asarray(data.images).reshape(len(data.labels), -1) / 16, np.asarray(data.labels)
    first, size = data.bounds("test")
    x, y = images[first : first + size], labels[first : first + size]
    for task in range(TASKS):
        hidden = x[:, curriculum.tables[task]] @ params["dense_0"]["kernel"] + params["dense_0"]["bias"]
        hidden = np.maximum(hidden, 0) * gates["dense_0"][task]
        logits = hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]
        np.testing.assert_allclose(row[1, 0, task], (logits.argmax(axis=1) == y).mean(), atol=1e-6)
    assert (row[1, 0, :2] > 0.6).all()


def test_what_does_not_go_together_is_told(data: Data) -> None:
    for changes, message in (
        ({"adapter": Xdg(), "methods": {"replay": Replay(capacity=20)}}, "under adapter Xdg have weights of their own"),
        ({"adapter": Xdg(), "model": Resnet18(width=4)}, "adapter xdg silences units, but the model normalises them"),
        ({"adapter": Packnet(), "model": Mlp(hidden=())}, "adapter.own_head: the model's one layer, dense_0"),
    ):
        with pytest.raises(UserError, match=message):
            checks.check_run(replace(BASE, changes), data, "here")
    checks.check_run(replace(BASE, {"adapter": Xdg(), "methods": {"ewc": Ewc()}}), data, "here")

"""Diagnostics in the sweep: they change nothing, resume bitwise, compile once, and agree with what the engine knows."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from cl_jax import plan, sources, sweep
from cl_jax.adapters import Freeze, Lora
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.diagnostics import DIAGNOSTICS, table
from cl_jax.diagnostics.columns import layout
from cl_jax.diagnostics.cost import SECONDS
from cl_jax.experiment import Cnn, Entry, Mlp, Resnet18, Run, address, hyper_parameters
from cl_jax.experiment import sweep as entries_of
from cl_jax.methods import Ewc, Replay, ShrinkPerturb
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted, Split
from tests.test_sweep import Silent, records, shards_of

OFF = Run(
    stream=Permuted(num_tasks=3),
    model=Mlp(hidden=(8, 6)),
    optimizer=Sgd(learning_rate=0.2),
    methods={"ewc": Ewc(anchors="online"), "replay": Replay(capacity=30)},
    steps=20,
    batch_size=8,
)
ON = replace(OFF, {"diagnostics": tuple(DIAGNOSTICS)})
TRACED: list[str] = []
PROGRAMS = Programs(TRACED.append, jax.devices()[:1])
Found = dict[tuple[str, str, int, int, float], float]  # (quantity, layer, after, task, at) -> value


@pytest.fixture(scope="module")
def data() -> Data:
    return split_source(sources.load("digits"), 0.1)


def run(out: Path, of: Run, data: Data, **progress: int) -> list[plan.Shard]:
    return run_shards(out, entries_of("both", of, {"methods.ewc.strength": [1.0, 10.0]}), data, **progress)


def run_shards(out: Path, entries: tuple[Entry, ...], data: Data, **progress: int) -> list[plan.Shard]:
    shards = shards_of(out, entries, seeds=2)
    for shard in shards:
        sweep.run_shard(shard, data, Silent(**progress), PROGRAMS)
    return shards


def numbers(shard: plan.Shard) -> list[Found]:
    """What was measured of each member."""
    read = table.read_part(shard.folder, shard.members)
    assert read is not None
    values, columns = read
    found: list[Found] = []
    for member in values:
        each = {}
        for after, i in np.argwhere(~np.isnan(member)):
            what, at = (str(columns.quantity[i]), str(columns.layer[i])), float(np.nan_to_num(columns.at[i], nan=-1))
            each[*what, int(after), int(columns.task[i]), at] = member[after, i]
        found.append(each)
    return found


@pytest.fixture(scope="module")
def on(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[plan.Shard, list[str]]:
    TRACED.clear()
    (shard,) = run(tmp_path_factory.mktemp("on"), ON, data)
    return shard, list(TRACED)


def test_two_more_programs_a_group(on: tuple[plan.Shard, list[str]]) -> None:
    counts = {name: on[1].count(name) for name in set(on[1])}
    assert counts == {"world": 1, "row": 1, "init": 1, "steps": 1, "end_task": 1, "diagnose": 1, "shown": 1}


def test_results_are_bitwise_those_without(on: tuple[plan.Shard, list[str]], data: Data, tmp_path: Path) -> None:
    (off,) = run(tmp_path, OFF, data)
    for with_, without in zip(on[0].members, off.members, strict=True):
        np.testing.assert_array_equal(records([on[0]])[with_.id], records([off])[without.id])
    assert not (off.folder / table.PART).exists()


@pytest.mark.parametrize("task", [1, 2])
def test_resumed_is_uninterrupted(task: int, on: tuple[plan.Shard, list[str]], data: Data, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ON, data, stop_at_task=task)
    (shard,) = run(tmp_path, ON, data)
    ours, theirs = (table.read_part(each.folder, each.members) for each in (shard, on[0]))
    assert ours is not None and theirs is not None
    same = ours[1].quantity != SECONDS
    np.testing.assert_array_equal(ours[0][:, :, same], theirs[0][:, :, same])
    assert (ours[0][:, 1:, ~same] > 0).all() and np.isnan(ours[0][:, 0, ~same]).all()


def test_the_walk_into_the_next_task_is_the_training_that_follows(on: tuple[plan.Shard, list[str]]) -> None:
    """The probe holds every validation example, so that step 0 and the last one are rows of the accuracy matrix."""
    for member, found in zip(on[0].members, numbers(on[0]), strict=True):
        accuracy = records([on[0]])[member.id][:, 0, 0]  # of the validation split
        for after in (1, 2):
            for task in range(1, after + 1):
                start, end = (found["accuracy_at_step", "", after, task, step] for step in (0, 20))
                assert start == pytest.approx(accuracy[after, task - 1], abs=1e-6)
                assert end == pytest.approx(accuracy[after + 1, task - 1], abs=1e-6)
                assert found["minimum_accuracy", "", after, task, -1] <= min(end, 1)


def test_weights_are_measured_as_they_were_evaluated(data: Data, tmp_path: Path) -> None:
    """Not as the next task will find them."""
    norms = []
    for name, methods in (("plain", {}), ("shrunk", {"shrink": ShrinkPerturb(shrink=0.5, perturb=0.0)})):
        of = dataclasses.replace(OFF, methods=methods, diagnostics=("plasticity", "parameter_drift"))
        (shard,) = run_shards(tmp_path / name, entries_of(name, of), data)
        (found, *_) = numbers(shard)
        norms.append([found["weight_norm", "", after, 0, -1] for after in range(4)])
    plain, shrunk = norms
    np.testing.assert_allclose(shrunk[:2], plain[:2], rtol=1e-5)
    assert shrunk[2] < 0.9 * plain[2]


def test_every_diagnostic_has_numbers_where_it_is_defined(on: tuple[plan.Shard, list[str]]) -> None:
    (found, *_) = numbers(on[0])
    seen: dict[str, set[tuple[int, int]]] = {}
    for quantity, _, after, task, _ in found:
        seen.setdefault(quantity, set()).add((after, task))
    pairs, boundaries = {(2, 1), (3, 1), (3, 2)}, {(after, 0) for after in range(4)}
    between, later = {(1, 1), (2, 1), (2, 2)}, {(2, 0), (3, 0)}
    assert seen == {
        **dict.fromkeys(("fisher_overlap", "feature_similarity", "path_loss", "distance", "fisher_distance"), pairs),
        **dict.fromkeys(("accuracy_at_step", "minimum_accuracy", "gradient_cosine"), between),
        **dict.fromkeys(("shared_weights", "weight_participation", "feature_participation"), later),
        **dict.fromkeys(("dead_units", "effective_rank", "weight_norm", "distance_from_start"), boundaries),
        **dict.fromkeys(("parameters", "bytes", "operations"), boundaries),
        "seconds": {(after, 0) for after in (1, 2, 3)},
        "forward_kl": pairs | {(1, 1), (2, 2), (3, 3)},
        **{name: {(after, task) for after in (2, 3) for task in (1, 2, 3)} for name in ("base_kl", "lost", "gained")},
    }
    assert all(np.isfinite(value) for value in found.values())


def test_costs_are_counted(on: tuple[plan.Shard, list[str]]) -> None:
    (found, *_) = numbers(on[0])
    weights = 64 * 8 + 8 + 8 * 6 + 6 + 6 * 10 + 10
    assert found["parameters", "", 3, 0, -1] == found["parameters", "trainable", 3, 0, -1] == weights
    assert found["bytes", "parameters", 3, 0, -1] == 4 * weights
    assert found["bytes", "methods.ewc", 3, 0, -1] >= 8 * weights  # a Fisher and an anchor
    assert found["bytes", "methods.replay", 3, 0, -1] >= 8 * 30  # references
    # Two passes of 16 rows, and one of 16 forward, through the matrices; everything else on top.
    assert found["operations", "", 3, 0, -1] > 2 * 16 * (2 * 64 * 8 + 3 * 8 * 6 + 3 * 6 * 10)


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": Split(num_tasks=5), "scenario": "class"},
        {"adapter": Lora(rank=2), "stream": Permuted(num_tasks=1)},
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in (
                {"stream": Split(num_tasks=5), "scenario": "task", "model": Cnn(channels=(4,), hidden=(8,))},
                {"adapter": Freeze(pattern="dense_0/")},
                {"model": Resnet18(width=4)},
            )
        ),
    ],
)
def test_every_scenario_model_and_adapter_is_understood(changes: dict, data: Data) -> None:
    """Shapes alone: whatever is asked for exists."""
    held = layout(replace(ON, {"methods": {}, **changes}), data)
    tasks = ON.stream.num_tasks if "stream" not in changes else changes["stream"].num_tasks
    assert held.columns.task.max() == tasks and len(set(held.columns.quantity)) == 23
    assert all(leaf.shape[0] == tasks + 1 for leaf in jax.tree.leaves(held.kept))


def test_nothing_is_kept_unless_a_diagnostic_asks_for_it(data: Data) -> None:
    assert layout(replace(OFF, {"diagnostics": ("plasticity", "fisher_overlap")}), data).kept == ()
    weights = 64 * 8 + 8 + 8 * 6 + 6 + 6 * 10 + 10
    assert layout(replace(OFF, {"diagnostics": ("forward_kl",)}), data).kept_bytes == 4 * 4 * weights


def test_off_has_the_address_it_had_before_there_were_diagnostics() -> None:
    run = Run(methods={"ewc": Ewc()})
    assert "diagnostics" not in hyper_parameters(run)
    assert address(Entry(label="ewc", run=run), 3, "sha") == "40f4e752546a"
    some = dataclasses.replace(run, diagnostics=("plasticity", "cost"))
    assert hyper_parameters(some)["diagnostics"] == "plasticityxcost"

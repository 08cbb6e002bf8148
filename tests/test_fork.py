"""What members take over at a boundary: against the member's life written out, and by the rules alone."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import checkpoint, fork, program, runner, sources
from cl_jax.adapters import Freeze, Full, Lora
from cl_jax.data import Data, split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Entry, Run, hyper_parameters
from cl_jax.methods import Ewc, Replay
from cl_jax.optimizers import Adam, Sgd
from cl_jax.plan import Shard
from cl_jax.waves import crew_of, first_states, muster, to_host, train_task
from tests.earlier_run import BOTH, EWC, PROGRAMS, by_name, run, write
from tests.earlier_run import parent as parent
from tests.test_parents import FAST, RUN, ewc_run, parent_of
from tests.test_sweep import Silent

LIFE = ("make_world", "init", "end_task", "row")


@pytest.fixture(scope="module")
def data() -> Data:
    return split_source(sources.load("digits"), 0.1)


def state_at(job: runner.Job, label: str, task: int) -> tuple[dict[tuple[str, ...], np.ndarray], int]:
    """What a run's checkpoint holds of a label's first member, and its seed."""
    (shard,) = [shard for shard in job.shards if any(member.entry.label == label for member in shard.members)]
    place = next(i for i, member in enumerate(shard.members) if member.entry.label == label)
    ((step, attempt),) = [found for found in checkpoint.saved(shard.folder) if found[0] == task]
    state, _ = checkpoint.read(attempt, step)
    return {path: leaf[place] for path, leaf in checkpoint.leaves(state).items()}, shard.members[place].seed


def life(run: Run, seed: int, weights: Any, data: Data) -> np.ndarray:
    """Rows 2 to 4 of a member that has these weights after task 2, without the sweep engine."""
    jitted = {name: jax.jit(getattr(program, name)) for name in LIFE}
    jitted["steps"] = jax.jit(functools.partial(program.steps, num_steps=20))
    config, plain = (jax.tree.map(jnp.float32, one) for one in (run, program.world_of(run)))
    seed_ = jnp.int32(seed)
    world = jitted["make_world"](plain, seed_, data)
    adapted = not isinstance(run.adapter, Full)
    state = jitted["init"](config, seed_, world.curriculum, weights if adapted else world.params, data)
    state = state if adapted else state._replace(trainable=weights)
    rows = []
    for task in (1, 2, 3):
        about, present = (config, seed_, world.curriculum), jnp.int32(task)
        if task > 1:
            state, _ = jitted["steps"](*about, state, data, present, jnp.int32(0))
        state, params = jitted["end_task"](*about, state, data, present)
        rows.append(jitted["row"](plain, world.curriculum, params, data, present + 1))
    return np.stack(rows)


@pytest.mark.parametrize("entries", [EWC, "*sweep('lora', lora),"])
def test_another_method_starts_from_the_parameters_and_consolidates_the_last_task(
    entries: str, parent: runner.Job, data: Data, tmp_path: Path
) -> None:
    child = run(write(tmp_path / "a.py", entries), tmp_path / "out", f"{parent.out}:2:finetune")
    leaves, seed = state_at(parent, "finetune", 2)
    weights: Any = {}
    for path, leaf in leaves.items():
        if path[:2] == ("state", "trainable"):
            weights.setdefault(path[2], {})[path[3]] = jnp.asarray(leaf)
    (entry,) = child.experiment.entries
    found = by_name(child)[entry.label, 10.0 if entry.label == "ewc" else None, seed]
    np.testing.assert_array_equal(found[:3], by_name(parent)["finetune", None, seed][:3])
    # Another program may sum in another order; the accuracies are of 144 and 359 examples.
    np.testing.assert_allclose(found[2:], life(entry.run, seed, weights, data), rtol=1e-3, atol=8e-3)
    assert not np.allclose(found[4], by_name(parent)["finetune", None, seed][4], rtol=1e-2)


def test_a_changed_strength_goes_on_with_the_fisher_and_the_buffer(
    parent: runner.Job, data: Data, tmp_path: Path
) -> None:
    """Two tasks with strength 10 and two with 30, in the waves of the engine: the same bits."""
    other = BOTH.replace("[1.0, 10.0]", "[30.0]")
    child = run(write(tmp_path / "a.py", other), tmp_path / "out", f"{parent.out}:2:both,methods.ewc.strength=10")
    (shard,) = child.shards
    ten = [
        dataclasses.replace(m, entry=Entry(label="", run=dataclasses.replace(m.entry.run, methods=methods)))
        for m in shard.members
        for methods in [{**m.entry.run.methods, "ewc": Ewc(kind="empirical", strength=10.0)}]
    ]
    before = crew_of(dataclasses.replace(shard, members=tuple(ten)), data, PROGRAMS)
    after = crew_of(shard, data, PROGRAMS)
    (wave,), (later,) = muster(before, np.arange(2)), muster(after, np.arange(2))
    state, rows = first_states(before, wave), []
    for task in range(4):
        state = train_task(after, later if task > 1 else wave, state, task, Silent())
        state, _, row = PROGRAMS.end_task(wave, state, after.data, task)
        rows.append(to_host(wave, row))
    for place, member in enumerate(shard.members):
        found = by_name(child)["both", 30.0, member.seed]
        np.testing.assert_array_equal(found[1:], np.stack(rows)[:, place])
        assert not np.array_equal(found[4], by_name(parent)["both", 10.0, member.seed][4])


@functools.cache
def shapes(structure: Any) -> fork.Shapes:
    data = split_source(sources.load("digits"), 0.1)
    run = jax.tree.unflatten(structure, [0.5] * structure.num_leaves)
    return fork.shapes(checkpoint.leaves(program.state_shapes(run, data)._asdict()), axis=0)


def taken(child: Run, parent: Run) -> set[str]:
    """What a run takes over from another, and `initial` where the parameters are its first ones."""
    mine, theirs, model = (shapes(jax.tree.structure(one)) for one in (child, parent, RUN))
    params = {path[1:]: shape for path, shape in model.items() if path[0] == "trainable"}
    found = fork.take(hyper_parameters(child), mine, params, parent_of("p", parent), theirs)
    return {*found.fields} - {"diverged", "base"} | ({"initial"} if found.as_initial else set())


def test_what_is_taken_over() -> None:
    def but(**changes: Any) -> Run:
        return dataclasses.replace(RUN, **changes)

    adam, momentum = but(optimizer=Adam()), but(optimizer=Sgd(use_momentum=True))
    everything = {"trainable", "optimizer", "method"}
    assert taken(RUN, FAST) == everything
    assert taken(but(optimizer=Adam(beta1=0.5)), adam) == everything
    assert taken(adam, RUN) == everything - {"optimizer"}
    assert taken(momentum, RUN) == everything - {"optimizer"}
    assert taken(but(optimizer=Adam(reset=True)), adam) == everything - {"optimizer"}
    assert taken(adam, but(optimizer=Adam(reset=True))) == everything
    assert taken(but(adapter=Freeze()), RUN) == everything
    assert taken(ewc_run(1.0), ewc_run(2.0)) == everything
    assert taken(ewc_run(1.0), RUN) == everything - {"method"}
    small, large = (but(methods={"replay": Replay(capacity=size)}) for size in (30, 40))
    assert taken(small, small) == everything and taken(small, large) == everything - {"method"}
    lora, full_first = but(adapter=Lora(rank=2, first_task="lora")), but(adapter=Lora(rank=2))
    assert taken(lora, RUN) == {"initial"} == taken(full_first, RUN)
    assert taken(lora, lora) == everything
    for child in (RUN, full_first, but(adapter=Lora(rank=3, first_task="lora")), but(adapter=Lora(alpha=1.0))):
        with pytest.raises(UserError, match="cannot continue what 'p' trained with adapter 'lora'"):
            taken(child, lora)


def test_a_stopped_parent_has_no_such_boundary() -> None:
    record = np.zeros((3, 5, 2, 2, 4), np.float32)
    record[1, 2:] = np.nan
    held = fork.Boundary({("record",): record}, "")
    assert [fork.stopped(held, task).tolist() for task in (1, 2)] == [[False] * 3, [False, True, False]]


def test_names_of_paths_are_those_of_what_orbax_reads_back() -> None:
    state = Sgd(use_momentum=True).build().init({"a/b": jnp.ones(2)})
    assert list(checkpoint.leaves({"s": (state, Shard)[:1]})) == [("s", "0", "0", "trace", "a/b")]

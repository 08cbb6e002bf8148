"""Left inside a task again and again, and taken up by another process each time: the bits of an undisturbed run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from cl_jax import plan, sources, sweep, waves
from cl_jax.checkpoint import INSIDE, Checkpoints, saved, saved_inside
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.experiment import Experiment, Member, Mlp, Run, members
from cl_jax.experiment import sweep as entries_of
from cl_jax.inside import Leaving, When
from cl_jax.methods import Ewc, Replay
from cl_jax.optimizers import Sgd
from cl_jax.sweep import Stage
from cl_jax.tasks import Permuted
from cl_jax.trunk import Trunks, trunk_members

BASE = Run(
    stream=Permuted(num_tasks=2), model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.2), steps=40, batch_size=8
)
BOTH = replace(BASE, {"methods": {"ewc": Ewc(anchors="online"), "replay": Replay(capacity=30)}})
PROGRAMS = Programs(devices=jax.devices()[:1])


class Log:
    """Progress that only notes what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.done = self.trained = 0

    def compiling(self, shard: plan.Shard) -> None:
        pass

    def restored(self, member_steps: int) -> None:
        self.done += member_steps

    def advanced(self, shard: plan.Shard, task: int, member_steps: int) -> None:
        self.done += member_steps
        self.trained += member_steps

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(autouse=True)
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four calls a task."""
    monkeypatch.setattr(waves, "chunk_steps", lambda steps, most=10: 10)


@pytest.fixture(scope="module")
def data() -> Data:
    return split_source(sources.load("digits"), 0.1)


def everyone(run: Run, learning_rates: Sequence[float] = (0.2,), seeds: int = 5) -> list[Member]:
    entries = entries_of("one", run, {"optimizer.learning_rate": learning_rates})
    experiment = Experiment(name="test", description="", entries=entries, seeds=tuple(range(seeds)))
    return members(experiment, {"digits": "sha"})


def train(
    out: Path, who: Sequence[Member], data: Data, leave: Callable[[], bool], *, shared: bool = False, **about: Any
) -> Log:
    """Two members a call."""
    log, when = Log(), When(leave, **about)
    (shard,) = plan.make_plan(out, who, 2, lambda member: 1000)
    of = trunk_members(who, {"digits": "sha"}, shared=True) if shared else {}
    firsts = list({member.id: member for member in of.values()}.values())
    trunks = Trunks(plan.make_plan(out, firsts, 2, lambda member: 1000, "trunks"), of, when)
    sweep.run_shard(shard, data, log, PROGRAMS, trunks, stage=Stage(when=when))
    return log


def record(out: Path) -> bytes:
    (file,) = out.glob("shards/*/record.npz")
    return file.read_bytes()


def after(polls: int) -> Callable[[], bool]:
    """Asks to leave at the poll of that number, from 0."""
    count = iter(range(1000))
    return lambda: next(count) >= polls


def broken_off(out: Path, who: Sequence[Member], data: Data, polls: int, *, shared: bool = False) -> list[Log]:
    """Every process leaves after as many polls, until one is through."""
    logs = []
    for _ in range(60):
        try:
            return [*logs, train(out, who, data, after(polls), shared=shared)]
        except Leaving:
            logs.append(Log())
    raise AssertionError("it gets nowhere")


@pytest.mark.parametrize(("run", "shared"), [(BOTH, False), (replace(BOTH, {"methods": {"ewc": Ewc()}}), True)])
def test_left_and_resumed_is_undisturbed(run: Run, shared: bool, data: Data, tmp_path: Path) -> None:
    who = everyone(run, seeds=3)
    whole = train(tmp_path / "whole", who, data, lambda: False, shared=shared)
    logs = broken_off(tmp_path / "broken", who, data, 3, shared=shared)
    assert record(tmp_path / "broken") == record(tmp_path / "whole")
    assert len(logs) > 5
    assert logs[-1].done == whole.done - shared * 3 * 40  # what a trunk that was done by then took is not its own
    (folder,) = (tmp_path / "broken" / "shards").iterdir()
    assert not saved_inside(folder)  # nothing needs them any more
    assert {step for step, _ in saved(folder)} == {1, 2}


def test_a_diverged_member_stays_as_it_was(data: Data, tmp_path: Path) -> None:
    who = everyone(BOTH, (0.2, 1e6), seeds=2)
    train(tmp_path / "whole", who, data, lambda: False)
    broken_off(tmp_path / "broken", who, data, 3)
    assert record(tmp_path / "broken") == record(tmp_path / "whole")


@pytest.mark.parametrize("polls", [2, 4])
def test_slow_steps_are_left_in_the_middle_of_a_chunk(
    polls: int, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of ten steps are cut into calls of two; one member diverges, and is put back to where its chunk began."""
    who = everyone(BOTH, (0.2, 1e6), seeds=2)
    train(tmp_path / "whole", who, data, lambda: False)
    monkeypatch.setattr(waves, "call_steps", lambda run, data, wave: 2)
    train(tmp_path / "cut", who, data, lambda: False)
    broken_off(tmp_path / "broken", who, data, polls + 7)  # seven polls a chunk at least
    assert record(tmp_path / "cut") == record(tmp_path / "broken") == record(tmp_path / "whole")


def test_whoever_leaves_in_the_middle_of_a_chunk_has_saved_its_beginning(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waves, "call_steps", lambda run, data, wave: 2)
    who = everyone(BOTH, seeds=2)
    with pytest.raises(Leaving):
        train(tmp_path / "out", who, data, after(8))  # one before the wave, five in its first chunk, two in its second
    log = train(tmp_path / "out", who, data, lambda: False)
    assert any("from step 10 on" in each for each in log.said)


def test_data_that_streams(tmp_path: Path) -> None:
    source = sources.load("digits")
    data = split_source(source, 0.1, budget=source.image_bytes // 2)
    who = everyone(BOTH, seeds=2)
    train(tmp_path / "whole", who, data, lambda: False)
    broken_off(tmp_path / "broken", who, data, 3)
    assert record(tmp_path / "broken") == record(tmp_path / "whole")


def test_saved_now_and_then_for_whoever_is_killed(data: Data, tmp_path: Path) -> None:
    who = everyone(BOTH, seeds=2)
    train(tmp_path / "whole", who, data, lambda: False)
    calls = iter(range(100))

    def killed() -> bool:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", who, data, killed, every=0.0)
    (folder,) = (tmp_path / "broken" / "shards").iterdir()
    assert [number // INSIDE for number, _ in saved_inside(folder)] == [1, 1]  # the newest two, both of the second task
    log = train(tmp_path / "broken", who, data, lambda: False)
    assert "continues inside task 2, 2 members from step 20 on" in log.said[0] and log.trained == 2 * 20
    assert record(tmp_path / "broken") == record(tmp_path / "whole")


def test_a_torn_step_inside_a_task(data: Data, tmp_path: Path) -> None:
    """The boundary before it is taken, and the log says so."""
    who = everyone(BOTH, seeds=2)
    train(tmp_path / "whole", who, data, lambda: False)
    with pytest.raises(Leaving):
        train(tmp_path / "broken", who, data, after(7))
    (folder,) = (tmp_path / "broken" / "shards").iterdir()
    ((number, attempt),) = saved_inside(folder)
    assert number // INSIDE == 1 and number % INSIDE > 0
    for file in (attempt / str(number) / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-500])
    log = train(tmp_path / "broken", who, data, lambda: False)
    assert f"{attempt.name}/{number} refused" in log.said[0] and "continues after task 1 of 2" in log.said[1]
    assert record(tmp_path / "broken") == record(tmp_path / "whole") and log.trained == 2 * 40


def test_steps_inside_tasks_are_ordered_among_boundaries(tmp_path: Path) -> None:
    def tree(value: int) -> dict[str, np.ndarray]:
        return {"a": np.full(3, value, np.float32)}

    boundary = Checkpoints(tmp_path, print, attempt="attempt-a")
    boundary.save(1, tree(1))
    boundary.wait()
    boundary.save_inside(1, 5, tree(15))
    Checkpoints(tmp_path, print, attempt="attempt-b").save_inside(1, 9, tree(19))
    assert [number - INSIDE for number, _ in saved_inside(tmp_path)] == [9, 5]
    tasks, state, inside = boundary.restore_furthest(tree(0), tree(0)) or (0, tree(0), False)
    assert (tasks, float(state["a"][0]), inside) == (1, 19.0, True)
    assert boundary.restore(tree(0))[1]["a"][0] == 1  # pyright: ignore[reportOptionalSubscript]
    boundary.forget_inside(1)
    assert len(saved_inside(tmp_path)) == 2
    boundary.forget_inside(2)
    assert not saved_inside(tmp_path)
    boundary.close()

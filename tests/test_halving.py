"""Successive halving: who stops, what it costs, and that nobody else notices."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from cl_jax import cli, halving, runner
from cl_jax.compiled import Programs
from cl_jax.errors import UserError
from cl_jax.experiment import Entry, Member, Mlp, Run
from cl_jax.halving import Contender, Halving, boundaries, contenders, losers
from cl_jax.progress import Bar
from cl_jax.results import Record
from cl_jax.tasks import Permuted
from tests.test_sweep import records

CONFIG = """
from cl_jax.config import replace
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.methods import Ewc
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted

base = Run(
    stream=Permuted(num_tasks={tasks}), model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.2), steps=10, batch_size=8
)
ewc = replace(base, {{"methods": {{"ewc": Ewc(kind="empirical")}}}})
entries = (
    *sweep("finetune", base),
    *sweep("ewc", ewc, {{"methods.ewc.strength": [0.0, 1.0, 10.0, 3.0]}}),
    *sweep("rates", base, {{"optimizer.learning_rate": [1e6, 0.02, 0.2]}}),
    *sweep("sizes", base, {{"batch_size": [1, 8]}}),  # two static groups
)
experiment = Experiment(name="test", description="", entries=entries[:{entries}], seeds={seeds})
"""
PROGRAMS = Programs(devices=jax.devices()[:1])
EVERY_TASK = 2 * 10  # member-steps of a configuration


class Watched(Bar):
    """A bar that keeps its end, and is killed where told."""

    last: "Watched"
    kill_at: int | None = None

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        Watched.last = self

    def advanced(self, shard: Any, task: int, member_steps: int) -> None:
        if task == Watched.kill_at:
            raise KeyboardInterrupt
        super().advanced(shard, task, member_steps)


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Bar", Watched)
    monkeypatch.setattr(runner.compiled, "Programs", lambda: PROGRAMS)
    Watched.kill_at = None


def write(folder: Path, tasks: int = 5, entries: int = 10, seeds: tuple[int, ...] = (0, 1)) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.py").write_text(CONFIG.format(tasks=tasks, entries=entries, seeds=seeds))
    return folder


def run(folder: Path, halve: int | None = 2) -> runner.Job:
    job = runner.prepare(folder, folder / "out", width=2, halve=halve)
    runner.run(job, quiet=True, parallel=1)
    return job


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> tuple[runner.Job, Bar]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Bar", Watched)
        patch.setattr(runner.compiled, "Programs", lambda: PROGRAMS)
        return run(write(tmp_path_factory.mktemp("halved"))), Watched.last


def ends(job: runner.Job) -> dict[tuple[str, Any], int]:
    """Tasks that each configuration trained, by label and what its label's configurations differ in."""
    assert job.halving is not None
    found = {}
    for shard in job.shards:
        for member in shard.members:
            run = member.entry.run
            about = run.methods["ewc"].strength if run.methods else run.optimizer.learning_rate
            about = run.batch_size if member.entry.label == "sizes" else about
            end = job.halving.stopped.get(member.id, run.stream.num_tasks)
            assert found.setdefault((member.entry.label, about), end) == end  # with all its seeds
    return found


def test_half_of_each_method_goes_on_at_each_boundary(halved: tuple[runner.Job, Bar]) -> None:
    found = ends(halved[0])
    assert found.pop(("finetune", 0.2)) == 5  # alone under its label
    assert sorted(end for (label, _), end in found.items() if label == "ewc") == [2, 2, 4, 5]
    assert sorted(end for (label, _), end in found.items() if label == "rates") == [2, 4, 5]
    assert found["rates", 1e6] == 2  # diverged
    assert (found["sizes", 1], found["sizes", 8]) == (2, 5)  # nothing is left of one shard


def test_it_costs_what_the_arithmetic_says_and_the_bar_ends_full(halved: tuple[runner.Job, Bar]) -> None:
    job, bar = halved
    # Task 1 at three rates and another size; then the strengths, fine-tuning, the rates, of which one has diverged, and
    # the sizes.
    assert bar.trained == EVERY_TASK * (4 + (4 + 2 + 2 + 1) + 4 + (2 + 2 + 2 + 1) + (2 + 1 + 1 + 1))
    assert bar._done == bar._total == bar.trained + EVERY_TASK  # what the diverged one would have trained
    assert job.steps_to_do == 0 and all(shard.done for shard in job.shards)


def test_who_goes_on_does_not_notice(halved: tuple[runner.Job, Bar], tmp_path: Path) -> None:
    found, everyone = records(halved[0].shards), records(run(write(tmp_path / "whole"), halve=None).shards)
    stopped = halved[0].halving.stopped if halved[0].halving else {}
    assert len(found) == len(everyone) == 20 and len(stopped) == 12
    for name, record in found.items():
        rows = stopped.get(name, 5) + 1
        np.testing.assert_array_equal(record[:rows], everyone[name][:rows])
        assert np.isnan(record[rows:]).all()


def test_the_best_at_the_boundary_are_those_of_the_records(halved: tuple[runner.Job, Bar]) -> None:
    """By hand, from the table's rows of the strengths."""
    job, found = halved[0], ends(halved[0])
    (shard,) = [shard for shard in job.shards if shard.members[0].entry.label == "ewc"]
    read = records([shard])
    for boundary in (2, 4):
        going = [one for one in (0.0, 1.0, 10.0, 3.0) if found["ewc", one] >= boundary]
        score = {one: 0.0 for one in going}
        for member in shard.members:
            strength = member.entry.run.methods["ewc"].strength
            if strength in score:
                score[strength] += read[member.id][boundary, 0, 0, :boundary].mean() / 2
        best = sorted(going, key=lambda one: -score[one])[: len(going) // 2]
        assert {one for one in going if found["ewc", one] > boundary} == set(best)


@pytest.mark.parametrize("moment", [1, 2, 4, "before", "after"])
def test_killed_at_any_stage(
    moment: int | str, halved: tuple[runner.Job, Bar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "killed")
    decide = Halving.decide

    def killed(self: Halving, *arguments: Any) -> list[str]:
        if moment == "after":
            decide(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        Watched.kill_at = moment if isinstance(moment, int) else None
        if isinstance(moment, str):
            patch.setattr(Halving, "decide", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    Watched.kill_at = None
    run(folder)
    whole = halved[0].out
    for name in ("results.parquet", halving.FILE):
        assert (folder / "out" / name).read_bytes() == (whole / name).read_bytes()
    assert Watched.last._done == Watched.last._total


def test_stages_share_an_attempt(halved: tuple[runner.Job, Bar]) -> None:
    (shard,) = [shard for shard in halved[0].shards if shard.members[0].entry.label == "ewc"]
    (attempt,) = shard.folder.glob("attempt-*")
    assert sorted(step.name for step in attempt.iterdir() if step.name.isdecimal()) == ["4", "5"]


def test_the_report_tells_what_stopped(halved: tuple[runner.Job, Bar], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["report", str(halved[0].out)])
    out = " ".join(capsys.readouterr().out.split())
    assert "3 of 4 configurations stopped early (2 after task 2, 1 after task 4), never chosen" in out
    assert "2 of 3 configurations stopped early (1 after task 2, 1 after task 4), never chosen" in out


def test_what_is_refused(halved: tuple[runner.Job, Bar], tmp_path: Path) -> None:
    folder, out = halved[0].out.parent, halved[0].out

    def said(where: Path, halve: int | None, **options: Any) -> str:
        with pytest.raises(UserError) as refused:
            runner.prepare(where, where / "out", width=2, halve=halve, **options)
        return str(refused.value)

    assert "begun with --halving 2, now it is --halving 3; give the same again, or another --out" in said(folder, 3)
    assert "begun with --halving 2, now it is none;" in said(folder, None)
    assert "was begun with other configurations or seeds" in said(folder, 2, seeds=3)
    assert "--halving: was given 1; the least allowed is 2" in said(write(tmp_path / "a"), 1)
    assert "would stop nothing, for no task is left after" in said(write(tmp_path / "b", tasks=2), 2)
    assert "would stop nothing, for no method has two configurations" in said(write(tmp_path / "c", entries=1), 2)
    began = run(write(tmp_path / "d", tasks=2, entries=1), halve=None)
    assert "begun with no --halving, now it is --halving 2;" in said(began.out.parent, 2)
    kept = (out / halving.FILE).read_text()
    try:
        for broken in ("{", '{"factor": 2, "members": "", "decisions": [{"stopped": 1}]}'):
            (out / halving.FILE).write_text(broken)
            assert halving.FILE in said(folder, 2)
    finally:
        (out / halving.FILE).write_text(kept)


# The rules by themselves.


@pytest.mark.parametrize(
    ("factor", "num_tasks", "first", "expected"),
    [
        (2, 2, 0, []), (2, 3, 0, [2]), (2, 5, 0, [2, 4]), (2, 20, 0, [2, 4, 8, 16]), (3, 20, 0, [2, 6, 18]),
        (4, 8, 0, [2]), (2, 20, 4, [8, 16]), (10**9, 20, 0, [2]),
    ],
)  # fmt: skip
def test_boundaries(factor: int, num_tasks: int, first: int, expected: list[int]) -> None:
    assert boundaries(factor, num_tasks, first) == expected


@pytest.mark.parametrize(
    ("accuracy", "diverged", "factor", "expected"),
    [
        ([0.1, 0.4, 0.3, 0.2], "", 2, "ad"),
        ([0.1, 0.4, 0.3, 0.2, 0.5], "", 2, "ad"),  # the best three of five
        ([0.1, 0.4, 0.3, 0.2, 0.5], "", 3, "acd"),
        ([0.3, 0.3, 0.3], "", 2, "c"),  # ties stay in their order
        ([0.3, 0.9, 0.2], "b", 2, "b"),  # the diverged fall first
        ([0.3, 0.9, 0.2], "ab", 3, "ab"),
        ([0.3, 0.9], "ab", 2, "a"),  # one goes on, whatever it is
        ([0.3], "a", 5, ""),
    ],
)
def test_losers(accuracy: list[float], diverged: str, factor: int, expected: str) -> None:
    others = Contender("another method", ("x",), True, 0.0)
    one = [Contender("m", (name,), name in diverged, a) for name, a in zip("abcde", accuracy, strict=False)]
    assert sorted(losers([others, *one], factor)) == list(expected)


def test_contenders_of_hand_made_records() -> None:
    base = Run(stream=Permuted(num_tasks=4), model=Mlp(hidden=(8,)))
    runs = [base, Run(stream=Permuted(num_tasks=4), model=Mlp(hidden=(9,))), Run(stream=Permuted(num_tasks=3))]
    entries = [Entry(label="m", run=run) for run in runs]
    record = np.full((5, 5, 2, 2, 4), np.nan, np.float32)
    record[:, 2, 0, 0, :2] = [[0.5, 0.7], [0.1, 0.3], [0.2, 0.2], [0.6, 0.0], [0.0, 0.0]]
    read = Record(record, np.array([0, 0, 0, 1, 0], bool), np.full(5, 3, np.int32), np.zeros(5, bool))
    of = [(entries[1], 0), (entries[0], 0), (entries[0], 1), (entries[1], 1), (entries[2], 0)]
    members = [(Member(entry=entry, seed=seed, id=f"{i}"), read, i) for i, (entry, seed) in enumerate(of)]
    first, second, third = contenders(entries, members, 2)
    assert (first.members, first.diverged) == (("1", "2"), False) and first.accuracy == pytest.approx(0.2)
    assert (second.members, second.diverged) == (("0", "3"), True) and second.accuracy == pytest.approx(0.45)
    assert first.group == second.group != third.group  # other tasks; a model is a choice as any other
    assert contenders(entries, members[:4], 2) == [first, second]
    assert [one.members for one in contenders(entries, members, 3)] == [("1", "2"), ("0", "3")]  # 3 is the third's last


def test_decisions_are_in_the_output_folder(halved: tuple[runner.Job, Bar]) -> None:
    held = json.loads((halved[0].out / halving.FILE).read_text())
    assert held["factor"] == 2 and [one["after_task"] for one in held["decisions"]] == [2, 4]
    assert [len(one["stopped"]) for one in held["decisions"]] == [8, 4]

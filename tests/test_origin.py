"""Continuing from a boundary of an earlier run: what is taken over, what starts anew, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cl_jax import checkpoint, cli, origin, runner, sources, sweep
from cl_jax.errors import UserError
from tests.earlier_run import BOTH, EWC, FINETUNE, by_name, run, write
from tests.earlier_run import parent as parent


@pytest.mark.parametrize("task", [1, 3])
def test_the_same_method_goes_on_as_if_uninterrupted(task: int, parent: runner.Job, tmp_path: Path) -> None:
    child = run(write(tmp_path / "a.py", FINETUNE + BOTH), tmp_path / "out", f"{parent.out}:{task}")
    expected, found = by_name(parent), by_name(child)
    assert len(found) == 6
    for name, record in found.items():
        np.testing.assert_array_equal(record, expected[name])
    ids = {member.id for job in (parent, child) for shard in job.shards for member in shard.members}
    assert len(ids) == 8 + 6  # none is taken for one that began at the start
    about = json.loads((child.out / origin.FILE).read_text())
    assert about["from"] == f"before:{task}"
    parents = {member.id for shard in parent.shards for member in shard.members}
    assert {one["parent"] for one in about["members"].values()} < parents
    assert json.loads(next(child.out.glob("shards/*/shard.json")).read_text())["members"][0] in about["members"]


def test_from_the_first_boundary_a_penalty_is_the_run_that_shared_its_trunk(parent: runner.Job, tmp_path: Path) -> None:
    whole = run(write(tmp_path / "a.py", EWC), tmp_path / "whole")
    child = run(tmp_path / "a.py", tmp_path / "child", f"{parent.out}:1:finetune")
    expected = by_name(whole)
    for name, record in by_name(child).items():
        np.testing.assert_array_equal(record, expected[name])


def test_a_diverged_parent_gives_a_diverged_child(parent: runner.Job, tmp_path: Path) -> None:
    child = run(write(tmp_path / "a.py", EWC), tmp_path / "out", f"{parent.out}:2:wild")
    read = sweep.read_record(child.shards[0])
    assert read is not None and read.diverged.tolist() == [True, True]
    for seed in (0, 1):
        expected = by_name(parent)["wild", None, seed][2]
        np.testing.assert_array_equal(by_name(child)["ewc", 10.0, seed][2:], np.stack([expected] * 3))
    ((_, attempt),) = [found for found in checkpoint.saved(child.shards[0].folder) if found[0] == 2]
    assert checkpoint.read(attempt, 2)[0]["state"]["diverged"].tolist() == [True, True]  # before any step of its own


def test_a_stopped_child_goes_on_though_the_parent_is_gone(parent: runner.Job, tmp_path: Path) -> None:
    before, out = tmp_path / "before", tmp_path / "out"
    shutil.copytree(parent.out, before)
    path, from_ = write(tmp_path / "a.py", BOTH), f"{before}:1"
    for task in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(path, out, from_, stop_at_task=task)
    for step in before.rglob("attempt-*/1"):
        shutil.rmtree(step)
    child = run(path, out, from_)
    expected = by_name(parent)
    for name, record in by_name(child).items():
        np.testing.assert_array_equal(record, expected[name])
    with pytest.raises(UserError, match="has no checkpoint after task 1; there are those after task 2, 3, 4"):
        runner.prepare(write(path, FINETUNE), out, from_=from_)  # this one's parent was not read yet


def test_a_child_can_be_continued_too(parent: runner.Job, tmp_path: Path) -> None:
    child = run(write(tmp_path / "a.py", FINETUNE), tmp_path / "one", f"{parent.out}:1")
    grandchild = run(tmp_path / "a.py", tmp_path / "two", f"{child.out}:2")
    expected = by_name(parent)
    for name, record in by_name(grandchild).items():
        np.testing.assert_array_equal(record, expected[name])


def test_only_what_comes_after_the_boundary_is_to_do(parent: runner.Job, tmp_path: Path) -> None:
    job = runner.prepare(write(tmp_path / "a.py", FINETUNE), tmp_path / "out", from_=f"{parent.out}:3")
    assert job.steps_to_do == 2 * 20 and not job.trunks


def test_another_boundary_or_parent_makes_another_member(parent: runner.Job, tmp_path: Path) -> None:
    path, ids = write(tmp_path / "a.py", EWC), []
    for place in ("2:finetune", "3:finetune", "2:wild", "2:finetune"):
        job = runner.prepare(path, tmp_path / "out", from_=f"{parent.out}:{place}")
        ids.append(job.shards[0].members[0].id)
    assert len(set(ids)) == 3 and ids[0] == ids[3]


@pytest.mark.parametrize(("keep", "steps"), [(2, ["3", "4"]), (3, ["2", "3", "4"]), (None, ["1", "2", "3", "4"])])
def test_keep(keep: int | None, steps: list[str], tmp_path: Path) -> None:
    job = run(write(tmp_path / "a.py", FINETUNE, seeds=(0,)), tmp_path / "out", keep=keep)
    (shard,) = job.shards
    assert sorted(step.name for step in shard.folder.glob("attempt-*/[0-9]*")) == steps


# What is refused, in one message.


def refused(capfd: pytest.CaptureFixture[str], path: Path, out: Path, *words: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", str(path), "--out", str(out), *map(str, words)])
    printed, err = capfd.readouterr()
    assert stopped.value.code == 2 and printed == ""
    assert err.startswith("cl-jax: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


def test_what_is_refused(
    parent: runner.Job, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "run_shard", lambda *a, **k: pytest.fail("training began"))
    path, out, before = write(tmp_path / "a.py", FINETUNE), tmp_path / "out", parent.out

    def said(*words: object, of: Path = path) -> str:
        return refused(capfd, of, out, *words)

    assert "--from: expected RUN:TASK or RUN:TASK:LABEL" in said("--from", before)
    assert "there is no run in" in said("--from", f"{before}r:2") and "Did you mean 'before'?" in said(
        "--from", f"{before}r:2"
    )
    assert "'finetune' can be continued after task 1 to 3" in said("--from", f"{before}:4")
    assert "unknown label of --from: 'finetun'; known: both, finetune, wild. Did you" in said(
        "--from", f"{before}:2:finetun"
    )
    assert "has nothing with seed 2; its seeds: 0, 1" in said("--from", f"{before}:2:finetune", "--seeds", 3)
    ewc = write(tmp_path / "ewc.py", EWC)
    assert "choose one, RUN:TASK:LABEL, where LABEL is one of both, finetune, wild" in said(
        "--from", f"{before}:2", of=ewc
    )
    text = said("--from", f"{before}:2:both", of=write(tmp_path / "both.py", BOTH.replace("1.0,", "2.0,")))
    assert "which differ in methods.ewc.strength: 1.0, 10.0; choose one, such as RUN:TASK:both,methods" in text
    assert "has methods.ewc.strength=3; there are 1.0, 10.0" in said(
        "--from", f"{before}:2:both,methods.ewc.strength=3"
    )
    assert "unknown setting of --from: 'methods.ewc.strenth'" in said(
        "--from", f"{before}:2:both,methods.ewc.strenth=3"
    )
    other = write(tmp_path / "other.py", "*sweep('finetune', replace(base, {'model.hidden': (9,)})),")
    assert "model.hidden (9 here, 8 there)" in said("--from", f"{before}:2", of=other)
    assert "--keep: was given '0'; give all" in said("--keep", 0)
    assert not out.exists()


def test_other_data(
    parent: runner.Job, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = sources.load("digits")
    changed = dataclasses.replace(digits, train_labels=digits.train_labels[::-1].copy())
    monkeypatch.setattr(sources, "load", lambda name, folder: changed)
    text = refused(capfd, write(tmp_path / "a.py", FINETUNE), tmp_path / "out", "--from", f"{parent.out}:2:finetune")
    assert "was trained on other data than 'digits' is here (the sha256 differs)" in text


def test_checkpoints_that_are_gone_or_damaged(
    parent: runner.Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, path = tmp_path / "before", write(tmp_path / "a.py", FINETUNE)
    shutil.copytree(parent.out, before)
    for step in before.rglob("shards/finetune*/attempt-*/2"):
        largest = max((file for file in step.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(bytes(content))
    text = refused(capfd, path, tmp_path / "out", "--from", f"{before}:2:finetune")
    assert "has no good checkpoint after task 2 (attempt-" in text and "there are those after task 1, 3, 4" in text
    for step in before.rglob("shards/finetune*/attempt-*/[12]"):
        shutil.rmtree(step)
    text = refused(capfd, path, tmp_path / "out", "--from", f"{before}:2:finetune")
    assert "has no checkpoint after task 2; there are those after task 3, 4: give one of these, or train" in text
    assert "again with --keep all" in text
    shard = next(before.glob("shards/finetune*/shard.json"))
    for broken in ("{", '{"members": ["a"], "group": "g", "width": 1, "configurations": [[]]}'):
        shard.write_text(broken)
        assert "shard.json: " in refused(capfd, path, tmp_path / "out", "--from", f"{before}:3:finetune")


def test_an_output_folder_holds_what_comes_from_one_boundary(
    parent: runner.Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "a.py", FINETUNE), tmp_path / "out"
    run(path, out, f"{parent.out}:2")
    assert "begun with --from before:2, now it is --from before:3;" in refused(
        capfd, path, out, "--from", f"{parent.out}:3"
    )
    assert "begun with --from before:2, now it is none;" in refused(capfd, path, out)
    assert "begun with no --from, now it is" in refused(capfd, path, parent.out, "--from", f"{parent.out}:3")
    (out / origin.FILE).write_text('{"from": "before:2", "members": {"a": {}}}')
    assert "origin.json: is broken" in refused(capfd, path, out, "--from", f"{parent.out}:2")

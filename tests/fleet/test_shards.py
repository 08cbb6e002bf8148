"""Cutting an experiment into shards, and reading the cut again: the same each time, and nothing in it believed."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cl_jax.compiled import Programs
from cl_jax.errors import UserError
from cl_jax.fleet import sweep_file
from tests.fleet.sweeps import failed, planned


def test_the_same_cut_whenever_it_is_made(place: Path, tmp_path: Path) -> None:
    one, other = (planned(place, tmp_path / name, "--members", "2") for name in ("one", "other"))
    content = (one / "sweep.json").read_bytes()
    assert content == (other / "sweep.json").read_bytes()
    planned(place, one, "--members", "2")
    assert (one / "sweep.json").read_bytes() == content


def test_members_that_share_a_first_task_are_in_one_shard(place: Path, tmp_path: Path) -> None:
    sweep = sweep_file.read(planned(place, tmp_path / "out", "--members", "2") / "sweep.json")
    known = {member.id: member for member in sweep.checked().members()}
    seeds = [{known[name].seed for name in piece.members} for piece in sweep.shards]
    assert seeds == [{0}, {1}, {0, 1}]


def test_other_sweeps_and_runs_are_left_alone(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, experiment = planned(place, tmp_path / "out", "--members", "2"), place / "experiment.py"
    assert "another sweep is there" in failed(capsys, "shards", experiment, "--out", out, "--members", "3")
    assert "holds a sweep in shards" in failed(capsys, "run", experiment, "--out", out)
    assert "holds a run of its own" in failed(capsys, "shards", experiment, "--out", place / "whole")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--members 0", "--members: was given 0; allowed are 1 to"),
        ("--hours 0", "--hours: was given 0.0; give a number above 0"),
        ("--hours soon", "--hours: expected a number"),
        ("--members 2 --hours 1", "give one of them"),
        ("--halving 2", "unknown option '--halving' of shards"),
    ],
)
def test_sizes_that_are_none(
    words: str, message: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failed(capsys, "shards", place / "experiment.py", "--out", tmp_path / "o", *words.split())


def broken(held: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    first, *rest = held["shards"]
    return [
        ({**held, "schema": 2}, "of another version"),
        ({**held, "more": 1}, "more is missing or unknown"),
        ({**held, "shards": []}, "it has no shards"),
        ({**held, "shards": [{**first, "folder": "../elsewhere"}, *rest]}, "unexpected text '../elsewhere'"),
        ({**held, "shards": [{**first, "width": 0}, *rest]}, "expected a whole number from 1, found 0"),
        ({**held, "shards": [{**first, "width": True}, *rest]}, "expected a whole number from 1, found True"),
        ({**held, "shards": [{**first, "members": rest[0]["members"]}, *rest]}, "is in it twice"),
        ({**held, "shards": [{**first, "members": ["0" * 12]}, *rest]}, "is not of the sweep's experiment"),
        ({**held, "options": {**held["options"], "seeds": "3"}}, "expected a whole number from 1, found '3'"),
        ({**held, "experiment_sha256": "0" * 64}, "has changed since the sweep was planned"),
        ({**held, "data_sha256": {"digits": "0" * 64}}, "its data are not those"),
        ({**held, "trunks": []}, "the sweep lacks the first task"),
    ]


@pytest.mark.parametrize("number", range(12))
def test_a_sweep_file_is_not_believed(
    number: int, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held, message = broken(json.loads((place / "out" / "sweep.json").read_text()))[number]
    (tmp_path / "sweep.json").write_text(json.dumps(held))
    assert message in failed(capsys, "worker", "--sweep", tmp_path / "sweep.json", "--shard", 0)
    assert not list(tmp_path.glob("shards/*/attempt-*"))


def test_mistakes_of_a_worker_are_told(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --sweep" in failed(capsys, "worker", "--shard", 1)
    assert "give --shard" in failed(capsys, "worker", "--sweep", place / "out" / "sweep.json")
    assert "shards 0 to 2" in failed(capsys, "worker", "--sweep", place / "out" / "sweep.json", "--shard", 3)
    assert "no sweep at" in failed(capsys, "status", tmp_path)
    assert re.search(
        r"unknown engine 'rya'; known: .*\. Did you mean 'ray'\?", failed(capsys, "launch", "rya", tmp_path)
    )
    assert "Did you mean 'slurm'?" in failed(capsys, "launch", "slrum", tmp_path)
    assert "give an engine, one of ray, " in failed(capsys, "launch")


def test_a_sweep_file_reads_as_it_was_written(place: Path, tmp_path: Path) -> None:
    sweep = sweep_file.read(place / "out" / "sweep.json")
    sweep_file.write(tmp_path / "sweep.json", sweep)
    assert sweep_file.read(tmp_path / "sweep.json") == sweep
    with pytest.raises(UserError, match="another sweep is there"):
        sweep_file.write(tmp_path / "sweep.json", dataclasses.replace(sweep, code="another"))


def test_what_several_devices_would_have_held_has_several(place: Path, tmp_path: Path) -> None:
    """A program for one device rounds otherwise, so that a shard of one member must not get one."""
    out = planned(place, tmp_path / "out", "--members", "1")
    sweep = sweep_file.read(out / "sweep.json")
    known = {member.id: member for member in sweep.checked().members()}
    for shard in sweep_file.shards_of(sweep.shards, out / "shards", known):
        packing = Programs().packing(len(shard.members), shard.width, alone=shard.alone, spread=shard.spread)
        assert (len(shard.members), packing.mesh.size) == (1, 2)


def test_shards_of_hours(place: Path, tmp_path: Path) -> None:
    """A moment fits one member, a year all of a group; the widths are those of a run."""
    short, long = (
        sweep_file.read(planned(place, tmp_path / hours, "--hours", hours) / "sweep.json") for hours in ("1e-9", "9e3")
    )
    assert [len(piece.members) for piece in short.shards] == [1] * 6
    assert [len(piece.members) for piece in long.shards] == [4, 2]
    widths = [json.loads(file.read_text())["width"] for file in place.glob("whole/shards/*/shard.json")]
    assert sorted(piece.width for piece in long.shards) == sorted(widths)

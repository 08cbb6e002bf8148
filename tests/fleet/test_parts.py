"""A shard in parts, trained here one after the other: the bytes of one process, from wherever each part was left."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from cl_jax import cli, fork, parts
from cl_jax.checkpoint import Checkpoints, saved_inside
from cl_jax.compiled import Programs
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.fleet import gather, heartbeat, status, sweep_file
from cl_jax.parents import Parent
from cl_jax.plan import Shard, begin
from cl_jax.results import write_json
from cl_jax.sweep import Stage, run_shard
from tests.fleet.sweeps import beats, folder_of, planned, train
from tests.test_inside import Log

MEMBERS, TASKS, STEPS = 4, 3, 40


class Place(NamedTuple):
    """A sweep of which nothing is trained."""

    out: Path
    shard: Shard  # four seeds of replay, a member a call
    data: Data


def made(place: Path, out: Path) -> Place:
    sweep = sweep_file.read(planned(place, out, "--seeds", str(MEMBERS)) / "sweep.json")
    ready = sweep.checked()
    (shard,) = sweep_file.shards_of([sweep.shards[1]], out / "shards", {each.id: each for each in ready.members()})
    begin(shard)
    run = shard.members[0].entry.run
    return Place(out, shard, ready.data[run.data, run.validation])


@pytest.fixture
def sweep(place: Path, tmp_path: Path) -> Place:
    return made(place, tmp_path / "out")


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process publishes."""
    found = made(place, tmp_path_factory.mktemp("one") / "out")
    train(found.out, 1)
    return published(found.out)


def published(out: Path) -> dict[str, bytes]:
    folder = folder_of(out, 1)
    return {file.name: file.read_bytes() for file in [*folder.glob("*.npz"), folder / "DONE.json"]}


def trained(sweep: Place, part: Shard, until: int | None = None) -> None:
    """As a process of several does, which is killed at a boundary, or comes to its end."""
    parts.begin(part)
    run_shard(part, sweep.data, Log(), Programs(), stage=Stage(until=until))


def test_every_member_is_in_one_part(sweep: Place) -> None:
    for count in range(1, 9):
        for width in range(1, 6):
            shard = dataclasses.replace(sweep.shard, width=width)
            cut = parts.cut(shard, count)
            assert len(cut) == count and [each for part in cut for each in part.members] == list(shard.members)
            sizes = [-(-len(part.members) // width) for part in cut]  # calls of a device
            assert max(sizes) - min(sizes) <= 1 and sizes[0] == max(sizes)
            assert sum(sizes) == -(-MEMBERS // width)  # none is padded more than in one process
            assert len({part.part for part in cut if part.members}) == sum(1 for size in sizes if size)


def test_parts_become_the_shard(sweep: Place, whole: dict[str, bytes]) -> None:
    cut = parts.cut(sweep.shard, 3)
    for part in reversed(cut):
        assert not part.done
        trained(sweep, part)
        assert part.done and not sweep.shard.done
    parts.finish(sweep.shard, cut)
    assert published(sweep.out) == whole


@pytest.mark.parametrize(("ahead", "behind"), [((0, 2), (2, 3)), ((1, 4), (0, 1)), ((0, 1), (1, 4))])
def test_taken_up_where_each_part_was_left(
    ahead: tuple[int, int], behind: tuple[int, int], sweep: Place, whole: dict[str, bytes]
) -> None:
    """One member may not even have begun: nothing that was trained is trained again."""
    trained(sweep, parts.of(sweep.shard, *ahead), 2)
    trained(sweep, parts.of(sweep.shard, *behind), 1)
    train(sweep.out, 1)
    assert published(sweep.out) == whole
    done = 2 * (ahead[1] - ahead[0]) + behind[1] - behind[0]
    (beat,) = beats(sweep.out, 1)
    assert beat["trained"] == (MEMBERS * TASKS - done) * STEPS and beat["done"] == beat["total"]


def test_begun_by_one_process_and_finished_in_parts(sweep: Place, whole: dict[str, bytes]) -> None:
    run_shard(sweep.shard, sweep.data, Log(), Programs(), stage=Stage(until=2))
    cut = parts.cut(sweep.shard, 2)
    for part in cut:
        log = Log()
        parts.begin(part)
        run_shard(part, sweep.data, log, Programs())
        assert log.trained == 2 * STEPS
    parts.finish(sweep.shard, cut)
    assert published(sweep.out) == whole


def test_the_newest_step_of_one_part_is_damaged(sweep: Place, whole: dict[str, bytes]) -> None:
    """The others keep theirs where boundaries are still to be had; here all fall back by one task."""
    cut = parts.cut(sweep.shard, 2)
    for part in cut:
        trained(sweep, part, 2)
    newest = sorted(sweep.shard.folder.glob("attempt-*/2"))[0]
    file = max((file for file in (newest / "state").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    train(sweep.out, 1)
    assert published(sweep.out) == whole
    (beat,) = beats(sweep.out, 1)
    assert beat["trained"] == 2 * MEMBERS * STEPS


def test_what_parts_have_come_to_is_gathered(sweep: Place) -> None:
    ahead, behind = parts.of(sweep.shard, 0, 2), parts.of(sweep.shard, 2, 3)
    trained(sweep, ahead, 2)
    trained(sweep, behind, 1)
    lacks = gather.gather(sweep.out)
    assert [lack.number for lack in lacks] == [0, 1]
    table = pq.read_table(sweep.out / "results.parquet").to_pydict()
    last: dict[str, int] = {}
    for member, after in zip(table["member"], table["after_task"], strict=True):
        last[member] = max(after, last.get(member, 0))
    ids = [member.id for member in sweep.shard.members]
    assert last == {ids[0]: 2, ids[1]: 2, ids[2]: 1}


def test_status_adds_the_processes_of_a_try(sweep: Place) -> None:
    now, found = time.time(), sweep_file.read(sweep.out / "sweep.json")
    steps = found.shards[1].member_steps

    def beat(name: str, **about: Any) -> None:
        made = heartbeat.Beat(
            attempt=name, state="running", host="here", pid=1, started=now, beat=now, total=steps // 2, done=0,
            trained=0, doing="task 1", environment={},
        )  # fmt: skip
        made = dataclasses.replace(made, **about)
        write_json(folder_of(sweep.out, 1) / "beats" / f"{name}.json", dataclasses.asdict(made))

    def standing() -> status.Standing:
        return status.standings(sweep.out)[1]

    beat("a", group="one", processes=2, done=steps // 4)
    assert standing().share == 0.25  # the other has not said what it has to do
    beat("b", group="one", processes=2, process=1, done=steps // 2)
    assert (standing().state, standing().share) == ("running", 0.75)
    beat("a", group="one", processes=2, done=steps // 4, state="pre-empted", exit_code=75)
    failed = {"state": "failed", "exit_code": 1, "error": "Oh: no"}
    beat("b", group="one", processes=2, process=1, done=steps // 2, started=now - 1, **failed)
    assert standing().state == "failed"
    assert any("failed (1): Oh: no" in line for line in status.lines(status.standings(sweep.out), now))
    beat("c", started=now + 1, total=steps, done=steps // 8)
    assert (standing().state, standing().share) == ("running", 0.75)


def tree(*values: float) -> dict[str, np.ndarray]:
    return {"a": np.array([[value] * 3 for value in values], np.float32)}


def test_a_step_inside_a_task_stays_for_those_whose_it_is(tmp_path: Path) -> None:
    one, other = (Checkpoints(tmp_path, print, members=[name]) for name in "ab")
    one.save_inside(1, 5, tree(1))
    other.save_inside(1, 9, tree(2))
    one.forget_inside(2)
    assert [number % 10 for number, _ in saved_inside(tmp_path)] == [9]
    assert one.restore_furthest(tree(0), tree(0)) is None
    found = other.restore_furthest(tree(0), tree(0))
    assert found is not None and found[1]["a"].tolist() == tree(2)["a"].tolist()


def test_steps_without_a_list_hold_all_members(tmp_path: Path) -> None:
    write_json(tmp_path / "shard.json", {"members": ["a", "b", "c"], "group": "g", "width": 1})
    of_old = Checkpoints(tmp_path, print)
    of_old.save(1, tree(1, 2, 3))
    of_old.close()
    found = Checkpoints(tmp_path, print, members=["c", "a"]).restore(tree(0, 0))
    assert found is not None and found[1]["a"].tolist() == tree(3, 1)["a"].tolist()


def test_a_run_can_continue_from_a_part(tmp_path: Path) -> None:
    """The parent's place is that in the step which holds it; another's step is passed over, not refused."""
    record = np.zeros((1, 3, 2, 2, 2), np.float32)
    for number, name in enumerate("ab"):
        checkpoints = Checkpoints(tmp_path, print, members=[name])
        checkpoints.save(1, {"record": record + number, "state": {"diverged": np.zeros(1, bool)}})
        checkpoints.close()
    for number, name in enumerate("ab"):
        parent = Parent(name, name, "replay", 0, {}, tmp_path, number, 2)
        held = fork.boundary(parent, 1)
        assert held.leaves["record",][held.place(parent)].max() == number and not held.leaves["record",].shape[0] > 1
    with pytest.raises(UserError, match="has no checkpoint after task 1"):
        fork.boundary(parent._replace(id="c"), 1)


def test_a_process_alone_writes_no_parts(sweep: Place) -> None:
    cli.main(["worker", "--sweep", str(sweep.out / "sweep.json"), "--shard", "1", "--quiet", "--processes", "1",
              "--process", "0"])  # fmt: skip
    assert sweep.shard.done and not (sweep.shard.folder / "parts").exists()
    assert "group" in json.loads(next(folder_of(sweep.out, 1).glob("beats/*.json")).read_text())

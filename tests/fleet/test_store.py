"""A sweep in an object store of this process, trained, killed, looked at and gathered: the table of one run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cl_jax import cli, waves
from cl_jax.fleet import bucket, command, heartbeat, worker
from cl_jax.fleet.start import Notice
from cl_jax.fleet.store import Mirror
from tests.fleet.stores import URL, Done, Faulty, Objects, fail, mend, work
from tests.fleet.sweeps import failed

STEPS, MEMBERS = 40, 2  # of a task; of a shard
ONCE = STEPS * MEMBERS * 2  # that the first shard trains, beside the first task
FIRST = STEPS * 2  # which is trained for both seeds


@pytest.fixture
def planned(place: Path, store: Objects) -> Objects:
    cli.main(["shards", str(place / "experiment.py"), "--out", URL, "--members", str(MEMBERS)])
    return store


def folder_of(objects: Objects, shard: int) -> str:
    return json.loads(objects["sweep.json"])["shards"][shard]["folder"]


def record(objects: Objects, shard: int) -> bytes:
    (key,) = [key for key in objects if re.fullmatch(rf"shards/{re.escape(folder_of(objects, shard))}/record-.*", key)]
    return objects[key]


def of_a_run(place: Path, objects: Objects, shard: int) -> bytes:
    (file,) = (place / "out" / "shards" / folder_of(objects, shard)).glob("record-*.npz")
    return file.read_bytes()


def test_from_shards_to_report(
    place: Path, store: Objects, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All commands by URL; the table is that of a run, bit for bit, in the store and in a folder."""
    monkeypatch.chdir(tmp_path)
    cli.main(["shards", str(place / "experiment.py"), "--out", URL, "--members", str(MEMBERS)])
    told = capsys.readouterr().out
    assert f"sweep: {URL}/sweep.json" in told and f"cl-jax worker --sweep {URL}/sweep.json --shard I" in told
    assert store["sweep.json"] == (place / "out" / "sweep.json").read_bytes()
    for shard in range(3):
        work(shard, tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []  # nothing lingers of shards that are done
    cli.main(["status", URL])
    assert "3 shards: 3 done, 0 running" in capsys.readouterr().out
    cli.main(["gather", URL])
    table, run = tmp_path / "runs" / "sweep" / "results.parquet", (place / "whole" / "results.parquet").read_bytes()
    assert store["results.parquet"] == table.read_bytes() == run
    cli.main(["gather", URL, "--to", "elsewhere"])
    cli.main(["report", "elsewhere"])
    assert (tmp_path / "elsewhere" / "report" / "report.html").is_file()
    Faulty.log.clear()
    work(1, tmp_path / "scratch")
    assert "is done already" in capsys.readouterr().err and Faulty.log == []


def test_gather_spares_what_is_there(
    place: Path, planned: Objects, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("whole", "out"):
        before = (place / name / "results.parquet").read_bytes()
        assert "holds something else than the table of" in failed(capsys, "gather", URL, "--to", place / name)
        assert (place / name / "results.parquet").read_bytes() == before
    assert f"{URL}: no shard has finished a task yet; see: cl-jax status {URL}" in failed(
        capsys, "gather", URL, "--to", tmp_path / "new"
    )
    assert not (tmp_path / "new").exists()


def test_gather_names_what_is_missing(planned: Objects, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the URL, not by where this command keeps it."""
    for shard in (1, 2):
        work(shard, tmp_path / "scratch")
    (key,) = [key for key in planned if re.fullmatch(rf"shards/{re.escape(folder_of(planned, 2))}/record-.*", key)]
    planned[key] = planned[key][:-1] + b"x"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["gather", URL, "--to", str(tmp_path / "to")])
    told = capsys.readouterr().err
    assert stopped.value.code == 1 and "missing: shard 0" in told and "not begun" in told
    assert f"{URL}/{key}: does not match its sha256; remove the folder {URL}/shards/" in told
    environment = json.loads(planned["environment.json"])
    assert environment["partial"] == "4 of 6 runs are missing or not finished"
    assert json.loads((tmp_path / "to" / "environment.json").read_text()) == environment


@pytest.mark.slow
def test_killed_after_every_put(place: Path, planned: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the store held when a worker died, the next one, with nothing at hand, gets the same table.

    For every prefix of what one worker did to the store: which steps a new machine brings; and for each different
    answer, a worker that trains from there. It trains what no manifest was up for, and nothing else.
    """
    before = planned.items()
    work(0, tmp_path / "first")
    log, shard = list(Faulty.log), f"shards/{folder_of(planned, 0)}"
    assert len(log) > 50
    content, outcomes = dict(before), dict[tuple[Any, ...], dict[str, bytes]]()
    for done in (None, *log):
        if done is not None and done.content is None:
            del content[done.key]
        elif done is not None:
            content[done.key] = done.content or b""
        planned.become(content)
        mirror = Mirror(f"{URL}/sweep.json", 0, tmp_path / "probe", lambda said: pytest.fail(said))
        trunks = [mirror.folder / "trunks" / each["folder"] for each in json.loads(before["sweep.json"])["trunks"]]
        mirror.pull(mirror.folder / shard, trunks)
        brought = {
            path.parent.relative_to(mirror.folder).as_posix() for path in mirror.folder.rglob("_CHECKPOINT_METADATA")
        }
        manifests = {key[len("steps/") : -len(".json")] for key in planned.manifests()}
        boundaries = sorted(key for key in manifests if key.startswith("shards/"))
        assert brought == set(boundaries[-2:] or manifests)
        mirror.close(over=True)
        outcomes[tuple(sorted(brought)), f"{shard}/DONE.json" in content] = dict(content)
    assert len(outcomes) == 6  # nothing, the first task, and one, two and three boundaries, the last also with its mark
    for (brought, is_done), held in outcomes.items():
        planned.become(held)
        work(0, tmp_path / "next")
        assert record(planned, 0) == of_a_run(place, planned, 0)
        number = max((int(each.rsplit("/", 1)[1]) for each in brought if each.startswith("shards/")), default=0)
        left = (FIRST if not brought else 0) + STEPS * MEMBERS * min(2, 3 - number)
        attempts = planned.beats()
        assert len(attempts) == (1 if is_done or not any("/beats/" in key for key in held) else 2)
        if not is_done:
            assert attempts[-1]["trained"] == left


def test_a_store_that_fails_in_the_middle(
    place: Path, planned: Objects, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker ends with an error and its scratch stays; the next one trains nothing of it twice."""
    fail(monkeypatch, lambda done: done.key.startswith("steps/shards") and done.key.endswith("/2.json"))
    with pytest.raises(SystemExit) as stopped:
        work(0, tmp_path / "scratch")
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and "the store is away; what was brought up is safe: run again" in said
    assert planned.beats()[0]["state"] == "failed" and planned.beats()[0]["exit_code"] == 1
    mend(monkeypatch)
    work(0, tmp_path / "scratch")
    assert record(planned, 0) == of_a_run(place, planned, 0)
    assert sum(beat["trained"] for beat in planned.beats()) == ONCE + FIRST


def test_two_workers_at_once(place: Path, planned: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is done while the first is inside its second task: the first hears of it and stops."""
    done_by_other: list[bool] = []

    def before(done: Done) -> bytes | None:
        if done.key.startswith("steps/shards") and done.key.endswith("/1.json") and not done_by_other:
            done_by_other.append(True)
            held = worker.work
            mirror = Mirror(f"{URL}/sweep.json", 2, tmp_path / "second")
            held(mirror.file, 2, Notice(), quiet=True, mirror=mirror)
            mirror.close(over=True)
        return done.content

    monkeypatch.setattr(Faulty, "before", staticmethod(before))
    work(2, tmp_path / "first")
    first, second = planned.beats()
    assert first["state"] == second["state"] == "done"
    assert record(planned, 2) == of_a_run(place, planned, 2)
    assert second["trained"] == 3 * STEPS * MEMBERS and first["trained"] < second["trained"]


def test_told_to_go_inside_a_task(
    place: Path, planned: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had come to is up before it exits 75, and a machine with nothing at hand goes on from there."""
    monkeypatch.setattr(waves, "chunk_steps", lambda steps, most=10: 10)
    monkeypatch.setattr(worker.os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    notice = Notice()
    monkeypatch.setattr(command, "Notice", lambda: notice)
    trained: list[int] = []
    advanced = heartbeat.Watched.advanced

    def counted(self: Any, shard: Any, task: int, member_steps: int) -> None:
        advanced(self, shard, task, member_steps)
        trained.append(member_steps)
        if sum(trained) >= STEPS * MEMBERS + 20:  # in the second task
            monkeypatch.setattr(notice, "_told", True)

    monkeypatch.setattr(heartbeat.Watched, "advanced", counted)
    with pytest.raises(SystemExit) as stopped:
        work(2, tmp_path / "first")
    assert stopped.value.code == 75 and planned.beats()[0]["state"] == "pre-empted"
    assert [key for key in planned.manifests() if "/inside-" in key]
    monkeypatch.setattr(notice, "_told", False)
    monkeypatch.setattr(heartbeat.Watched, "advanced", advanced)
    work(2, tmp_path / "second")
    assert sum(beat["trained"] for beat in planned.beats()) == 3 * STEPS * MEMBERS
    assert record(planned, 2) == of_a_run(place, planned, 2) and not any("/inside-" in key for key in planned)


def test_status_lists_once(planned: Objects, capsys: pytest.CaptureFixture[str]) -> None:
    """However many shards there are; and of a second look it reads what is new."""
    held = json.loads(planned["sweep.json"])
    ids = [f"{number:012x}" for number in range(1000)]
    pieces = [{**held["shards"][0], "folder": f"shard-{name}", "members": [name]} for name in ids]
    planned["sweep.json"] = json.dumps({**held, "shards": pieces}).encode()
    beat = {
        "attempt": "attempt-a", "state": "running", "host": "somewhere", "pid": 7, "started": 1.0, "beat": 2.0**40,
        "total": 100, "done": 50, "trained": 50, "doing": "task 2", "environment": {},
    }  # fmt: skip
    for name in ids[:500]:
        planned[f"shards/shard-{name}/beats/attempt-a.json"] = json.dumps(beat).encode()
    for name in ids[:100]:
        planned[f"shards/shard-{name}/DONE.json"] = b"{}"
    Faulty.reads.clear()
    cli.main(["status", URL])
    assert "1000 shards: 100 done, 400 running, 0 stale, 0 failed, 500 waiting" in capsys.readouterr().out
    assert [read for read in Faulty.reads if read.startswith("find")] == ["find shards"]
    from cl_jax.fleet.view import viewed

    with viewed(URL, results=False) as view:
        view.refresh()
        Faulty.reads.clear()
        planned[f"shards/shard-{ids[7]}/beats/attempt-a.json"] = json.dumps({**beat, "done": 60}).encode()
        view.refresh()
        assert Faulty.reads == ["find shards", f"get shards/shard-{ids[7]}/beats/attempt-a.json"]


def test_what_is_wrong_with_a_store(
    place: Path,
    store: Objects,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = place / "experiment.py"
    words = ("worker", "--shard", 0, "--sweep")
    assert "no sweep at faulty://bucket/sweep/sweep.json: give" in failed(capsys, *words, f"{URL}/sweep.json")
    for what in ("status", "gather"):
        assert "no sweep at faulty://bucket/sweep/sweep.json: give" in failed(capsys, what, URL)
    assert "unknown kind of store 's33'; known: faulty, gs, s3. Did you mean 's3'?" in failed(
        capsys, "status", "s33://bucket/x"
    )
    assert "names no bucket and folder" in failed(capsys, "status", "s3://")
    assert "names no bucket and folder" in failed(capsys, "status", "s3://bucket/../x")
    assert "--scratch: a sweep in a folder" in failed(
        capsys, *words, place / "out" / "sweep.json", "--scratch", tmp_path
    )
    assert "--to: the table of a sweep in a folder" in failed(capsys, "gather", place / "out", "--to", tmp_path)
    assert "give a folder; in a store is what" in failed(capsys, "run", experiment, "--out", "s3://bucket/x")
    store["else"] = b"somebody's"
    assert "is not empty and holds no experiment.json" in failed(capsys, "shards", experiment, "--out", URL)
    del store["else"]
    cli.main(["shards", str(experiment), "--out", URL, "--members", "2"])
    assert f"{URL}/sweep.json: another sweep is there" in failed(capsys, "shards", experiment, "--out", URL)
    store["sweep.json"] = b"{}"
    assert f"{URL}/sweep.json: is broken" in failed(capsys, *words, f"{URL}/sweep.json", "--scratch", tmp_path)


def test_a_store_that_refuses(
    store: Objects, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCredentialsError(Exception):
        pass

    def raising(error: Exception) -> Any:
        def info(self: Any, path: str, **rest: Any) -> Any:
            raise error

        return info

    for error in (PermissionError("Access Denied"), NoCredentialsError("Unable to locate"), OSError("Forbidden: x")):
        monkeypatch.setattr(Faulty, "info", raising(error))
        assert "the store refuses (" in failed(capsys, "status", URL)
    monkeypatch.setattr(Faulty, "info", raising(ConnectionError("no route")))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["status", URL])
    assert stopped.value.code == 1 and "ConnectionError: no route; what was brought up" in capsys.readouterr().err


def test_a_package_that_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(url: str, **options: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    for scheme, extra in bucket.EXTRAS.items():
        told = failed(capsys, "status", f"{scheme}://bucket/x")
        assert f"needs a package that is not installed; pip install 'cl_jax[{extra}]'" in told

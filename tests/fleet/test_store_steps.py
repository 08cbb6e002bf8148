"""Steps of a shard on their way to a store and back: which are taken, which are refused, and in what order they go."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cl_jax.checkpoint import INSIDE
from cl_jax.errors import UserError
from cl_jax.fleet import sweep_file
from cl_jax.fleet.bucket import StoreError
from cl_jax.fleet.store import Mirror
from cl_jax.fleet.sweep_file import Options, Piece, Sweep
from tests.fleet.stores import URL, Done, Faulty, Objects, fail, mend

SHARD = "shards/ewc-1"
STEPS = f"steps/{SHARD}"


class Place:
    """A sweep in the store, and workers at its only shard, each on a machine of its own."""

    def __init__(self, folder: Path, objects: Objects):
        self.folder, self.objects, self.said = folder, objects, list[str]()

    def mirror(self, machine: str) -> Mirror:
        return Mirror(f"{URL}/sweep.json", 0, self.folder / machine, self.said.append)

    def pulled(self, machine: str) -> dict[str, bytes]:
        """What a new machine brings of the shard's steps."""
        mirror = self.mirror(machine)
        mirror.pull(mirror.folder / SHARD, [])
        found = {
            file.relative_to(mirror.folder / SHARD).as_posix(): file.read_bytes()
            for file in sorted((mirror.folder / SHARD).rglob("*"))
            if file.is_file()
        }
        mirror.close()
        return found


def step(mirror: Mirror, name: str, content: bytes = b"weights") -> Path:
    """What Orbax would have committed."""
    folder = mirror.folder / SHARD / name
    (folder / "state" / "d").mkdir(parents=True)
    (folder / "state" / "d" / "0").write_bytes(content + name.encode())
    (folder / "note").write_bytes(b"{}")
    return folder


def files(name: str, content: bytes = b"weights") -> dict[str, bytes]:
    return {f"{name}/note": b"{}", f"{name}/state/d/0": content + name.encode()}


@pytest.fixture
def at(store: Objects, tmp_path: Path) -> Place:
    piece = Piece(folder="ewc-1", members=("0" * 12,), width=1, alone=True, member_steps=3)
    sweep_file.write(tmp_path / "sweep.json", Sweep(
        name="steps", experiment="experiment.py", experiment_sha256="0" * 64, options=Options(), data_sha256={},
        code="", matmul_precision="", shards=(piece,), trunks=(),
    ))  # fmt: skip
    store["sweep.json"] = (tmp_path / "sweep.json").read_bytes()
    return Place(tmp_path, store)


def push(mirror: Mirror) -> None:
    mirror.push(mirror.folder / SHARD)
    mirror.settle()


def two_steps(at: Place) -> None:
    """Boundaries 1 and 2 of an attempt."""
    mirror = at.mirror("first")
    for number in (1, 2):
        step(mirror, f"attempt-a/{number}")
        push(mirror)
    mirror.close()


def test_the_order_is_law(at: Place) -> None:
    """Files, then their manifest, then what is gone: manifest and files; then results, and the mark."""
    mirror = at.mirror("first")
    mirror.pull(mirror.folder / SHARD, [])
    step(mirror, f"inside-a/{INSIDE + 7}")
    step(mirror, "attempt-a/1")
    push(mirror)
    Faulty.log.clear()
    step(mirror, "attempt-a/2")
    for gone in ("attempt-a/1", f"inside-a/{INSIDE + 7}"):
        (mirror.folder / SHARD / gone).rename(mirror.folder / SHARD / gone.replace("/", "/.gone-"))
    for name in ("shard.json", "diagnostics.npz", "record.npz", "record-0f.npz", "DONE.json"):
        (mirror.folder / SHARD / name).write_bytes(name.encode())
    push(mirror)
    put = [done.key.removeprefix(f"{STEPS}/") for done in Faulty.log if done.content is not None]
    removed = [done.key.removeprefix(f"{STEPS}/") for done in Faulty.log if done.content is None]
    assert sorted(put[:2]) == sorted(files("attempt-a/2")) and put[2] == "attempt-a/2.json"
    results = ["shard.json", "diagnostics.npz", "record-0f.npz", "record.npz", "DONE.json"]
    assert put[3:] == [f"{SHARD}/{name}" for name in results]
    inside = f"inside-a/{INSIDE + 7}"
    assert sorted(removed) == sorted([f"{each}.json" for each in ("attempt-a/1", inside)] + [
        name for each in ("attempt-a/1", inside) for name in files(each)
    ])  # fmt: skip
    for each in ("attempt-a/1", inside):
        assert all(removed.index(f"{each}.json") < removed.index(name) for name in files(each))
    at_manifest = next(i for i, done in enumerate(Faulty.log) if done.key.endswith("attempt-a/2.json"))
    assert all(i > at_manifest for i, done in enumerate(Faulty.log) if done.content is None)
    assert at.pulled("second") == files("attempt-a/2")
    mirror.close()


def test_two_boundaries_come_back_and_nothing_twice(at: Place) -> None:
    two_steps(at)
    mirror = at.mirror("second")
    mirror.pull(mirror.folder / SHARD, [])
    step(mirror, "attempt-b/3")
    push(mirror)
    assert at.pulled("third") == {**files("attempt-b/3"), **files("attempt-a/2")}
    keys = [done.key for done in Faulty.log]
    assert len(keys) == len(set(keys))
    mirror.close()
    Faulty.reads.clear()
    assert at.pulled("second") == {**files("attempt-b/3"), **files("attempt-a/2")}
    assert not [read for read in Faulty.reads if read.startswith("get ")]  # found here, and proved


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def names(path: str) -> Callable[[bytes], bytes]:
    def renamed(content: bytes) -> bytes:
        held = json.loads(content)
        held["files"][0]["path"] = path
        return json.dumps(held).encode()

    return renamed


DAMAGES = [
    ("/state/d/0", flip, "state/d/0 does not match its sha256"),
    ("/state/d/0", lambda content: content[:-1], "state/d/0 has 17 bytes instead of 18"),
    ("/state/d/0", None, "state/d/0 is missing"),
    (".json", lambda content: content[:-9], "its manifest is broken"),
    (".json", lambda content: b"", "its manifest is broken"),
    (".json", lambda content: b"[" * 100_000, "its manifest is broken"),
    (".json", lambda content: b" " * (2**24 + 1), "its manifest is too large"),
    (".json", names("../x"), "its manifest names the file '../x'"),
    (".json", names("state/../../../x"), "its manifest names the file 'state/../../../x'"),
    (".json", names("/etc/x"), "its manifest names the file '/etc/x'"),
    (".json", names("a\\..\\x"), "its manifest names the file"),
    (".json", names("state"), "its manifest names a file twice, or one inside another"),
    (".json", names("state/d/0"), "its manifest names a file twice, or one inside another"),
    (".json", names("state//x"), "its manifest names the file 'state//x'"),
    (".json", lambda content: content.replace(b'"bytes": 2,', b'"bytes": 1e99,'), "gives note the size 1e+99"),
    (".json", lambda content: content.replace(b'"bytes": 2,', b'"bytes": 4611686018427387903,'), "note has 2 bytes"),
]


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_damaged_step_is_refused(number: int, at: Place) -> None:
    """And the one before it taken; nothing is written where it does not belong."""
    two_steps(at)
    what, damage, said = DAMAGES[number]
    key = f"{STEPS}/attempt-a/2{what}"
    if damage is None:
        del at.objects[key]
    else:
        at.objects[key] = damage(at.objects[key])
    assert at.pulled("second") == files("attempt-a/1")
    (told,) = at.said
    assert told.startswith(f"checkpoint attempt-a/2 in {URL} refused (") and said in told
    assert told.endswith("trying an older one")
    assert not [path for path in at.folder.rglob("*") if path.name in ("x", "a\\..\\x")]
    assert not Path("/etc/x").exists()


def test_steps_by_odd_names_are_none(at: Place) -> None:
    two_steps(at)
    content = at.objects[f"{STEPS}/attempt-a/2.json"]
    for name in ("attempt-a/../b/3.json", "attempt-a/03.json", "attempt-/3.json", "elsewhere/3.json", "attempt-a/3"):
        at.objects[f"{STEPS}/{name}"] = content
    assert set(at.pulled("second")) == {*files("attempt-a/1"), *files("attempt-a/2")} and not at.said


def test_an_upload_cut_before_its_manifest(at: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not count; the error is raised, and a restart with nothing at hand goes on."""
    two_steps(at)
    fail(monkeypatch, lambda done: done.key.endswith("/3.json"))
    mirror = at.mirror("second")
    mirror.pull(mirror.folder / SHARD, [])
    step(mirror, "attempt-b/3")
    (mirror.folder / SHARD / "record.npz").write_bytes(b"after task 3")
    mirror.push(mirror.folder / SHARD)
    with pytest.raises(StoreError, match="the store is away"):
        mirror.settle()
    mend(monkeypatch)
    assert f"{SHARD}/record.npz" not in list(at.objects)  # no record of a step that is not there
    assert at.pulled("third") == {**files("attempt-a/1"), **files("attempt-a/2")}
    mirror.close()
    again = at.mirror("second")  # the machine that has it still brings it up
    again.pull(again.folder / SHARD, [])
    push(again)
    again.close()
    assert at.pulled("fourth") == {**files("attempt-a/2"), **files("attempt-b/3")}


def test_a_step_half_removed(at: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest went first."""
    mirror = at.mirror("first")
    for number in (1, 2):
        step(mirror, f"attempt-a/{number}")
        push(mirror)
    fail(monkeypatch, lambda done: done.content is None and done.key.endswith("attempt-a/1/note"))
    (mirror.folder / SHARD / "attempt-a" / "1").rename(mirror.folder / "gone")
    step(mirror, "attempt-a/3")
    mirror.push(mirror.folder / SHARD)
    with pytest.raises(StoreError):
        mirror.settle()
    assert f"{STEPS}/attempt-a/1/note" in list(at.objects)
    assert at.pulled("second") == {**files("attempt-a/2"), **files("attempt-a/3")} and not at.said
    mirror.close()


def test_a_step_that_is_removed_while_it_is_read(at: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing is made anew, which has what came instead."""
    two_steps(at)
    content = {name: at.objects[name] for name in at.objects if "/attempt-a/2" in name}
    get_file = Faulty.get_file

    def get(fs: Any, rpath: str, lpath: str, *rest: Any, **options: Any) -> None:
        for key, value in content.items():
            if key in list(at.objects):
                del at.objects[key]
                at.objects[key.replace("attempt-a/2", "attempt-b/3")] = value
        get_file(fs, rpath, lpath, *rest, **options)

    monkeypatch.setattr(Faulty, "get_file", get)
    found = at.pulled("second")
    assert found["attempt-b/3/state/d/0"] == b"weightsattempt-a/2" and "attempt-a/2/note" not in found
    assert "it was removed meanwhile" in at.said[0]


def test_inside_a_task_is_further_than_its_beginning(at: Place) -> None:
    mirror = at.mirror("first")
    for name in ("attempt-a/1", f"inside-a/{INSIDE + 5}", f"inside-b/{INSIDE + 90}"):
        step(mirror, name)
    push(mirror)
    mirror.close()
    assert set(at.pulled("second")) == {*files(f"inside-a/{INSIDE + 5}"), *files(f"inside-b/{INSIDE + 90}")}
    third = at.mirror("third")
    third.pull(third.folder / SHARD, [])
    step(third, "attempt-c/2")
    push(third)
    third.close()
    assert [key for key in at.objects if "/inside-" in key] == []


@pytest.mark.parametrize("whole", [True, False])
def test_a_step_that_goes_while_it_is_brought_up(whole: bool, at: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orbax and the next boundary remove what nobody needs, at once or file by file: no manifest of it is put."""
    mirror = at.mirror("first")
    local = step(mirror, "attempt-a/1")

    def before(done: Done) -> bytes | None:
        if not whole and "/attempt-a/1/" in done.key:
            (mirror.folder / done.key.removeprefix("steps/")).unlink()  # it has been read
        elif whole and local.exists():
            local.rename(local.with_name("gone"))
        return done.content

    monkeypatch.setattr(Faulty, "before", staticmethod(before))
    push(mirror)
    assert at.objects.manifests() == []
    mirror.close()


def test_two_workers_on_one_machine(at: Place) -> None:
    """Each has a folder of its own; that of the second goes with it."""
    first, second = at.mirror("same"), at.mirror("same")
    assert first.folder != second.folder
    step(first, "attempt-a/1", b"one")
    step(second, "attempt-b/1", b"other")
    push(first)
    push(second)
    assert len(at.objects.manifests()) == 2
    second.close()
    first.close()
    assert first.folder.is_dir() and not second.folder.exists()
    third = at.mirror("same")
    assert third.folder == first.folder
    third.close(over=True)
    assert not first.folder.exists()


def test_a_folder_of_another_sweep_is_not_used(at: Place) -> None:
    mirror = at.mirror("same")
    step(mirror, "attempt-a/1")
    mirror.close()
    held = json.loads(at.objects["sweep.json"])
    at.objects["sweep.json"] = json.dumps({**held, "name": "another"}).encode()
    mirror = at.mirror("same")
    assert not (mirror.folder / SHARD).exists() and json.loads(mirror.file.read_text())["name"] == "another"
    mirror.close()


def test_no_room(at: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the checkpoint, which is not passed over."""
    two_steps(at)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    mirror = at.mirror("second")
    with pytest.raises(OSError, match="No space left"):
        mirror.pull(mirror.folder / SHARD, [])
    mirror.close()


def test_a_scratch_that_cannot_be_made(at: Place) -> None:
    (at.folder / "file").write_text("")
    with pytest.raises(UserError, match=r"--scratch .*: is no folder that can be made"):
        at.mirror("file")

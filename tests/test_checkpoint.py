"""Checkpoints: what is refused, what is used instead, and that it is said."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import checkpoint
from cl_jax.checkpoint import Checkpoints, digest
from cl_jax.provenance import code_version


def state(step: int) -> dict[str, Any]:
    weights = np.random.default_rng(step).normal(size=(40, 30)).astype(np.float32)
    return {"weights": jnp.asarray(weights), "step": jnp.int32(step), "parts": (jnp.ones(3), jnp.zeros((), bool))}


LIKE = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0))


def saved(folder: Path, *steps: int) -> Path:
    """One attempt with these steps; returns its folder."""
    before = set(folder.glob("attempt-*"))
    checkpoints = Checkpoints(folder, lambda message: None)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.wait()
    checkpoints.close()
    (attempt,) = set(folder.glob("attempt-*")) - before
    return attempt


def restored(folder: Path) -> tuple[int | None, list[str]]:
    """The step that is restored, checked against what was saved, and what was said."""
    said: list[str] = []
    found = Checkpoints(folder, said.append).restore(LIKE)
    if found is None:
        return None, said
    assert jax.tree.structure(found[1]) == jax.tree.structure(state(0))
    assert digest(found[1]) == digest(state(found[0]))
    return found[0], said


def test_the_newest_step_of_any_attempt(tmp_path: Path) -> None:
    assert restored(tmp_path) == (None, [])
    saved(tmp_path, 1, 2, 3)
    saved(tmp_path, 2)
    assert restored(tmp_path) == (3, [])


def test_only_the_newest_two_are_kept_and_none_is_left_half_deleted(tmp_path: Path) -> None:
    attempt = saved(tmp_path, 1, 2, 3, 4)
    assert sorted(path.name for path in attempt.iterdir() if path.name.isdecimal()) == ["3", "4"]


def largest_file(step: Path) -> Path:
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_byte(step: Path) -> None:
    path = largest_file(step / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(step: Path) -> None:
    path = largest_file(step / "state")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def half_delete(step: Path) -> None:
    for number, path in enumerate(sorted(path for path in (step / "state").rglob("*") if path.is_file())):
        if number % 2 == 0:
            path.unlink()


def lose_the_digest(step: Path) -> None:
    shutil.rmtree(step / "note")


def forge_the_digest(step: Path) -> None:
    path = next(path for path in (step / "note").rglob("*") if path.is_file() and b"sha256" in path.read_bytes())
    path.write_bytes(path.read_bytes().replace(b'"sha256": "', b'"sha256": "0')[:-1])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, empty, half_delete, lose_the_digest, forge_the_digest])
def test_a_damaged_step_is_refused_and_the_one_before_it_used(damage: Callable[[Path], None], tmp_path: Path) -> None:
    attempt = saved(tmp_path, 1, 2)
    damage(attempt / "2")
    step, said = restored(tmp_path)
    assert step == 1
    assert len(said) == 1 and f"{attempt.name}/2 refused" in said[0] and "older" in said[0]


def test_all_steps_damaged_means_from_the_start(tmp_path: Path) -> None:
    attempt = saved(tmp_path, 1, 2)
    truncate(attempt / "2")
    empty(attempt / "1")
    step, said = restored(tmp_path)
    assert step is None and len(said) == 2


def test_a_step_of_another_attempt_stands_in(tmp_path: Path) -> None:
    older, newer = saved(tmp_path, 1, 2), saved(tmp_path, 3)
    flip_a_byte(newer / "3")
    assert restored(tmp_path)[0] == 2
    assert older.is_dir()


def test_another_structure_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    said: list[str] = []
    other = {**LIKE, "weights": jax.ShapeDtypeStruct((7, 30), jnp.float32, sharding=LIKE["step"].sharding)}
    assert Checkpoints(tmp_path, said.append).restore(other) is None and len(said) == 1


def test_what_a_background_write_raises_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "absent", lambda message: None)
    (tmp_path / "absent").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        checkpoints.save(1, state(1))
        checkpoints.wait()


def test_the_digest_sees_path_shape_dtype_and_bytes() -> None:
    base = {"a": np.zeros((2, 3), np.float32), "b": np.int32(1)}
    others = [
        {"a": np.zeros((3, 2), np.float32), "b": np.int32(1)},
        {"a": np.zeros((2, 3), np.int32), "b": np.int32(1)},
        {"c": np.zeros((2, 3), np.float32), "b": np.int32(1)},
        {"a": np.zeros((2, 3), np.float32) - 0.0 * -1, "b": np.int32(2)},
    ]
    assert len({digest(tree) for tree in (base, *others)}) == 5
    assert digest(base) == digest({"b": np.int32(1), "a": np.asfortranarray(np.zeros((2, 3), np.float32))})


def test_another_code_version_is_used_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "code_version", lambda: "0.2.0 abc")
    step, said = restored(tmp_path)
    assert step == 1
    assert len(said) == 1 and "0.2.0 abc" in said[0] and code_version() in said[0]

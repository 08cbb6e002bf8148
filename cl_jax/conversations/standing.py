"""Where a run stands between two rounds: its folder, whose it is, and its checkpoints."""

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.checkpoint import Checkpoints, digest, new_attempt
from cl_jax.config import flatten
from cl_jax.conversations.old_text import OldText
from cl_jax.conversations.policies import Policy
from cl_jax.conversations.settings import Adaptation
from cl_jax.errors import UserError
from cl_jax.model import Params
from cl_jax.results import read_json, write_json
from cl_jax.train import TrainState

WHOSE = "adapt.json"
CHECKPOINTS = "checkpoints"


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes from working on it. Raises UserError: one does."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:  # the system lets go of it however the process ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{out}: another process is at work on it; wait for it, or give another folder") from error
        yield


def claim(out: Path, settings: Adaptation, seed: int, params: Params, old: OldText) -> None:
    """Writes down what the run in a folder is of, or compares.

    Raises:
        UserError: the folder holds a run of something else.
    """
    rows = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in old[:3])).hexdigest()
    whose: dict[str, Any] = {
        "settings": {name: value for name, value in flatten(settings).items() if name},
        "seed": seed,
        "model_sha256": digest(params),
        "old_text_sha256": rows,
    }
    if not (out / WHOSE).is_file():
        write_json(out / WHOSE, whose)
        return
    held = read_json(out / WHOSE, {"settings": dict, "seed": int, "model_sha256": str, "old_text_sha256": str})
    differs = list(_differences(held, whose))
    if differs:
        raise UserError(
            f"{out} holds a run that differs in {', '.join(differs[:5])}: give another folder with --out, or what it "
            "was begun with"
        )


def _differences(held: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*held["settings"], *given["settings"]}):
        one, two = held["settings"].get(name), given["settings"].get(name)
        if one != two:
            yield f"{name} ({one}, now {two})"
    if held["seed"] != given["seed"]:
        yield f"seed ({held['seed']}, now {given['seed']})"
    for name, what in (("model_sha256", "the model's weights"), ("old_text_sha256", "the old text")):
        if held[name] != given[name]:
            yield what


class Standings:
    """The checkpoints of a run, one a round.

    Args:
        blank: the state before anything, which gives shapes, and whatever never changes.
    """

    def __init__(self, out: Path, policy: Policy, blank: TrainState, say: Callable[[str], None]) -> None:
        self._folder, self._attempt = out / CHECKPOINTS, new_attempt()
        self._policy, self._blank = policy, blank
        self._checkpoints = Checkpoints(self._folder, say, attempt=self._attempt)
        self._first = True

    def restored(self) -> tuple[int, TrainState] | None:
        """The newest round whose checkpoint is good, and the state after it."""
        changing, structure = jax.tree.flatten(self._changing(self._blank))
        like = _numbered([jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in changing])
        found = self._checkpoints.restore(like | {"round": jax.ShapeDtypeStruct((), np.int32)})
        if found is None:
            return None
        number, held = found
        leaves = [jnp.asarray(np.asarray(held[name])) for name in _numbered(changing)]
        return number, self._blank._replace(**jax.tree.unflatten(structure, leaves))

    def save(self, number: int, state: TrainState) -> None:
        """Returns once the state after a round is safe on disk."""
        leaves = jax.device_get(jax.tree.leaves(self._changing(state)))
        self._checkpoints.save(number, _numbered(leaves) | {"round": np.asarray(number, np.int32)})
        self._checkpoints.wait()
        if self._first:
            for path in self._folder.glob("attempt-*"):
                if path.name != self._attempt:
                    shutil.rmtree(path, ignore_errors=True)
            self._first = False

    def close(self) -> None:
        self._checkpoints.close()

    def _changing(self, state: TrainState) -> dict[str, Any]:
        if not self._policy.trains:
            return {}
        held = state._asdict()
        if self._policy.keeps_base:
            del held["base"]
        return held


def _numbered(leaves: list[Any]) -> dict[str, Any]:
    """By names that Orbax reads back as they are, whatever the tree is made of."""
    return {f"leaf_{number:05d}": leaf for number, leaf in enumerate(leaves)}

"""`cl-jax run EXPERIMENT --from RUN:TASK[:LABEL]`: members that continue from a boundary of an earlier run.

A member that continues another is another member: its id addresses what it would be from the start, its parent and the
digest of the parent's checkpoint. The output folder's origin.json says so, so that the same command goes on even where
the earlier run's checkpoint is gone by then, and another one is refused.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cl_jax import fork, program
from cl_jax.checkpoint import leaves
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.experiment import Member, Run, address_of, hyper_parameters
from cl_jax.parents import Parent, choose, parents_in
from cl_jax.results import read_json, write_json
from cl_jax.standing import Standing
from cl_jax.waves import Crew

FILE = "origin.json"


class Origin(NamedTuple):
    """What --from says."""

    run: Path  # output folder of the earlier run
    task: int  # tasks finished at the boundary
    choice: str  # "", or LABEL, or LABEL,SETTING=VALUE

    @property
    def words(self) -> str:
        """As it was given, with the last part of the folder's name."""
        return f"{self.run.resolve().name}:{self.task}{':' * bool(self.choice)}{self.choice}"


class Fork(NamedTuple):
    """Where one member comes from."""

    address: str  # the id that it would have without --from
    parent: Parent
    sha256: str  # of the checkpoint of the parent's shard


def parse(text: str) -> Origin:
    """RUN:TASK, RUN:TASK:LABEL or RUN:TASK:LABEL,SETTING=VALUE. Raises UserError."""
    found = re.fullmatch(r"(.+?):([0-9]{1,9})(?::(.+))?", text)
    if found is None:
        raise UserError(f"--from: expected RUN:TASK or RUN:TASK:LABEL, such as runs/quickstart:2, was given {text!r}")
    return Origin(Path(found[1]), int(found[2]), found[3] or "")


def check_out(out: Path, origin: Origin | None) -> None:
    """Raises UserError where an output folder was begun from elsewhere."""
    if not any((out / "shards").glob("*/shard.json")):
        return
    began = read_json(out / FILE, {"from": str})["from"] if (out / FILE).is_file() else None
    given = origin.words if origin is not None else None
    if began != given:
        was = f"--from {began}" if began else "no --from"
        now = f"--from {given}" if given else "none"
        raise UserError(f"{out} was begun with {was}, now it is {now}; give the same again, or another --out")


class Forks:
    """The members of an experiment and what they continue from.

    Args:
        forks: by the id of the member.
    """

    def __init__(self, origin: Origin, forks: Mapping[str, Fork]):
        self.task, self.words = origin.task, origin.words
        self._forks = forks

    def standing(self, crew: Crew) -> Standing:
        """A shard at the boundary that its members continue from."""
        of = [self._forks[member.id] for member in crew.members]
        return fork.standing(crew, self.task, [(one.parent, one.sha256) for one in of])

    def write(self, out: Path) -> None:
        """Records in an output folder where its members come from; those of earlier commands stay recorded."""
        known = read_json(out / FILE, {"members": dict})["members"] if (out / FILE).is_file() else {}
        new = {
            name: {"without": one.address, "parent": one.parent.id, "sha256": one.sha256}
            for name, one in self._forks.items()
        }
        write_json(out / FILE, {"from": self.words, "members": {**known, **new}})


def adopt(
    members: Sequence[Member], origin: Origin, data: Mapping[tuple[str, float], Data], out: Path
) -> tuple[list[Member], Forks]:
    """The members with ids of their own, and where they come from. Checkpoints that are needed anew are verified.

    Args:
        data: by name and share of validation rows.

    Raises:
        UserError: a member has no parent or several, or cannot continue it, or the boundary is not there.
    """
    for member in members:
        last = member.entry.run.stream.num_tasks - 1
        if not 1 <= origin.task <= last:
            raise UserError(
                f"--from: was given task {origin.task} of {origin.run}; {member.entry.label!r} can be continued after "
                f"task 1 to {last}"
            )
    parents = parents_in(origin.run, {member: held["without"] for member, held in _recorded(origin.run).items()})
    known, begun = _known(parents, out), _Begun(origin)
    adopted, forks = [], {}
    for member in members:
        if member.id in known:
            found = known[member.id]
        else:
            run = member.entry.run
            here = data[run.data, run.validation]
            parent = choose(member, here.sha256, parents, origin.choice, origin.run.resolve().name)
            found = Fork(member.id, parent, begun.verified(member, parent, here))
        content = {"without": member.id, "parent": found.parent.id, "task": origin.task, "sha256": found.sha256}
        adopted.append(dataclasses.replace(member, id=address_of(content)))
        forks[adopted[-1].id] = found
    return adopted, Forks(origin, forks)


class _Begun:
    """The boundary's checkpoints, each read once."""

    def __init__(self, origin: Origin):
        self._origin = origin
        self._read: dict[Path, list[tuple[fork.Boundary, np.ndarray, fork.Shapes]]] = {}
        self._shapes: dict[Any, fork.Shapes] = {}

    def verified(self, member: Member, parent: Parent, data: Data) -> str:
        """The digest of a checkpoint that the member can continue. Raises UserError."""
        read = self._read.setdefault(parent.folder, [])
        if not any(held.holds(parent) for held, *_ in read):
            held = fork.boundary(parent, self._origin.task)
            stopped = fork.stopped(held, self._origin.task)
            read.append((held._replace(leaves={}), stopped, fork.state_of(held.leaves)))
        held, stopped, theirs = next(each for each in read if each[0].holds(parent))
        if stopped[held.place(parent)]:
            raise UserError(
                f"--from: {parent.label!r} was stopped before task {self._origin.task} ended; choose an earlier task "
                f"or another parent"
            )
        run = member.entry.run
        mine, model = self._of(run, data), self._of(program.world_of(run), data)
        params = {path[1:]: shape for path, shape in model.items() if path[0] == "trainable"}
        fork.take(hyper_parameters(run), mine, params, parent, theirs)
        return held.sha256

    def _of(self, run: Run, data: Data) -> fork.Shapes:
        structure = jax.tree.structure(run)
        if structure not in self._shapes:
            self._shapes[structure] = fork.shapes(leaves(program.state_shapes(run, data)._asdict()), 0)
        return self._shapes[structure]


def _known(parents: Sequence[Parent], out: Path) -> dict[str, Fork]:
    """Where the members that an output folder knows come from, by the id that they would have without --from."""
    by_id, found = {parent.id: parent for parent in parents}, {}
    for held in _recorded(out).values():
        if held["parent"] not in by_id:
            raise UserError(f"--from: {out} was begun from another run of that name; give that one, or another --out")
        found[held["without"]] = Fork(held["without"], by_id[held["parent"]], held["sha256"])
    return found


def _recorded(out: Path) -> dict[str, dict[str, Any]]:
    """What origin.json says, by member's id; nothing where there is none."""
    if not (out / FILE).is_file():
        return {}
    held = read_json(out / FILE, {"members": dict})["members"]
    for about in held.values():
        wanted = [about.get(name) for name in ("without", "parent", "sha256")] if isinstance(about, dict) else [None]
        if not all(isinstance(value, str) for value in wanted):
            raise UserError(f"{out / FILE}: is broken; give another --out")
    return held

"""What members take over at a boundary of an earlier run, and the state they continue from.

The checkpoint is read without the earlier run's configuration: arrays are matched by their path, shape and dtype.

- Parameters: as they are where the adapter is the same, or where both runs train the parameters themselves; under
  another adapter an earlier run that trained the parameters themselves gives the initial ones.
- Optimizer: its state, where it is the same kind with state of the same shapes; else it starts anew.
- Methods: if all are of the same kinds with states of the same shapes, the member goes on as if it were the earlier
  one with other numbers. Else all start anew, as before a first task, and consolidate the task that was finished last:
  its boundary is passed again, on the parameters taken over.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cl_jax.checkpoint import Leaves, leaves, read, reason, saved
from cl_jax.errors import UserError
from cl_jax.experiment import hyper_parameters
from cl_jax.parents import Parent
from cl_jax.standing import Standing, first_record
from cl_jax.waves import Crew, Host, end_task, first_states, gathered, host_like, muster, on_devices, to_host

Shapes = dict[tuple[str, ...], tuple[Any, ...]]  # shape of one member's leaf and dtype, by path


class Boundary(NamedTuple):
    """What a shard had come to at a boundary."""

    leaves: Leaves  # [members that the checkpoint holds, ...]
    sha256: str
    members: tuple[str, ...] | None = None  # their ids; None: all of the shard, in its order

    def holds(self, parent: Parent) -> bool:
        """Whether the checkpoint is of this member too."""
        return self.members is None or parent.id in self.members

    def place(self, parent: Parent) -> int:
        """Of a member that it holds."""
        return parent.place if self.members is None else self.members.index(parent.id)


class Taken(NamedTuple):
    """What a member takes over."""

    fields: tuple[str, ...]  # of TrainState
    as_initial: bool  # the parameters are not taken over, but are those that the member is made from


def boundary(parent: Parent, task: int, sha256: str | None = None) -> Boundary:
    """The checkpoint of a parent's shard after `task` tasks, of any attempt that is good.

    Args:
        sha256: the one wanted; None: any.

    Raises:
        UserError: there is none.
    """
    there, refused = saved(parent.folder), ""
    for step, attempt in there:
        if step != task:
            continue
        try:
            state, note = read(attempt, step)
            if sha256 not in (None, note["sha256"]):
                raise ValueError("it is another than this run began from")
            members = tuple(map(str, note["members"])) if "members" in note else None
            held = Boundary(leaves(state), note["sha256"], members)
            if not held.holds(parent):  # of another of several processes that trained the shard
                continue
            _check(held.leaves, parent.size if members is None else len(members))
            return held
        except Exception as error:  # whatever a torn file makes a reader raise
            refused = f" ({attempt.name}/{step} was refused: {reason(error)})"
    others = sorted({step for step, _ in there if step != task})
    kept = f"; there are those after task {', '.join(map(str, others))}: give one of these, or" if others else ":"
    raise UserError(
        f"--from: {parent.folder} has no {'good ' * bool(refused)}checkpoint after task {task}{refused}{kept} train "
        f"that run again with --keep all and another --out"
    )


def _check(found: Leaves, size: int) -> None:
    """Raises ValueError unless these are arrays of so many members, with a record."""
    record, diverged = found["record",], found["state", "diverged"]
    if (record.ndim, record.dtype, diverged.dtype) != (5, np.float32, bool):
        raise ValueError("it holds no record of a run")
    if any(leaf.shape[:1] != (size,) for leaf in found.values()):
        raise ValueError(f"it is not of {size} members")


def stopped(held: Boundary, task: int) -> np.ndarray:
    """bool [members of the checkpoint]: stopped before this boundary, so that no row of the record is of it."""
    record = held.leaves["record",]
    return np.asarray(np.isnan(record[:, task : task + 1, 0, 0]).all(axis=(1, 2)))


def standing(crew: Crew, task: int, parents: Sequence[tuple[Parent, str]]) -> Standing:
    """The crew after `task` tasks of their parents.

    Args:
        parents: of each member, with the digest of its checkpoint.

    Raises:
        UserError: a checkpoint is gone or damaged, or an adapter cannot be made from it.
    """
    of, held = [], {}
    for parent, sha in parents:
        if (parent.folder, sha) not in held:
            held[parent.folder, sha] = boundary(parent, task, sha)
        found = held[parent.folder, sha]
        of.append((found.leaves, found.place(parent)))
    like = shapes(leaves(host_like(crew)._asdict()))
    taken = [
        take(hyper_parameters(member.entry.run), like, shapes(leaves(world.params), 0), parent, state_of(found))
        for member, world, (parent, _), (found, _) in zip(crew.members, crew.worlds, parents, of, strict=True)
    ]
    state = _overlaid(_made(crew, of, taken), of, taken)
    state = _consolidated(crew, state, np.array(["method" not in one.fields for one in taken]), task - 1)
    rows, record = [found["record",][place] for found, place in of], first_record(crew)
    if any(row.shape != record.shape[1:] for row in rows):
        raise UserError("--from: the record of a run has not the number of tasks that its settings say; train it again")
    record[:, : task + 1] = np.stack(rows)[:, : task + 1]
    return Standing(task, state, record)


def _consolidated(crew: Crew, state: Host, fresh: np.ndarray, task: int) -> Host:
    """The state with the boundary after `task` passed once more by the members whose methods start anew."""
    waves, parts = muster(crew, np.flatnonzero(fresh & ~state.diverged)), []
    for wave in waves:
        with crew.programs.busy:
            ended, *_ = end_task(crew, wave, on_devices(crew, wave, state), task)
            parts.append(to_host(wave, ended))
    return gathered(waves, parts, state, len(crew.members)) if waves else state


def shapes(of: Leaves, axis: int = 1) -> Shapes:
    """Of every leaf, without its first `axis` axes."""
    return {path: (leaf.shape[axis:], leaf.dtype) for path, leaf in of.items()}


def state_of(found: Leaves) -> Shapes:
    """Shapes of one member's TrainState in a checkpoint."""
    return {path[1:]: shape for path, shape in shapes(found).items() if path[0] == "state"}


def take(mine: Mapping[str, Any], like: Shapes, params: Shapes, parent: Parent, theirs: Shapes) -> Taken:
    """What a member with these settings takes over.

    Args:
        like: of the member's TrainState. params: of its model's parameters. theirs: of the parent's TrainState.

    Raises:
        UserError: the parent's adapter has to be the member's.
    """

    def same(*fields: str) -> bool:
        own, other = ({path: shape for path, shape in of.items() if path[0] in fields} for of in (like, theirs))
        return own == other

    def equal(prefix: str, depth: int | None = None) -> bool:
        def about(settings: Mapping[str, Any]) -> dict[str, Any]:
            names = [name for name in settings if f"{name}.".startswith(f"{prefix}.")]
            return {name: settings[name] for name in names if depth is None or name.count(".") == depth}

        return about(mine) == about(parent.settings)

    plain = {path[1:]: shape for path, shape in theirs.items() if path[0] in ("base", "trainable")} == params
    if not same("base", "trainable") or not (plain or equal("adapter")):
        if plain:
            return Taken(("diverged",), True)
        raise UserError(
            f"--from: adapter {mine['adapter']!r} cannot continue what {parent.label!r} trained with adapter "
            f"{parent.settings.get('adapter')!r}: give it the same settings of the adapter, or choose a parent that "
            f"trained all parameters (adapter Full)"
        )
    fields = ("base", "trainable", "diverged")
    resets = mine.get("optimizer.reset") and not parent.settings.get("optimizer.reset")
    if equal("optimizer", 0) and same("optimizer") and not resets:
        fields += ("optimizer",)
    if equal("methods", 1) and same("method"):
        fields += ("method",)
    return Taken(fields, False)


def _made(crew: Crew, of: Sequence[tuple[Leaves, int]], taken: Sequence[Taken]) -> Host:
    """Every member's state before its first step, from the parent's parameters where they are the initial ones."""
    worlds = list(crew.worlds)
    for i, ((found, place), one) in enumerate(zip(of, taken, strict=True)):
        if one.as_initial:
            theirs = {path[2:]: leaf[place] for path, leaf in found.items() if path[:2] == ("state", "trainable")}
            worlds[i] = worlds[i]._replace(params=_filled(worlds[i].params, theirs))
    crew, count = crew._replace(worlds=worlds), len(crew.members)
    waves = muster(crew, np.arange(count))
    with crew.programs.busy:
        parts = [to_host(wave, first_states(crew, wave)) for wave in waves]
    return gathered(waves, parts, None, count)


def _filled(like: Any, found: Leaves) -> Any:
    """A tree like this one with the leaves found."""
    return jax.tree.unflatten(jax.tree.structure(like), [found[path] for path in leaves(like)])


def _overlaid(state: Host, of: Sequence[tuple[Leaves, int]], taken: Sequence[Taken]) -> Host:
    """The state with what every member takes over in it."""

    def overlaid(path: tuple[str, ...], leaf: np.ndarray) -> np.ndarray:
        rows = [
            found["state", *path][place] if path[0] in one.fields else leaf[i]
            for i, ((found, place), one) in enumerate(zip(of, taken, strict=True))
        ]
        return np.stack(rows)

    tree = state._asdict()
    return type(state)(**_filled(tree, {path: overlaid(path, leaf) for path, leaf in leaves(tree).items()}))

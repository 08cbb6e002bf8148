"""Cuts an experiment into shards: the same cut wherever it is made, and at the widths that `cl-jax run` would take."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from cl_jax import estimate, packing, plan, provenance, trunk, waves
from cl_jax.compiled import Programs
from cl_jax.experiment import Member
from cl_jax.fleet.cost import Kind
from cl_jax.fleet.sweep_file import Options, Piece, Sweep
from cl_jax.job import Checked
from cl_jax.plan import Shard

Sized = tuple[Shard, int]  # a group and how many of its members make a shard


def make_sweep(
    ready: Checked, experiment: Path, options: Options, *, members: int | None = None, hours: float | None = None,
    measure: bool = False,
) -> tuple[Sweep, list[Kind]]:  # fmt: skip
    """The sweep of an experiment, and what its cost depends on.

    Args:
        experiment: its file.
        options: what it was read with.
        members: of a shard.
        hours: that a shard takes on a machine like this one; each program is compiled and timed for it. Where neither
            is given, one group is one shard.
        measure: choose widths as `cl-jax run` does, which compiles and times programs where it takes long enough for
            that to pay; else by the rule that it follows otherwise. With `hours` always.

    Raises:
        UserError: one member does not fit the device, or not the data's budget.
    """
    everyone = ready.members()
    by_member = trunk.trunk_members(everyone, ready.sha256, shared=not options.unshared)
    firsts = list({member.id: member for member in by_member.values()}.values())
    groups, trunks = (plan.new_shards(Path(), each, options.width, ready.state_bytes) for each in (everyone, firsts))
    sized = [(group, members or len(group.members)) for group in groups]
    timed: dict[str, Sequence[packing.Measured]] = {}
    if measure or hours is not None:
        programs = Programs()
        for place, (group, size) in enumerate(sized):
            group, timed[_name(group)] = _settled(ready, group, programs, timed=hours is not None)
            sized[place] = (
                group,
                size if hours is None else _fitting(ready, group, timed[_name(group)], by_member, hours),
            )
        for place, group in enumerate(trunks):
            trunks[place], found = _settled(ready, group, programs)
            timed.setdefault(_name(group), found)
    sized, trunks = [(_on_devices(group), size) for group, size in sized], [_on_devices(group) for group in trunks]
    cuts = [(group, _cut(group, size, _order(group, by_member)), _tasks(group, by_member)) for group, size in sized]
    first = [(group, _cut(group, _least(group), group.members), 1) for group in trunks]
    shards, parts = ([piece for _, cut, _ in each for piece in cut] for each in (cuts, first))
    kinds = [kind for cut in (*cuts, *first) for kind in _kinds(ready, *cut, timed.get(_name(cut[0]), ()))]
    for shard in (*shards, *parts):
        if ready.streamed:
            run = shard.members[0].entry.run
            waves.windows_of(shard, ready.data[run.data, run.validation], jax.local_device_count())  # raises
    environment = provenance.environment()
    sweep = Sweep(
        name=ready.experiment.name,
        experiment=str(experiment.resolve()),
        experiment_sha256=hashlib.sha256(experiment.read_bytes()).hexdigest(),
        options=options,
        data_sha256=ready.sha256,
        code=environment["code"],
        matmul_precision=environment["matmul_precision"],
        shards=tuple(_piece(shard, _tasks(shard, by_member)) for shard in shards),
        trunks=tuple(_piece(shard, 1) for shard in parts),
    )
    return sweep, kinds


def _name(group: Shard) -> str:
    return plan.group_name(group.members[0])


def _settled(
    ready: Checked, group: Shard, programs: Programs, *, timed: bool = False
) -> tuple[Shard, Sequence[packing.Measured]]:
    """The group at its width, and what was measured; `timed`: its program is, whether or not that pays."""
    run = group.members[0].entry.run
    data = ready.data[run.data, run.validation]
    group, measured = packing.settled(group, data, programs)
    if timed and not measured and data.host is None:
        measured = [packing.measure(group, data, programs, group.width, alone=group.alone)]
    return group, measured


def _kinds(
    ready: Checked, group: Shard, cut: Sequence[Shard], tasks: int, measured: Sequence[packing.Measured]
) -> list[Kind]:
    """The shards that a group is cut into, which train so many tasks, by their size."""
    run, everyone = group.members[0].entry.run, len(group.members)
    data = ready.data[run.data, run.validation]
    whole = estimate.estimate(group, data, measured, tasks_elsewhere=run.stream.num_tasks - tasks)
    seconds = whole.seconds
    if seconds is None:
        seconds = packing.guessed_seconds(group, data) * tasks / run.stream.num_tasks
    return [
        Kind(count, size, seconds * size / everyone, bool(measured), whole.checkpoint_bytes // everyone, tasks)
        for size, count in collections.Counter(len(shard.members) for shard in cut).items()
    ]


def _fitting(
    ready: Checked, group: Shard, measured: Sequence[packing.Measured], by_member: Mapping[str, Member], hours: float
) -> int:
    """How many members of a group train in so many hours."""
    run, shared = group.members[0].entry.run, int(group.members[0].id in by_member)
    data = ready.data[run.data, run.validation]
    seconds = estimate.estimate(group, data, measured, tasks_elsewhere=shared).seconds
    if seconds is None:
        seconds = packing.guessed_seconds(group, data)
    fitting = max(1, int(3600 * hours * len(group.members) / max(seconds, 1e-9)))
    least = _least(_on_devices(group))
    return fitting - fitting % least if fitting > least else fitting


def _on_devices(group: Shard) -> Shard:
    """As a run of all its members would lie on the devices: on one, or on several."""
    several = not group.alone and jax.local_device_count() > 1 and len(group.members) > group.width
    return dataclasses.replace(group, alone=not several, spread=several)


def _least(group: Shard) -> int:
    """Members that fill what computes them."""
    return group.width * (1 + group.spread)


def _order(group: Shard, by_member: Mapping[str, Member]) -> list[Member]:
    """Members that share a first task, or else a seed, stand together: whoever has one of them has it for all."""

    def shared(member: Member) -> str:
        return by_member[member.id].id if member.id in by_member else str(member.seed)

    first: dict[str, int] = {}
    for member in group.members:
        first.setdefault(shared(member), len(first))
    return sorted(group.members, key=lambda member: first[shared(member)])


def _cut(group: Shard, size: int, members: Sequence[Member]) -> list[Shard]:
    chunks = [tuple(members[first : first + size]) for first in range(0, len(members), size)]
    return [dataclasses.replace(group, members=each, folder=Path(plan.folder_name(each))) for each in chunks]


def _tasks(shard: Shard, by_member: Mapping[str, Member]) -> int:
    """That it trains itself."""
    return shard.members[0].entry.run.stream.num_tasks - int(shard.members[0].id in by_member)


def _piece(shard: Shard, tasks: int) -> Piece:
    return Piece(
        folder=shard.folder.name,
        members=tuple(member.id for member in shard.members),
        width=shard.width,
        alone=shard.alone,
        member_steps=max(1, len(shard.members) * tasks * shard.members[0].entry.run.steps),
    )


def in_words(sweep: Sweep, label: Callable[[Piece], str]) -> list[str]:
    """What was planned, a line a kind of shard."""
    kinds: dict[tuple[str, int, int, int], int] = {}
    for piece in sweep.shards:
        kind = (label(piece), len(piece.members), piece.width, piece.width * (1 if piece.alone else 2))
        kinds[kind] = kinds.get(kind, 0) + 1
    total = sum(len(piece.members) for piece in sweep.shards)
    steps = sum(piece.member_steps for piece in (*sweep.shards, *sweep.trunks))
    lines = [f"{sweep.name}: {total} members in {len(sweep.shards)} shards, {steps:,} member-steps to train"]
    for (name, members, width, least), count in kinds.items():
        places = max(least, -(-members // width) * width)
        idle = "" if members == places else f" (computed as {places})"
        lines.append(f"  {count} x {members} members of {name!r}, width {width}{idle}")
    return lines

"""Task 1 of members that cannot differ before its end, trained once for all of them.

A method that waits for its first boundary trains task 1 as fine-tuning does: no penalty has a strength yet, nothing is
stored. So task 1 of such a run is always trained by the program without methods, once for each seed and whatever else
its runs share, and the members go on from there: a sweep of K strengths over T tasks trains 1 + K (T - 1) tasks a seed
instead of K T. A base that is trained (`cl_jax.base.Pretrained`) is such a first task, of settings of its own; open
weights (`cl_jax.base.Weights`) are one that somebody else has trained.
"""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cl_jax import inside, program
from cl_jax.adapters import Full
from cl_jax.base import Pretrained, Weights
from cl_jax.checkpoint import Checkpoints
from cl_jax.compiled import Programs, Wave, padded
from cl_jax.data import Data
from cl_jax.experiment import Entry, Member, Run, address
from cl_jax.open_weights import params_of
from cl_jax.plan import Shard, begin
from cl_jax.results import write_json
from cl_jax.train import TrainState
from cl_jax.waves import (
    Crew,
    Host,
    Progress,
    crew_of,
    first_states,
    host_like,
    on_devices,
    prepare,
    train_task,
)


class Start(NamedTuple):
    """What members take over from whatever trained their first task; host arrays [members, ...]. Of a base, its weights
    alone (`trainable`), and whether it has diverged.
    """

    base: Host
    trainable: Host
    optimizer: Host
    diverged: np.ndarray  # bool


def trunk_of(run: Run) -> Run | None:
    """The run that trains this one's first task, or None: a method acts from the first step on, or nothing trains."""
    if isinstance(run.base, Pretrained):
        base = run.base
        return dataclasses.replace(
            run, methods={}, diagnostics=(), base=None, adapter=Full(), optimizer=base.optimizer,
            schedule=base.schedule, steps=base.steps, batch_size=base.batch_size, passes=None,
        )  # fmt: skip
    if isinstance(run.base, Weights):
        return None
    waits = all(getattr(method, "waits_for_boundary", False) for method in run.methods.values())
    return dataclasses.replace(run, methods={}, diagnostics=()) if waits else None


def trunk_members(members: Sequence[Member], data_sha256: Mapping[str, str], *, shared: bool) -> dict[str, Member]:
    """Who trains the first task of whom, by the member's id. Not `shared`: each its own, by the same program."""
    found = {}
    for member in members:
        run = trunk_of(member.entry.run)
        if run is not None:
            # Whoever shares it has its one address; the label is for people.
            addressed = Entry(label="task 1" if shared else f"task 1 of {member.id}", run=run)
            id = address(addressed, member.seed, data_sha256[run.data])
            entry = Entry(label=f"task 1 of {member.entry.label}", run=run)
            found[member.id] = Member(entry=entry, seed=member.seed, id=id)
    return found


class Trunks:
    """The first tasks of an experiment, each trained when a shard first asks for it.

    Args:
        shards: of the members that `by_member` names.
        by_member: who trains the first task of whom.
        when: they are saved inside the task.
    """

    def __init__(self, shards: Sequence[Shard], by_member: Mapping[str, Member], when: inside.When = inside.NEVER):
        self._by_member, self._when = by_member, when
        self._place = {member.id: (shard, i) for shard in shards for i, member in enumerate(shard.members)}
        self._locks = {shard.folder: threading.Lock() for shard in shards}
        self._trained: dict[Any, Start] = {}

    def train(self, shard: Shard) -> bool:
        """Whether the shard's first task is trained here, or has been elsewhere."""
        first = shard.members[0]
        return first.id in self._by_member or isinstance(first.entry.run.base, Weights)

    def start(self, shard: Shard, data: Data, progress: Progress, programs: Programs) -> Start | None:
        """Where the shard's members stand after their first task, before its boundary; None: they train it themselves.

        The members of a shard have one static structure, so that either all have a trunk or none.
        """
        run = shard.members[0].entry.run
        if isinstance(run.base, Weights):
            return _opened(run, len(shard.members), data)
        trunks = [self._by_member.get(member.id) for member in shard.members]
        picked = []
        for trunk in trunks:
            if trunk is None:
                return None
            at, place = self._place[trunk.id]
            with self._locks[at.folder]:
                if at.folder not in self._trained:
                    self._trained[at.folder] = _trained(at, data, progress, programs, self._when)
            picked.append(jax.tree.map(lambda leaf, place=place: leaf[place], self._trained[at.folder]))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *picked)


def begun(crew: Crew, wave: Wave, state: TrainState, start: Start) -> TrainState:
    """The state of a wave's members after their first task, before its boundary.

    Args:
        state: their first one.
    """
    if crew.members[0].entry.run.base is None:
        return state._replace(**on_devices(crew, wave, start)._asdict())
    params = jax.tree.map(lambda leaf: leaf[padded(wave.places, crew.packing.wave)], start.trainable)
    state = crew.programs.init(wave, params, crew.data)
    return state._replace(diverged=on_devices(crew, wave, start.diverged))


def _opened(run: Run, count: int, data: Data) -> Start:
    assert isinstance(run.base, Weights)
    params = params_of(run.base, program.view_of(run, data).num_outputs)
    every = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *leaf.shape)), params)
    return Start((), every, (), np.zeros(count, bool))


def _trained(shard: Shard, data: Data, progress: Progress, programs: Programs, when: inside.When) -> Start:
    begin(shard)
    progress.compiling(shard)
    crew, count = crew_of(shard, data, programs), len(shard.members)
    checkpoints = Checkpoints(shard.folder, progress.say)
    try:
        like = host_like(crew)
        held = {"state": like._asdict()}
        found = checkpoints.restore_furthest(held, inside.like(held, count))
        behind, before, steps = np.zeros(count, np.int32), None, shard.members[0].entry.run.steps
        if found is not None:
            if found[2]:
                progress.say(f"{shard.folder.name}: continues inside task 1, {inside.in_words(found[1]['behind'])}")
            before = type(like)(**jax.tree.map(np.asarray, found[1]["state"]))
            behind = np.array(found[1]["behind"]) if found[2] else np.full(count, inside.ENDED, np.int32)
            progress.restored(0 if shard.done else inside.trained(behind, steps, np.ones(count, bool)))
        if (behind != inside.ENDED).any():
            kept = _first_task(crew, before, behind, progress, checkpoints, when)._asdict()
            checkpoints.save(1, {"state": kept})
            checkpoints.wait()
            checkpoints.forget_inside(1)
        else:
            assert before is not None
            kept = before._asdict()
        write_json(shard.folder / "DONE.json", {"tasks": 1})
        when.tell(shard.folder)
    finally:
        checkpoints.close()
    return Start(**{name: kept[name] for name in Start._fields})


def _first_task(
    crew: Crew, before: Host | None, behind: np.ndarray, progress: Progress, checkpoints: Checkpoints,
    when: inside.When,
) -> Host:  # fmt: skip
    """Trains what is left of the first task; the state of every member."""
    steps = crew.members[0].entry.run.steps

    def save(state: Host, behind: np.ndarray) -> None:
        inside.save(checkpoints, 0, {"state": state._asdict()}, behind, steps)

    way_out = inside.Exit(crew, before, behind, when, save)
    prepare(crew)
    for part in inside.parts_of(crew, behind):
        way_out.before(part)
        with crew.programs.busy:
            fresh = part.begin == 0
            state = first_states(crew, part.wave) if fresh else on_devices(crew, part.wave, before)
            way_out.ended(part.wave, train_task(crew, part.wave, state, 0, progress, part.begin, way_out.within(part)))
    return way_out.state()

"""A shard's members wave by wave: the loop of calls that trains a task, and what they leave on the host."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax import flops
from cl_jax.budget import Windows, plan_windows
from cl_jax.compiled import Packing, Programs, Wave, padded, stack
from cl_jax.data import Data
from cl_jax.devices import by_member, guessed_rate
from cl_jax.experiment import Member, Run
from cl_jax.plan import Shard
from cl_jax.program import World
from cl_jax.streaming import Feed
from cl_jax.train import TrainState, kept

CHUNK_STEPS = 250  # steps after which a member that diverges in them is put back, and a task may be gone on with
CALL_SECONDS = 10.0  # of one call by a guess that is rather too long: whoever asks to leave waits for its end

Host = Any  # a tree of numpy arrays [members of the shard, ...]


class Progress(Protocol):
    """Where a shard reports to."""

    def compiling(self, shard: Shard) -> None: ...
    def restored(self, member_steps: int) -> None: ...
    def advanced(self, shard: Shard, task: int, member_steps: int) -> None: ...
    def say(self, message: str) -> None: ...


class Between(Protocol):
    """What is asked and told between two calls of a task."""

    def leave(self) -> bool:
        """Whether to leave."""
        ...

    def __call__(self, state: Any, step: int) -> None:
        """A wave's state, on the devices or the host, and the steps behind it; raises where it is to leave."""
        ...


class Crew(NamedTuple):
    """The members of a shard and what they share."""

    shard: Shard
    members: Sequence[Member]
    worlds: list[World]  # on the host, one a member
    data: Data  # on the devices
    windows: Windows
    packing: Packing
    programs: Programs


def crew_of(shard: Shard, data: Data, programs: Programs) -> Crew:
    packing = programs.packing(len(shard.members), shard.width, alone=shard.alone, spread=shard.spread)
    worlds = programs.worlds(shard.members, data)
    windows = windows_of(shard, data, packing.mesh.size)
    return Crew(shard, shard.members, worlds, programs.data(data, packing.mesh), windows, packing, programs)


def muster(crew: Crew, live: np.ndarray) -> list[Wave]:
    """The waves of the members at places `live`: as few as hold them."""
    size = crew.packing.wave
    parts = [live[first : first + size] for first in range(0, len(live), size)]
    return [crew.programs.wave(crew.members, crew.worlds, part, crew.packing) for part in parts]


def first_states(crew: Crew, wave: Wave) -> TrainState:
    """The wave's state before its first step."""
    return crew.programs.init(wave, first_params(crew, wave), crew.data)


def first_params(crew: Crew, wave: Wave) -> Any:
    """The wave's initial weights, on the host."""
    return stack([crew.worlds[i].params for i in padded(wave.places, crew.packing.wave)])


def prepare(crew: Crew) -> None:
    """Compiles everything that the shard will call, unless data streams: its shapes are those of windows."""
    if crew.data.host is not None:
        return
    wave = muster(crew, np.zeros(1, np.int64))[0]
    crew.programs.prepare(wave, first_params(crew, wave), crew.data, crew.windows.chunk)


def host_like(crew: Crew) -> TrainState:
    """Arrays on the host of the shape of every member's state, [members, ...], that take no memory."""
    wave = muster(crew, np.zeros(1, np.int64))[0]
    shapes = crew.programs.init_shapes(wave, first_params(crew, wave), crew.data)
    count = len(crew.members)
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), (count, *leaf.shape[1:])), shapes)


def train_task(
    crew: Crew, wave: Wave, state: TrainState, task: int, progress: Progress, begin: int = 0,
    between: Between | None = None,
) -> TrainState:  # fmt: skip
    """The steps of a task, in chunks; those of members that have all diverged are not computed.

    Args:
        begin: steps that `state` has behind it, as `between` was told them.
        between: told the state and the steps behind it wherever training may go on from, between two chunks; where it
            is to leave between two calls of a chunk, the state before that chunk.
    """
    steps, count, feed = crew.members[0].entry.run.steps, len(wave.places), feed_of(crew, wave)
    chunk, whole = crew.windows.chunk, chunk_steps(steps)
    # Of the state before a whole chunk that is cut into calls: a member that diverges in any of them is put back to it,
    # however it is cut, and whoever leaves in between goes on from it.
    start = None
    flags: Any = np.zeros(1, bool)
    with feed.training(task, begin) as data_for:
        for first in range(begin, steps, chunk):
            at_whole = first % whole == 0
            if at_whole and start is not None:
                state = _put_back(wave, start, state)
            if between is not None and first > begin:
                if at_whole:
                    between(state, first)
                elif between.leave():
                    between(start, first - first % whole)
            if chunk < whole and at_whole:
                start = jax.tree.map(lambda leaf: np.array(leaf), state)
            state, _ = crew.programs.steps(wave, state, data_for(state), task, first, num_steps=chunk)
            # Waits for the chunk before this one, so that the device always has the next at hand.
            frozen = bool(np.asarray(flags).all())
            flags = jnp.copy(state.diverged)  # the next call uses the state up
            progress.advanced(crew.shard, task, chunk * count)
            if frozen:
                progress.advanced(crew.shard, task, (steps - first - chunk) * count)
                break
    return state if start is None else _put_back(wave, start, state)


def _put_back(wave: Wave, start: Host, state: TrainState) -> TrainState:
    """Members that have diverged as they were at the start, [wave, ...] on the host."""
    if not np.asarray(state.diverged).any():
        return state
    return _kept(jax.device_put(start, by_member(wave.packing.mesh)), state)


_kept = jax.jit(jax.vmap(kept))


def end_task(crew: Crew, wave: Wave, state: TrainState, task: int) -> tuple[TrainState, Any, Any]:
    """As `Programs.end_task`, of data that streams too."""
    if crew.data.host is None:
        return crew.programs.end_task(wave, state, crew.data, task)
    feed = feed_of(crew, wave)
    with feed.boundary(state, task) as data:
        state, shown = jax.block_until_ready(crew.programs.boundary(wave, state, data, task))
    return state, shown, feed.evaluate(partial(crew.programs.row_part, wave, shown, task + 1), task + 1)


def windows_of(shard: Shard, data: Data, num_devices: int) -> Windows:
    """What a shard's waves hold of the data at a time. Raises UserError: more than its budget."""
    run = shard.members[0].entry.run
    wave = shard.width * (
        1 if shard.alone else min(num_devices, max(1 + shard.spread, -(-len(shard.members) // shard.width)))
    )
    num_seeds = min(wave, len({member.seed for member in shard.members}))
    return plan_windows(run, num_seeds, wave, data, call_steps(run, data, wave))


def feed_of(crew: Crew, wave: Wave) -> Feed:
    """What the wave's programs are given as data."""
    at = padded(wave.places, crew.packing.wave)
    seeds, curricula = [crew.members[i].seed for i in at], [crew.worlds[i].curriculum for i in at]
    return Feed(crew.members[0].entry.run, seeds, curricula, crew.data, crew.windows)


def chunk_steps(steps: int, most: int = CHUNK_STEPS) -> int:
    """The largest divisor of `steps` up to `most`, or all steps where that would be tiny: one shape, one compile."""
    best = max(size for size in range(1, min(steps, most) + 1) if steps % size == 0)
    return best if best * 10 >= min(steps, most) else steps


def call_steps(run: Run, data: Data, wave: int) -> int:
    """Steps of one call that trains so many members: a chunk's, or a divisor of them where those would take long."""
    whole = chunk_steps(run.steps)
    # As if every device had its share of the wave, at a rate that is guessed too low: too short a call costs little.
    most = CALL_SECONDS * guessed_rate() * jax.local_device_count() / max(1, wave * flops.of_a_step(run, data))
    # Never one, if it can be helped: a loop of one round is compiled as none, which may round otherwise.
    sizes = [size for size in range(2, whole + 1) if whole % size == 0] or [1]
    return max([size for size in sizes if size <= most], default=sizes[0])


def to_host(wave: Wave, tree: Any) -> Host:
    """The wave's real members. A copy: the next call uses the device's arrays up."""
    return jax.tree.map(lambda leaf: np.array(np.asarray(leaf)[: len(wave.places)]), tree)


def gathered(waves: Sequence[Wave], parts: Sequence[Host], before: Host | None, num_members: int) -> Host:
    """Every member's part in the shard's order; members in no wave keep what they had."""
    index = np.concatenate([wave.places for wave in waves]) if waves else np.zeros(0, np.int64)
    if before is None or len(index) == num_members:
        order = np.argsort(index, kind="stable")
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *parts)

    def put(old: np.ndarray, *leaves: np.ndarray) -> np.ndarray:
        new = old.copy()
        for wave, leaf in zip(waves, leaves, strict=True):
            new[wave.places] = leaf
        return new

    return jax.tree.map(put, before, *parts)


def on_devices(crew: Crew, wave: Wave, host: Host) -> Any:
    """The wave's members of a host tree."""
    at = padded(wave.places, crew.packing.wave)
    return jax.tree.map(lambda leaf: jax.device_put(leaf[at], by_member(crew.packing.mesh)), host)

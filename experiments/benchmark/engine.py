"""The one place that knows how the sweep engine is called."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cl_jax import compiled, packing, plan, program
from cl_jax.config import replace
from cl_jax.data import Data
from cl_jax.devices import mesh_of
from cl_jax.experiment import Entry, Member, Run


class Packing(NamedTuple):
    """How members are laid out: `width` side by side on each of `devices`; more of them follow in waves."""

    devices: int
    width: int

    @property
    def members(self) -> int:
        """That train at once."""
        return self.devices * self.width

    def __str__(self) -> str:
        return f"{self.devices} x {self.width}"


def packings(members: tuple[int, ...], widths: tuple[int, ...]) -> list[Packing]:
    """Every layout of one of these numbers of members: these widths, as many as a device's share of the members needs,
    over all devices that the members fill; and the widest of them on one device.
    """
    every = jax.local_device_count()
    found = {Packing(1, max(width for width in widths if width <= max(members)))}
    for count in members:
        for width in {min(width, -(-count // every)) for width in widths}:
            found.add(Packing(min(every, -(-count // width)), width))
    return sorted(one for one in found if one.members <= max(members))


def chosen(run: Run, data: Data, counts: Sequence[int]) -> dict[int, Packing]:
    """What the engine itself takes for so many members, by measuring as it does before it trains them."""
    found = {}
    for count in sorted(counts, reverse=True):  # what is measured for many is known for few
        widest = plan.widest(state_bytes(run, data), jax.default_backend())
        width = plan.choose_width(count, widest, jax.local_device_count())
        shard = plan.Shard(folder=Path(), members=tuple(members_of(run, count)), width=width, fixed=False)
        shard, _ = packing.settled(shard, data, programs(), share=math.inf)
        devices = 1 if shard.alone else min(jax.local_device_count(), -(-count // shard.width))
        found[count] = Packing(devices, shard.width)
    return found


def members_of(run: Run, count: int) -> list[Member]:
    """Members of one seed that differ in their learning rates by parts of a thousand."""
    rates = [run.optimizer.learning_rate * (1 + i / 4096) for i in range(count)]
    runs = [replace(run, {"optimizer.learning_rate": rate}) for rate in rates]
    return [Member(entry=Entry(label="benchmark", run=one), seed=0, id=f"{i}") for i, one in enumerate(runs)]


def state_bytes(run: Run, data: Data) -> int:
    """What one member's training state takes on the device."""
    return program.state_bytes(run, data)


@functools.cache
def programs() -> compiled.Programs:
    """One for all, so that worlds that are equal are made once."""
    return compiled.Programs()


class Engine:
    """`count` members of one run, ready to train; left out: as many as train at once."""

    def __init__(self, run: Run, data: Data, layout: Packing, count: int | None = None):
        members = members_of(run, count or layout.members)
        self.layout, self.count = layout, len(members)
        mesh = mesh_of(jax.local_devices()[: layout.devices])
        packed, worlds = compiled.Packing(mesh, layout.width), programs().worlds(members, data)
        self.data = programs().data(data, mesh)
        self.waves, self.states = [], []
        for first in range(0, self.count, layout.members):
            index = np.arange(first, min(first + layout.members, self.count))
            wave = programs().wave(members, worlds, index, packed)
            params = compiled.stack([worlds[i].params for i in compiled.padded(index, layout.members)])
            self.waves.append(wave)
            self.states.append(programs().init(wave, params, self.data))

    def steps(self, num_steps: int) -> Any:
        """Trains every member for so many steps of the first task; the mean losses."""
        losses = []
        for i, wave in enumerate(self.waves):
            self.states[i], loss = programs().steps(wave, self.states[i], self.data, 0, 0, num_steps=num_steps)
            losses.append(loss)
        return losses

    def end_task(self) -> Any:
        """Takes the boundary after the first task, once more; the evaluation that it gives."""
        rows = []
        for i, wave in enumerate(self.waves):
            self.states[i], _, row = programs().end_task(wave, self.states[i], self.data, 0)
            rows.append(row)
        return rows

    def checkpoint(self) -> Any:
        """What is saved at a boundary, less the results: on the host."""
        parts = [jax.tree.map(lambda leaf: np.array(leaf, copy=True), state) for state in self.states]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: self.count], *parts)._asdict()

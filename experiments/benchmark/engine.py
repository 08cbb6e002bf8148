"""The one place that knows how the sweep engine is called."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from cl_jax import compiled, plan, program
from cl_jax.config import replace
from cl_jax.data import Data
from cl_jax.experiment import Entry, Member, Run
from experiments.benchmark.cases import cores


class Packing(NamedTuple):
    """How members are laid out: `devices` times `width` train at once, each device with `threads`."""

    devices: int
    width: int
    threads: int

    @property
    def members(self) -> int:
        return self.devices * self.width

    def __str__(self) -> str:
        return f"{self.devices} x {self.width}"


def packings(most: int, widths: tuple[int, ...]) -> list[Packing]:
    """Every packing of these widths that trains at most so many members at once, the smallest first."""
    return [Packing(1, width, cores()) for width in widths if width <= most]


def chosen(run: Run, data: Data, members: int) -> Packing:
    """What the engine itself would take for so many members."""
    widest = plan.widest(program.state_bytes(run, data), jax.default_backend())
    return Packing(1, plan.choose_width(members, widest), cores())


@functools.cache
def programs() -> compiled.Programs:
    """One for all, so that worlds that are equal are made once."""
    return compiled.Programs()


class Engine:
    """`count` members of one run, ready to train. They differ in their learning rates by parts of a thousand."""

    def __init__(self, run: Run, data: Data, packing: Packing, count: int | None = None):
        rates = [run.optimizer.learning_rate * (1 + i / 4096) for i in range(count or packing.members)]
        runs = [replace(run, {"optimizer.learning_rate": rate}) for rate in rates]
        everyone = [Member(entry=Entry(label="benchmark", run=one), seed=0, id=f"{i}") for i, one in enumerate(runs)]
        self.run, self.data, self.packing, self.count = run, data, packing, len(everyone)
        self.members = compiled.stack(everyone, packing.width)
        self.world = programs().worlds(self.members, data)
        self.state = programs().init(self.members, self.world, data, width=packing.width)

    def steps(self, num_steps: int) -> jax.Array:
        """Trains every member for so many steps of the first task."""
        self.state, losses = programs().steps(
            self.members, self.world, self.state, self.data, 0, 0, num_steps=num_steps, width=self.packing.width
        )
        return losses

    def end_task(self) -> np.ndarray:
        """Takes the boundary after the first task, from the same state every time; the evaluation that it gives."""
        _, row = programs().end_task(self.members, self.world, self.state, self.data, 0, width=self.packing.width)
        return row

    def checkpoint(self) -> Any:
        """What is saved at a boundary, less the results."""
        return self.state._asdict()


def state_bytes(run: Run, data: Data) -> int:
    """What one member's training state takes on the device."""
    return program.state_bytes(run, data)

"""The programs of an experiment: `cl_jax.program` mapped over members and compiled.

One object serves all shards. jit compiles each program once for each static structure it is called with: training and
boundary once a group, a world and its evaluation once for all methods that share them.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax import program
from cl_jax.data import Data
from cl_jax.experiment import Member
from cl_jax.program import World
from cl_jax.train import TrainState

# For what runs once a seed, compiling is the larger part: a world of MNIST took 1.3 s in all instead of 2.0 s. Not for
# the boundary: its Fisher took 0.60 s instead of 0.42 s.
QUICK = {"xla_backend_optimization_level": 1}


class Members(NamedTuple):
    """Members of one static group, stacked: every leaf has a leading axis [M], M a multiple of the width."""

    runs: Any  # Run, leaves float32 [M]
    plain: Any  # Run as `program.world_of` gives it, leaves float32 [M], on the host
    seeds: jax.Array  # int32 [M]


def stack(members: Sequence[Member], width: int) -> Members:
    """Pads to a multiple of the width by repeating the last member."""
    padded = [*members, *[members[-1]] * (-len(members) % width)]
    runs = [jax.tree.map(np.float32, member.entry.run) for member in padded]
    plain = [jax.tree.map(np.float32, program.world_of(run)) for run in runs]
    return Members(
        jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *runs),
        jax.tree.map(lambda *leaves: np.stack(leaves), *plain),
        jnp.asarray([member.seed for member in padded], jnp.int32),
    )


class Programs:
    """What a shard calls, in the order of a member's life.

    Args:
        on_trace: told the name of a program whenever one is traced.
    """

    def __init__(self, on_trace: Callable[[str], None] = lambda name: None):
        quick = QUICK if jax.default_backend() == "cpu" else None
        self._worlds: dict[Any, World] = {}
        self._lock = threading.Lock()  # two shards that need the same program at once would both compile it

        def compiled(name: str, function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
            def traced(*values: Any, **static: Any) -> Any:
                on_trace(name)
                return function(*values, **static)

            return jax.jit(traced, static_argnames=("width", "num_steps"), **arguments)

        def over_members(function: Callable[..., Any]) -> Callable[..., Any]:
            def mapped(stacked: Any, data: Data, *shared: jax.Array, width: int, **static: int) -> Any:
                return jax.lax.map(lambda member: function(*member, data, *shared, **static), stacked, batch_size=width)

            return mapped

        def part(stacked: Any, first: jax.Array, *, width: int) -> Any:
            return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, width), stacked)

        self._world = compiled("world", program.make_world, compiler_options=quick)
        self._init = compiled("init", over_members(program.init), compiler_options=quick)
        self._steps = compiled("steps", over_members(program.steps))
        self._end_task = compiled("end_task", over_members(program.end_task))
        self._part = compiled("part", part, compiler_options=quick)
        self._row = compiled("row", jax.vmap(program.row, in_axes=(0, 0, 0, None, None)))

    def worlds(self, members: Members, data: Data) -> World:
        """The members' worlds, stacked. Each is made once, alone: whatever shares it starts from the same bits."""
        made = []
        for number, seed in enumerate(members.seeds.tolist()):
            plain = jax.tree.map(lambda leaf, number=number: leaf[number], members.plain)
            leaves, structure = jax.tree.flatten(plain)
            key = (structure, tuple(map(float, leaves)), seed, data.sha256, data.sizes)
            with self._lock:
                if key not in self._worlds:
                    self._worlds[key] = jax.tree.map(np.asarray, self._world(plain, jnp.int32(seed), data))
                made.append(self._worlds[key])
        return jax.tree.map(lambda *each: jnp.asarray(np.stack(each)), *made)

    def init(self, members: Members, world: World, data: Data, *, width: int) -> TrainState:
        """The state of every member before its first step."""
        return self._init((members.runs, members.seeds, world.curriculum, world.params), data, width=width)

    def steps(
        self, members: Members, world: World, state: TrainState, data: Data, task: int, first_step: int, *,
        num_steps: int, width: int,
    ) -> tuple[TrainState, jax.Array]:  # fmt: skip
        """The state after some steps of a task, and each member's mean loss over them."""
        stacked = (members.runs, members.seeds, world.curriculum, state)
        return self._steps(stacked, data, jnp.int32(task), jnp.int32(first_step), num_steps=num_steps, width=width)

    def end_task(
        self, members: Members, world: World, state: TrainState, data: Data, task: int, *, width: int
    ) -> tuple[TrainState, np.ndarray]:
        """The state after a boundary, and its evaluation: float32 [M, splits, metrics, T]."""
        stacked = (members.runs, members.seeds, world.curriculum, state)
        state, params = self._end_task(stacked, data, jnp.int32(task), width=width)
        rows = []
        # Evaluated in parts of one width, so that groups of any size share one compiled evaluation.
        for first in range(0, members.seeds.shape[0], width):
            with self._lock:
                part = self._part((members.plain, world.curriculum, params), jnp.int32(first), width=width)
                rows.append(self._row(*part, data, jnp.int32(task + 1)))
        return state, np.concatenate([np.asarray(row) for row in rows])

"""The programs of an experiment: `cl_jax.program` mapped over a wave of members and compiled.

A wave is what one call computes: `width` members side by side on each device (`vmap`), devices beside each other
(`shard_map`: nothing is communicated). All waves of all shards of a static group call one compiled program, whatever
their number of members; a world is compiled once for all methods that share it, its evaluation once for each packing.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from cl_jax import program
from cl_jax.data import Data
from cl_jax.devices import AXIS, by_member, crowded, mesh_of, on_each
from cl_jax.diagnostics.boundary import measure
from cl_jax.diagnostics.columns import layout
from cl_jax.experiment import Member
from cl_jax.program import World
from cl_jax.tasks.stream import Curriculum
from cl_jax.train import TrainState

# For what runs once a seed, compiling is the larger part: a world of MNIST took 1.3 s in all instead of 2.0 s. Not for
# the boundary: its Fisher took 0.60 s instead of 0.42 s.
QUICK = {"xla_backend_optimization_level": 1}


class Packing(NamedTuple):
    """How members lie on the devices. Results depend on the width in the last bits, not on the devices."""

    mesh: Mesh
    width: int  # members side by side on one device

    @property
    def wave(self) -> int:
        """Members a call."""
        return self.mesh.size * self.width


class Wave(NamedTuple):
    """Members that one call trains, stacked and padded: every leaf has a leading axis [wave], over the devices."""

    places: np.ndarray  # int [real members], their places in the shard; the padding repeats the last one
    packing: Packing
    runs: Any  # Run, leaves float32 [wave]
    plain: Any  # Run as `program.evaluation_of` gives it, leaves float32 [wave]
    seeds: jax.Array  # int32 [wave]
    curriculum: Curriculum


class Programs:
    """What a shard calls, in the order of a member's life.

    Args:
        on_trace: told the name of a program whenever one is traced.
        devices: what members are spread over; None: all that are here.
    """

    def __init__(self, on_trace: Callable[[str], None] = lambda name: None, devices: Sequence[Any] | None = None):
        self.devices = list(jax.local_devices() if devices is None else devices)
        self._worlds: dict[Any, World] = {}
        self._placed: dict[Any, Data] = {}
        self.busy = threading.Lock()  # held while a wave computes: two at once would only share caches and cores
        self._tracing = threading.Lock()
        self._lock = threading.Lock()  # two shards that need the same program at once would both compile it
        quick = QUICK if self.devices[0].platform == "cpu" else None

        def compiled(name: str, function: Callable[..., Any], **arguments: Any) -> Any:
            def traced(*values: Any, **static: Any) -> Any:
                on_trace(name)
                return function(*values, **static)

            return jax.jit(traced, static_argnames=("packing", "num_steps", "split"), **arguments)

        self._world = compiled("world", program.make_world, compiler_options=quick)
        self._init = compiled("init", over_members(program.init), compiler_options=quick)
        self._steps = compiled("steps", over_members(program.steps), donate_argnums=1)
        self._end_task = compiled("end_task", over_members(program.end_task), donate_argnums=1)
        self._row = compiled("row", over_members(program.row))
        self._row_part = compiled("row_part", over_members(program.row_part))
        self._shown = compiled("shown", over_members(program.shown))
        self._diagnose = compiled("diagnose", over_members(measure))

    def make_room(self) -> None:
        """Drops all compiled programs where they have become too many; what is needed again comes from the cache."""
        if crowded():
            with self.busy, self._tracing, self._lock:
                jax.clear_caches()

    def packing(self, num_members: int, width: int, *, alone: bool = False, spread: bool = False) -> Packing:
        """As many devices as the members fill, or one, or two at least; see `cl_jax.plan.Shard`."""
        return Packing(mesh_of(self.devices[: 1 if alone else max(1 + spread, -(-num_members // width))]), width)

    def data(self, data: Data, mesh: Mesh) -> Data:
        """The data set on each device of a mesh, put there once."""
        key = (mesh, data.sha256, data.sizes, data.host)
        with self._lock:
            if key not in self._placed:
                here = mesh.size == 1 and data.images.devices() == set(mesh.devices.flat)
                self._placed[key] = data if here else jax.device_put(data, on_each(mesh))
            return self._placed[key]

    def worlds(self, members: Sequence[Member], data: Data) -> list[World]:
        """The members' worlds, on the host. Each is made once, alone: whatever shares it starts from the same bits."""
        made = []
        for member in members:
            plain = jax.tree.map(np.float32, program.world_of(member.entry.run))
            leaves, structure = jax.tree.flatten(plain)
            key = (structure, tuple(map(float, leaves)), member.seed, data.sha256, data.sizes)
            with self._lock:
                if key not in self._worlds:
                    self._worlds[key] = jax.tree.map(np.asarray, self._world(plain, jnp.int32(member.seed), data))
                made.append(self._worlds[key])
        return made

    def wave(self, members: Sequence[Member], worlds: Sequence[World], places: np.ndarray, packing: Packing) -> Wave:
        """The members at `places`, on the devices."""
        at = padded(places, packing.wave)
        runs = [jax.tree.map(np.float32, members[i].entry.run) for i in at]
        put = by_member(packing.mesh)
        return Wave(
            places,
            packing,
            jax.device_put(stack(runs), put),
            jax.device_put(stack([jax.tree.map(np.float32, program.evaluation_of(run)) for run in runs]), put),
            jax.device_put(np.array([members[i].seed for i in at], np.int32), put),
            jax.device_put(stack([worlds[i].curriculum for i in at]), put),
        )

    def init(self, wave: Wave, params: Any, data: Data) -> TrainState:
        """The state of every member before its first step, from its first parameters [wave, ...]."""
        return self._init((wave.runs, wave.seeds, wave.curriculum), params, data, packing=wave.packing)

    def init_shapes(self, wave: Wave, params: Any, data: Data) -> TrainState:
        """Shapes and dtypes of what `init` gives; nothing is computed."""
        return self._init.eval_shape((wave.runs, wave.seeds, wave.curriculum), params, data, packing=wave.packing)

    def steps(
        self, wave: Wave, state: TrainState, data: Data, task: int, first_step: int, *, num_steps: int
    ) -> tuple[TrainState, jax.Array]:
        """The state after some steps of a task, and each member's mean loss over them. Uses `state` up."""
        about = (wave.runs, wave.seeds, wave.curriculum)
        numbers = (np.int32(task), np.int32(first_step))
        return self._steps(about, state, data, *numbers, num_steps=num_steps, packing=wave.packing)

    def prepare(self, wave: Wave, params: Any, data: Data, num_steps: int) -> None:
        """Compiles what the wave will call, so that others can compute meanwhile.

        Tracing is Python: two at once would only both be late.
        """
        about, put, number = (wave.runs, wave.seeds, wave.curriculum), by_member(wave.packing.mesh), np.int32(0)
        with self._tracing:
            init = self._init.lower(about, params, data, packing=wave.packing)
            state = on_mesh(init.out_info, put)
            steps = self.lowered_steps(wave, state, data, num_steps)
            end_task = self._end_task.lower(about, state, data, number, packing=wave.packing)
            shown = on_mesh(end_task.out_info[1], put)
            diagnose = self._lowered_diagnose(wave, end_task.out_info, data)
        init.compile()
        steps.compile()
        end_task.compile()
        if diagnose is not None:
            diagnose.compile()
        with self._lock:
            self._row.lower((wave.plain, wave.curriculum), shown, data, number, packing=wave.packing).compile()

    def compiled_steps(self, wave: Wave, state: Any, data: Data, num_steps: int) -> Any:
        """The program that `steps` runs, for a look at its memory and its text; `state`: arrays or shapes."""
        return self.lowered_steps(wave, state, data, num_steps).compile()

    def lowered_steps(self, wave: Wave, state: Any, data: Data, num_steps: int) -> Any:
        """The same, not yet compiled."""
        about, numbers = (wave.runs, wave.seeds, wave.curriculum), (np.int32(0), np.int32(0))
        return self._steps.lower(about, state, data, *numbers, num_steps=num_steps, packing=wave.packing)

    def boundary(self, wave: Wave, state: TrainState, data: Data, task: int) -> tuple[TrainState, Any]:
        """`end_task` without the evaluation: the state, and what is evaluated."""
        about = (wave.runs, wave.seeds, wave.curriculum)
        return self._end_task(about, state, data, np.int32(task), packing=wave.packing)

    def shown(self, wave: Wave, state: TrainState, data: Data, task: int) -> Any:
        """What is evaluated of a state that no boundary has just left; `task`: the last one trained."""
        about = (wave.runs, wave.curriculum)
        return self._shown(about, state, data, np.int32(task), packing=wave.packing)

    def diagnose(self, wave: Wave, held: Any, data: Data, after: int, since: int) -> jax.Array:
        """As `cl_jax.diagnostics.boundary.measure`: float32 [wave, N]. `held`: kept, shown, and the state."""
        about, numbers = (wave.runs, wave.seeds, wave.curriculum), (np.int32(after), np.int32(since))
        return self._diagnose(about, held, data, *numbers, packing=wave.packing)

    def _lowered_diagnose(self, wave: Wave, ended: Any, data: Data) -> Any:
        """What `diagnose` runs, not yet compiled; `ended`: shapes of the state and of what is evaluated. None: the
        members are asked for no diagnostics.
        """
        if not wave.runs.diagnostics:
            return None
        kept = layout(wave.runs, data).kept
        size, about, number = wave.packing.wave, (wave.runs, wave.seeds, wave.curriculum), np.int32(0)
        kept = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype), kept)
        held = on_mesh((kept, *reversed(ended)), by_member(wave.packing.mesh))
        return self._diagnose.lower(about, held, data, number, number, packing=wave.packing)

    def row_part(self, wave: Wave, shown: Any, after: int, data: Data, split: str, task: int, first: int) -> jax.Array:
        """Sums over one chunk of one task, as `cl_jax.evaluate.chunk_sums`: float32 [wave, 2, metrics]."""
        numbers = (np.int32(after), np.int32(task), np.int32(first))
        return self._row_part((wave.plain, wave.curriculum), shown, data, *numbers, split=split, packing=wave.packing)

    def end_task(self, wave: Wave, state: TrainState, data: Data, task: int) -> tuple[TrainState, Any, jax.Array]:
        """The state after a boundary, what is evaluated there, and the evaluation: float32 [wave, splits, metrics, T].
        Uses `state` up.
        """
        state, shown = self.boundary(wave, state, data, task)
        with self._lock:
            row = self._row((wave.plain, wave.curriculum), shown, data, np.int32(task + 1), packing=wave.packing)
        return state, shown, row


def over_members(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(*about, value, data, *shared)` of one member, for a wave of them."""

    def mapped(about: Any, value: Any, data: Data, *shared: jax.Array, packing: Packing, **static: Any) -> Any:
        def local(about: Any, value: Any, data: Data, *shared: jax.Array) -> Any:
            def one(about: Any, value: Any) -> Any:
                return function(*about, value, data, *shared, **static)

            if packing.width > 1:
                return jax.vmap(one)(about, value)
            # Without the axis of one: a batch of one matrix product is compiled as something slower.
            return jax.tree.map(lambda leaf: leaf[None], one(*jax.tree.map(lambda leaf: leaf[0], (about, value))))

        split, whole = PartitionSpec(AXIS), PartitionSpec()
        specs = (split, split, whole, *[whole] * len(shared))
        # The check wants every constant that a scan starts from marked as different on each device.
        run = jax.shard_map(local, mesh=packing.mesh, in_specs=specs, out_specs=split, check_vma=False)
        return run(about, value, data, *shared)

    return mapped


def on_mesh(shapes: Any, put: Any) -> Any:
    """Shapes of arrays as they will lie on the devices."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=put), shapes)


def padded(places: np.ndarray, wave: int) -> np.ndarray:
    """To a multiple of the wave, by repeating the last one."""
    return np.concatenate([places, np.repeat(places[-1:], -len(places) % wave)])


def stack(trees: Sequence[Any]) -> Any:
    """One tree of host arrays with a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

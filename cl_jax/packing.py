"""How many members side by side: measured on this device, once for each program, and kept.

Members of one wave share a device's caches and its cores; whether wide or narrow is faster differs by model, batch and
device, up to four times. What is measured is the very program that will train, so that nothing is compiled in vain.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from cl_jax import flops
from cl_jax.cache import cache_folder
from cl_jax.compiled import Programs
from cl_jax.data import Data
from cl_jax.devices import guessed_rate, memory_bytes
from cl_jax.errors import UserError
from cl_jax.plan import Shard, choose_width
from cl_jax.race import race, rounds_in
from cl_jax.results import read_json, write_json
from cl_jax.waves import call_steps, crew_of, first_states, muster

WIDTHS = (1, 2, 4, 8, 16, 64)
MEMORY_SHARE = 0.85  # of a device's memory that a wave may take
MEASURED_SECONDS = 0.3  # a width, once it is compiled
SHARE = 0.05  # of a shard's time that may be spent on measuring
LONGEST_CALL = 10.0  # seconds; a width that is expected to take longer is not tried
LEAST_SECONDS = 3.0  # of measuring, below which nothing is: a program compiles about as long
ENOUGH = 1.3  # a width this much slower than the best: those beyond it are not tried
MEASURING = 2  # counted up where what was measured before is to be measured anew
NEAR = 1.5  # measured one after another, so much slower than the best may be the machine's: they race


@dataclasses.dataclass(frozen=True)
class Measured:
    """One program at one width."""

    width: int
    milliseconds: float  # a member-step: wall time of a call / (members x steps)
    bytes: int  # a device, while the wave trains: arguments, outputs and temporaries
    compile_seconds: float
    alone: bool = False  # on one device, with every core

    @property
    def fits(self) -> bool:
        return self.bytes <= MEMORY_SHARE * memory_bytes()


class Trial:
    """A full wave at one width, compiled and ready to be called; members are repeated to fill it."""

    def __init__(self, shard: Shard, data: Data, programs: Programs, width: int, *, alone: bool = False):
        size = programs.packing(len(shard.members), width, alone=alone).wave
        members = tuple(shard.members[i % len(shard.members)] for i in range(size))
        self._crew = crew_of(dataclasses.replace(shard, members=members, width=width, alone=alone), data, programs)
        (self._wave,) = muster(self._crew, np.arange(size))
        self._state, self._steps = first_states(self._crew, self._wave), self._crew.windows.chunk
        began = time.perf_counter()
        memory = programs.compiled_steps(self._wave, self._state, self._crew.data, self._steps).memory_analysis()
        compile_seconds = time.perf_counter() - began
        taken = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        self.found = Measured(width, float("inf"), taken - memory.alias_size_in_bytes, compile_seconds, alone)

    def call(self) -> float:
        """Trains the wave for one call; milliseconds a member-step."""
        began = time.perf_counter()
        programs, crew = self._crew.programs, self._crew
        self._state, losses = programs.steps(self._wave, self._state, crew.data, 0, 0, num_steps=self._steps)
        jax.block_until_ready(losses)
        return 1e3 * (time.perf_counter() - began) / (len(crew.members) * self._steps)

    def seconds(self, milliseconds: float) -> float:
        """Of a call, where a member-step takes so many milliseconds."""
        return milliseconds / 1e3 * len(self._crew.members) * self._steps


def measure(shard: Shard, data: Data, programs: Programs, width: int, *, alone: bool = False) -> Measured:
    """Compiles the training program of a full wave and times it."""
    trial, times = Trial(shard, data, programs, width, alone=alone), []
    if not trial.found.fits:
        return trial.found
    began = time.perf_counter()
    # At least two, the first of which finds nothing in the caches.
    while len(times) < 2 or time.perf_counter() - began < MEASURED_SECONDS:
        times.append(trial.call())
    # The fastest call: what disturbs a measurement only ever slows it down.
    return dataclasses.replace(trial.found, milliseconds=min(times))


def explore(
    of_width: Callable[[int], Measured],
    call: Callable[[Measured, int], float],
    first: int,
    widths: Sequence[int],
    seconds: Callable[[Measured], float],
) -> list[Measured]:
    """Measures the first width, then wider and then narrower ones while that pays.

    Args:
        call: what a call at another width would take if a member-step took as long as it was measured.
        seconds: to spend on this, once the first width is measured.
    """
    began, found = time.monotonic(), [of_width(first)]
    for side in (sorted(w for w in widths if w > first), sorted((w for w in widths if w < first), reverse=True)):
        for width in side:
            expected = call(found[0], width)
            needed = time.monotonic() - began + found[0].compile_seconds + 2 * expected
            if expected > LONGEST_CALL or needed > seconds(found[0]):
                break
            found.append(of_width(width))
            best = min(each.milliseconds for each in found)
            if not found[-1].fits or found[-1].milliseconds > ENOUGH * best:
                break
    return found


def rematch(found: Sequence[Measured], trial_of: Callable[[Measured], Trial], seconds: float) -> list[Measured]:
    """What was measured one after another, with those that are near the best measured anew, in turns.

    Args:
        trial_of: makes ready what was measured.
        seconds: that this may take; too few: nothing changes.
    """
    by_time = sorted((each for each in found if each.fits), key=lambda each: each.milliseconds)
    room, near = MEMORY_SHARE * memory_bytes(), []
    for each in by_time:
        room -= each.bytes
        if room < 0 or each.milliseconds > NEAR * by_time[0].milliseconds:
            break
        near.append(each)
    trials = [trial_of(each) for each in near]
    rounds = rounds_in(seconds, sum(trial.seconds(each.milliseconds) for trial, each in zip(trials, near, strict=True)))
    if len(near) < 2 or not rounds:
        return list(found)
    times = race([trial.call for trial in trials], rounds)
    anew = {
        (each.width, each.alone): dataclasses.replace(each, milliseconds=time_)
        for each, time_ in zip(near, times, strict=True)
    }
    return [anew.get((each.width, each.alone), each) for each in found]


def best_width(found: Sequence[Measured], num_members: int, num_devices: int) -> int:
    """The width whose waves train all members soonest: the fastest per member-step, or one that pads fewer.

    Raises:
        UserError: not even the narrowest fits.
    """
    fitting = {each.width: each for each in found if each.fits and np.isfinite(each.milliseconds) and not each.alone}
    if not fitting:
        least = min(found, key=lambda each: each.width)
        raise UserError(
            f"one member takes {least.bytes / 1e9:.2f} GB on a device, of which {memory_bytes() / 1e9:.2f} GB may be "
            f"used to {MEMORY_SHARE:.0%}: use a smaller model or batch, or a larger device"
        )
    fastest = min(fitting.values(), key=lambda each: each.milliseconds)
    return choose_width(num_members, fastest.width, num_devices)


def kept(program: str, widths: Sequence[int], measured: Callable[[], list[Measured]]) -> list[Measured]:
    """What was measured of a program on this device before, among these widths, or is measured now and kept."""
    device = jax.devices()[0]
    about = [program, MEASURING, list(widths), device.device_kind, jax.local_device_count(), jax.__version__]
    address = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    file = cache_folder() / "widths" / f"{address}.json"
    if file.is_file():
        try:
            return [Measured(**each) for each in read_json(file, {"measured": list})["measured"]]
        except (UserError, TypeError):
            file.unlink(missing_ok=True)  # a torn file of a cache is worth nothing
    found = measured()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_json(file, {"about": about[1:], "measured": [dataclasses.asdict(each) for each in found]})
    return found


def settled(shard: Shard, data: Data, programs: Programs, *, share: float = SHARE) -> tuple[Shard, list[Measured]]:
    """The shard at the width that trains it soonest, and what was measured; nothing is, where it would not pay.

    Args:
        share: of the shard's time, that measuring may take.

    Raises:
        UserError: not one member fits the device.
    """
    run = shard.members[0].entry.run
    member_steps = len(shard.members) * run.steps * run.stream.num_tasks
    if data.host is not None:
        return shard, []  # what streams is held up by the host
    if share < 1 and share * guessed_seconds(shard, data) < LEAST_SECONDS:
        return shard, []
    most = -(-len(shard.members) // len(programs.devices))
    widths = sorted({min(width, most) for width in WIDTHS})

    def measured() -> list[Measured]:
        def call(known: Measured, width: int) -> float:
            size = programs.packing(len(shard.members), width).wave
            return known.milliseconds / 1e3 * size * call_steps(run, data, size)

        def allowed(known: Measured) -> float:
            return share * member_steps * known.milliseconds / 1e3

        began = time.monotonic()
        found = explore(lambda width: measure(shard, data, programs, width), call, shard.width, widths, allowed)
        best = min(found, key=lambda each: each.milliseconds)
        one = next((each for each in found if each.width == 1 and each.fits), None)
        several = programs.devices[0].platform == "cpu" and len(programs.devices) > 1
        if several and one is not None and one.milliseconds <= NEAR * best.milliseconds:
            found.append(measure(shard, data, programs, 1, alone=True))
        left = allowed(best) - (time.monotonic() - began)
        return rematch(found, lambda each: Trial(shard, data, programs, each.width, alone=each.alone), left)

    found = kept(program_of(shard, data, programs), widths, measured)
    if shard.fixed:
        return dataclasses.replace(shard, alone=shard.width == 1 and better_alone(found, width=1)), found
    width = best_width(found, len(shard.members), len(programs.devices))
    alone = better_alone(found, width)
    return dataclasses.replace(shard, width=1 if alone else width, fixed=True, alone=alone), found


def better_alone(found: Sequence[Measured], width: int) -> bool:
    """Whether one member at a time that has all cores trains sooner than so many side by side on each core.

    It does where the weights of a member fill a core's cache and a batch is small, so that a step waits for memory: two
    members at once wait for twice as much.
    """
    alone = [each.milliseconds for each in found if each.alone and each.fits]
    wide = {each.width: each.milliseconds for each in found if not each.alone and each.fits}
    fastest = min(wide.values(), default=float("inf"))
    return bool(alone) and alone[0] < wide.get(width, fastest)


def guessed_seconds(shard: Shard, data: Data) -> float:
    """A rough time of the shard before anything is known of its program, by the operations of its matrix products."""
    run = shard.members[0].entry.run
    member_steps = len(shard.members) * run.steps * run.stream.num_tasks
    return member_steps * flops.of_a_step(run, data) / (guessed_rate() * len(jax.local_devices()))


def program_of(shard: Shard, data: Data, programs: Programs) -> str:
    """The address of the shard's training program, equal for all that train alike (whatever they do at boundaries)."""
    crew = crew_of(dataclasses.replace(shard, members=shard.members[:1], width=1), data, programs)
    (wave,) = muster(crew, np.arange(1))
    lowered = programs.lowered_steps(wave, first_states(crew, wave), crew.data, crew.windows.chunk)
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()

"""How time is taken: warm, in turns, many rounds; what is compared is measured within the same seconds.

A machine's speed drifts by tens of percent over minutes (neighbours, clock, heat). Contestants of one race therefore
take turns, A B C A B C ..., a ratio is formed within each round, and its median over the rounds is reported.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from cl_jax.devices import cores

FEWEST_ROUNDS = 3
PAUSE = 0.03  # seconds before each turn: the threads of the one before go on spinning, waiting for more work


class Spread(NamedTuple):
    """A median and its quartiles over the rounds."""

    value: float
    low: float
    high: float
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    low, middle, high = np.percentile(np.asarray(values, np.float64), (25, 50, 75)).tolist()
    return Spread(middle, low, high, len(values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """Something to time: `run` does `units` pieces of work (member-steps, examples) and returns the seconds taken."""

    name: str
    run: Callable[[], float]
    units: int


def timed(function: Callable[[], Any]) -> Callable[[], float]:
    """The seconds that `function` takes until everything it returns is computed."""

    def run() -> float:
        start = time.perf_counter()
        jax.block_until_ready(function())
        return time.perf_counter() - start

    return run


class Warm(NamedTuple):
    """A contestant that has run twice: what the first call took with compiling in it, and the second without."""

    contestant: Contestant
    first: float  # seconds
    second: float  # seconds

    @property
    def seconds(self) -> float:
        """Of one unit."""
        return self.second / self.contestant.units

    @property
    def compiling(self) -> float:
        """Seconds; true of a contestant that was warmed up alone."""
        return max(0.0, self.first - self.second)


class Timing(NamedTuple):
    """Seconds of one unit in each round."""

    seconds: tuple[float, ...]

    def spread(self, scale: float = 1.0) -> Spread:
        return spread([scale * one for one in self.seconds])

    def rate(self, work: float) -> Spread:
        """Work a second, for the work of one unit."""
        return spread([work / one for one in self.seconds])


def warm(contestant: Contestant) -> Warm:
    return Warm(contestant, contestant.run(), contestant.run())


def warm_all(makers: Sequence[Callable[[], Contestant]]) -> list[Warm]:
    """Makes contestants and warms them up, compiling them side by side."""

    def begin(make: Callable[[], Contestant]) -> tuple[Contestant, float]:
        contestant = make()
        return contestant, contestant.run()

    with ThreadPoolExecutor(cores()) as pool:
        begun = list(pool.map(begin, makers))
    return [Warm(contestant, first, contestant.run()) for contestant, first in begun]


def race(warmed: Sequence[Warm], *, rounds: int, seconds: float) -> dict[str, Timing]:
    """Times contestants in turns, by name.

    Args:
        rounds: how many at most; the least is `FEWEST_ROUNDS`.
        seconds: that the rounds should take in all less the pauses, judged by the warm-up.
    """
    once = sum(one.second for one in warmed)
    count = max(FEWEST_ROUNDS, min(rounds, int(seconds / once)))
    taken: dict[str, list[float]] = {one.contestant.name: [] for one in warmed}
    for _ in range(count):
        for one in warmed:
            time.sleep(PAUSE)
            taken[one.contestant.name].append(one.contestant.run() / one.contestant.units)
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def ratio(one: Timing, other: Timing) -> Spread:
    """How many times as long `one` takes as `other`, round by round."""
    return spread([a / b for a, b in zip(one.seconds, other.seconds, strict=True)])

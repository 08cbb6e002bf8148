"""What all parts of the benchmark share: how long to measure, what to compare with, and the list of steps to take."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from experiments.benchmark.measure import Contestant, Timing, Warm, race, warm
from experiments.benchmark.rows import Row
from experiments.benchmark.with_torch import Torch


class Step(NamedTuple):
    """One race or more, and how long it should take: for the time left."""

    name: str
    seconds: float
    run: Callable[[], list[Row]]


@dataclasses.dataclass(kw_only=True)
class Bench:
    """Settings of one run of the benchmark."""

    quick: bool
    torch: Torch | None
    rounds: int  # the most of a race
    race_seconds: float  # that the rounds of a race should take
    call_seconds: float  # that one contestant's turn should take: a call has a millisecond of its own
    longest: float  # seconds: what would take longer a turn is left out
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    members: tuple[int, ...] = (1, 4, 16, 64)
    matmul: Contestant | None = None  # the reference for shares of the peak, once it is known

    def race(self, warmed: list[Warm], slower: float = 1.0) -> dict[str, Timing]:
        return race(warmed, rounds=self.rounds, seconds=slower * self.race_seconds)

    def reference(self) -> Warm:
        """The matrix product whose rate is the peak, as a contestant."""
        assert self.matmul is not None
        return warm(self.matmul)


def settings(quick: bool, torch: Torch | None) -> Bench:
    if quick:
        return Bench(
            quick=True, torch=torch, rounds=5, race_seconds=1.5, call_seconds=0.05, longest=1.0, widths=(1, 4, 16, 64),
            members=(1, 64),
        )  # fmt: skip
    return Bench(quick=False, torch=torch, rounds=9, race_seconds=2.5, call_seconds=0.06, longest=2.5)

"""A race: programs that run in turns, so that a machine whose speed drifts slows all of them alike."""

from collections.abc import Callable, Sequence

import numpy as np

LEAST_ROUNDS, MOST_ROUNDS = 3, 9


def rounds_in(seconds: float, of_a_round: float) -> int:
    """How many rounds to run in that time; 0: too few to say anything."""
    rounds = int(min(seconds / max(of_a_round, 1e-9), MOST_ROUNDS))
    return rounds if rounds >= LEAST_ROUNDS else 0


def race(calls: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """What a call of each takes: t_i = median_r(t_0r) median_r(t_ir / t_0r), over rounds in which each runs once.

    A ratio within a round is of the same moment; the first round, which finds nothing in the caches, does not count.

    Args:
        calls: each runs its program once and says how long it took, in any unit.
        rounds: from 1.
    """
    for call in calls:
        call()
    times = np.array([[call() for call in calls] for _ in range(rounds)])
    return list(np.median(times[:, 0]) * np.median(times / times[:, :1], axis=0))

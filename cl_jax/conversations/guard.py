"""A budget on forgetting: what an update may cost in bits per byte of old text, and what becomes of a dearer one.

Backing off by halves from an accepted point until a condition holds is the line search of Armijo 1966 (Pacific Journal
of Mathematics 16); here the condition is a bound on another loss than the one that is descended on.
"""

from collections.abc import Callable
from typing import NamedTuple

from cl_jax.config import config, static, traced

ACCEPTED, SCALED, ROLLED_BACK = "accepted", "scaled back", "rolled back"


@config
class Guard:
    """After each round: old text may cost at most `budget` bits per byte more than it did at the start.

    An update that costs more is scaled back, theta <- accepted + tau (theta - accepted), in what trains (under LoRA the
    factors), with the first tau of 1/2, 1/4, ... that costs no more, `halvings` of them. If none does, everything is as
    it was before the round, but for the optimizer, which starts anew.
    """

    budget: float = traced(0.02)
    halvings: int = static(3, low=0)


class Decision(NamedTuple):
    """What became of a round's update."""

    outcome: str  # ACCEPTED, SCALED or ROLLED_BACK
    scale: float  # tau: 1 accepted, 0 rolled back
    tried: list[tuple[float, float]]  # (tau, bits per byte of the old text with it), in order


def decide(guard: Guard, base: float, measure: Callable[[float], float], diverged: bool = False) -> Decision:
    """The largest tau of 1, 1/2, 1/4, ... with measure(tau) <= base + budget; 0 where there is none.

    Args:
        base: bits per byte of the guard's old text at the start.
        measure: bits per byte with the update scaled by tau; NaN is more than any budget.
        diverged: the update left all reason: nothing of it is tried.
    """
    tried: list[tuple[float, float]] = []
    for halving in range(0 if diverged else guard.halvings + 1):
        scale = 0.5**halving
        tried.append((scale, measure(scale)))
        if tried[-1][1] <= base + guard.budget:
            return Decision(SCALED if halving else ACCEPTED, scale, tried)
    return Decision(ROLLED_BACK, 0.0, tried)

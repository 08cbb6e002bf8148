"""What a sweep costs: chip-hours, bytes of checkpoints, what pre-emption adds, and money. Nothing here is measured.

Of every hour of training, saving inside tasks takes s / tau of an hour, and each of lambda pre-emptions loses what was
trained since the last save, tau / 2 in the mean, and the time r until the shard trains again:

    overhead(tau) = s / tau + lambda (tau / 2 + r),   least at tau* = sqrt(2 s / lambda)

all in hours, lambda in 1 / hour. A worker that hears SIGTERM saves at once and loses less than tau / 2: this is the
cost where it is killed without notice.

Source: J. W. Young, A first order approximation to the optimum checkpoint interval, 1974.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from cl_jax.checkpoint import KEPT_STEPS
from cl_jax.config import LARGEST_INT
from cl_jax.errors import UserError
from cl_jax.estimate import of_bytes, of_seconds
from cl_jax.fleet.worker import SAVE_SECONDS

HOUR = 3600.0  # seconds


class Terms(NamedTuple):
    """What the user knows of the machines."""

    chips: int = 1  # that a shard's worker has, and is charged for
    price: float | None = None  # of a chip-hour, in any currency; None: unknown
    preemptions: float = 0.0  # an hour and shard
    save_seconds: float = 2.0  # that training stands still for a save
    restart_minutes: float = 6.0  # from a pre-emption until the shard trains again: a machine, start, compiling


class Kind(NamedTuple):
    """Shards that are alike."""

    shards: int
    members: int  # of a shard
    seconds: float  # that a shard trains, on a machine like this one
    timed: bool  # else the seconds are guessed
    state_bytes: int  # of a member at a boundary
    tasks: int  # that a shard trains itself


def checked(terms: Terms) -> Terms:
    """The terms. Raises UserError: one is none."""
    if not 1 <= terms.chips <= LARGEST_INT:
        raise UserError(f"--chips: was given {terms.chips}; allowed are 1 to {LARGEST_INT}")
    for name in ("price", "preemptions", "save_seconds", "restart_minutes"):
        value = getattr(terms, name)
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')}: was given {value}; give a number from 0")
    return terms


def overhead(terms: Terms, every: float = SAVE_SECONDS) -> float:
    """Share of the training time that saving and pre-emptions add.

    Args:
        every: seconds of training between two saves, tau.
    """
    lost_hours = every / 2 / HOUR + terms.restart_minutes / 60
    return terms.save_seconds / every + terms.preemptions * lost_hours


def best_interval(terms: Terms) -> float:
    """Seconds between two saves at which the overhead is least; inf: nothing is ever pre-empted."""
    if terms.preemptions == 0:
        return math.inf
    return HOUR * math.sqrt(2 * terms.save_seconds / HOUR / terms.preemptions)


def chip_hours(kinds: Sequence[Kind], chips: int) -> float:
    """Of training alone, without `overhead`."""
    return chips * sum(kind.shards * kind.seconds for kind in kinds) / HOUR


def checkpoint_bytes(kind: Kind) -> int:
    """The most that one attempt at one shard leaves: the boundaries that stay, and a step inside a task."""
    return (min(KEPT_STEPS, kind.tasks) + 1) * kind.members * kind.state_bytes


def attempts(kind: Kind, terms: Terms) -> float:
    """How often a shard is begun, in the mean: once, and once a pre-emption in the time that it takes with them."""
    return 1 + terms.preemptions * (1 + overhead(terms)) * kind.seconds / HOUR


def money(kinds: Sequence[Kind], terms: Terms, price: float) -> float:
    """In the currency of the price, which is that of a chip-hour."""
    return chip_hours(kinds, terms.chips) * (1 + overhead(terms)) * price


def in_words(kinds: Sequence[Kind], terms: Terms) -> list[str]:
    """Lines for people."""
    hours = chip_hours(kinds, terms.chips)
    timed = {kind.timed for kind in kinds}
    how = "as timed here" if timed == {True} else "a rough guess; --hours times it"
    if len(timed) == 2:
        how = "in part as timed here, in part a rough guess"
    longest = max(kind.seconds for kind in kinds)
    lines = [f"training: {_number(hours)} chip-hours ({how}), the longest shard {of_seconds(longest)}"]
    total = sum(kind.shards * attempts(kind, terms) * checkpoint_bytes(kind) for kind in kinds)
    largest = max(checkpoint_bytes(kind) for kind in kinds)
    again = "" if terms.preemptions == 0 else ", attempts after pre-emptions among them"
    lines.append(f"checkpoints: up to {of_bytes(total)}, {of_bytes(largest)} an attempt at the largest shard{again}")
    share, best = overhead(terms), best_interval(terms)
    gone = " and of pre-emptions" if terms.preemptions else "; --preemptions adds those"
    lines.append(f"overhead: {100 * share:.2g}% of saving every {of_seconds(SAVE_SECONDS)}{gone}")
    if 0 < best < math.inf:
        lines[-1] += f"; {100 * overhead(terms, best):.2g}% if every {of_seconds(best)}, the best"
    if terms.price is not None:
        lines.append(f"money: {_number(money(kinds, terms, terms.price))} at {terms.price:g} a chip-hour")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

"""Which saved steps a set of members goes on from, where each process has saved members of its own.

Pure functions: nothing is read here. A boundary may be put together: some members from the step of one process, some
from that of another. A step inside a task is taken alone or not at all: no two of them are equally far.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

INSIDE = 10**12  # a step inside a task is numbered: tasks finished times this, and how far the shard is in the next one


class Step(NamedTuple):
    """A step that was saved, good or not."""

    number: int  # tasks finished times INSIDE, and how far in the next one; a multiple of INSIDE is a boundary
    writer: Path  # the folder that it is in, of one process
    members: tuple[str, ...]  # ids, in the order of its arrays


class Reading(NamedTuple):
    """Members that are taken from a step."""

    step: Step
    members: tuple[str, ...]


def furthest(steps: Iterable[Step], mine: Sequence[str]) -> list[Reading]:
    """What to read for the furthest point that all of these members have; nothing where they have none in common.

    Steps of one number: the one that holds most of what is still missing comes first, then by the writer's name.
    """
    of: dict[int, list[Step]] = {}
    for step in steps:
        of.setdefault(step.number, []).append(step)
    for number in sorted(of, reverse=True):
        found = _covering(of[number], mine)
        if found and (len(found) == 1 or number % INSIDE == 0):
            return found
    return []


def _covering(steps: Sequence[Step], mine: Sequence[str]) -> list[Reading]:
    """As few steps as a greedy choice needs to hold all of these members; nothing where they do not."""
    missing, found = dict.fromkeys(mine), []
    while missing:
        # The fewest members beyond these, so that of two that hold all of them the smaller is read.
        step = min(
            steps, key=lambda step: (-len(missing.keys() & set(step.members)), len(step.members), step.writer.name)
        )
        taken = tuple(name for name in missing if name in step.members)
        if not taken:
            return []
        found.append(Reading(step, taken))
        missing = {name: None for name in missing if name not in taken}
    return found


def catching_up(steps: Sequence[Step], mine: Sequence[str]) -> list[tuple[tuple[str, ...], int]]:
    """What brings members to one boundary that other processes have left at different ones.

    Processes do not wait for each other, so that one may be tasks ahead, and keeps only its newest boundaries.

    Returns:
        One after the other: the members to train, and the boundary up to which; nothing where all stand at the same.
        The newest boundary of each member counts, damaged or not: `furthest` falls back where it has to.
    """
    at = {name: max((step.number // INSIDE for step in steps if name in step.members), default=0) for name in mine}
    return [(tuple(name for name in mine if at[name] < until), until) for until in sorted(set(at.values()))[1:]]


def joined(readings: Sequence[Reading], states: Sequence[Any], members: tuple[str, ...]) -> Any:
    """The members' state in their order, from the steps that hold them."""
    if len(readings) == 1 and readings[0].step.members == members:
        return states[0]
    places = [np.array([each.step.members.index(name) for name in each.members]) for each in readings]
    names = [name for each in readings for name in each.members]
    order = np.array([names.index(name) for name in members])

    def join(*leaves: Any) -> np.ndarray:
        return np.concatenate([np.asarray(leaf)[at] for leaf, at in zip(leaves, places, strict=True)])[order]

    return jax.tree.map(join, *states)

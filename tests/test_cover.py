"""Which steps are read for which members: against every choice there is, on random layouts of several processes."""

import random
from pathlib import Path

import numpy as np
import pytest

from cl_jax.cover import INSIDE, Reading, Step, catching_up, furthest, joined

EVERY = tuple("abcde")


def step(number: float, writer: str, members: str) -> Step:
    tasks, within = divmod(round(number * 10), 10)
    return Step(tasks * INSIDE + within, Path(writer), tuple(members))


def test_by_hand() -> None:
    one, other, whole = step(2, "p", "ab"), step(2, "q", "cd"), step(1, "r", "abcd")
    assert furthest([whole, one, other], "abcd") == [Reading(one, ("a", "b")), Reading(other, ("c", "d"))]
    assert furthest([whole, one], "abcd") == [Reading(whole, tuple("abcd"))]
    assert furthest([whole, one], "ab") == [Reading(one, ("a", "b"))]
    assert furthest([one, other], "abe") == []
    assert furthest([step(2.3, "i", "ab"), step(2.3, "j", "cd"), one, other], "abcd")[0].step == one
    assert furthest([step(2.3, "i", "abcd"), one, other], "cd") == [Reading(step(2.3, "i", "abcd"), ("c", "d"))]
    assert furthest([step(2, "a", "abcde"), step(2, "b", "ab")], "ab")[0].step.writer.name == "b"  # the smaller is read


@pytest.mark.parametrize("seed", range(300))
def test_no_choice_is_further(seed: int) -> None:
    rng = random.Random(seed)
    steps = [
        step(rng.choice([1, 1.4, 2, 2.2, 2.6, 3]), f"p{number}", "".join(rng.sample(EVERY, rng.randint(1, len(EVERY)))))
        for number in range(rng.randint(0, 7))
    ]
    mine = rng.sample(EVERY, rng.randint(1, len(EVERY)))
    possible = [0]
    for number in {each.number for each in steps}:
        at = [set(each.members) for each in steps if each.number == number]
        held = set().union(*at) if number % INSIDE == 0 else max(at, key=lambda one: one.issuperset(mine))
        possible += [number] * held.issuperset(mine)
    found = furthest(steps, mine)
    assert (found[0].step.number if found else 0) == max(possible)
    assert sorted(name for each in found for name in each.members) == sorted(mine) * bool(found)  # each of them once
    assert all(each.step in steps and set(each.members) <= set(each.step.members) for each in found)
    assert len({each.step.number for each in found}) <= 1
    rng.shuffle(steps)
    assert furthest(steps, mine) == found  # whatever the order in which a folder is listed


def left_behind(rng: random.Random) -> list[Step]:
    """What tries of several processes have left, each of which keeps its newest two boundaries."""
    at, steps = dict.fromkeys(EVERY, 0), []
    for number in range(rng.randint(1, 4)):
        cuts = sorted(rng.sample(range(1, len(EVERY)), rng.randint(0, 2)))
        for first, last in zip([0, *cuts], [*cuts, len(EVERY)], strict=True):
            mine, made = EVERY[first:last], rng.randint(0, 5)
            if len({at[name] for name in mine}) == 1:  # else it was killed while it caught up
                reached = [at[mine[0]] + 1 + i for i in range(made)]
                steps += [step(boundary, f"p{number}{first}", "".join(mine)) for boundary in reached[-2:]]
                at.update(dict.fromkeys(mine, (reached or [at[mine[0]]])[-1]))
    return steps


@pytest.mark.parametrize("seed", range(200))
def test_nothing_is_trained_twice_to_catch_up(seed: int) -> None:
    """Every run begins at the newest boundary of each of its members, and so does the one that takes all of them."""
    rng = random.Random(seed)
    steps = left_behind(rng)
    newest = {name: max((each.number for each in steps if name in each.members), default=0) // INSIDE for name in EVERY}
    mine = EVERY[: rng.randint(1, len(EVERY))]
    for ids, until in [*catching_up(steps, mine), (mine, 99)]:
        found = furthest(steps, ids)
        begins = found[0].step.number // INSIDE if found else 0
        assert ids and {newest[name] for name in ids} == {begins} and begins < until
        steps.append(step(until, f"caught-{until}", "".join(ids)))
        newest.update(dict.fromkeys(ids, until))


def test_arrays_of_several_steps_in_the_order_of_the_members() -> None:
    readings = [Reading(step(1, "p", "cab"), ("a", "c")), Reading(step(1, "q", "eb"), ("b",))]
    states = [
        {"x": np.array([3, 1, 2]), "y": (np.array([[3], [1], [2]]),)},
        {"x": np.array([5, 20]), "y": (np.array([[5], [20]]),)},
    ]
    found = joined(readings, states, tuple("abc"))
    assert found["x"].tolist() == [1, 20, 3] and found["y"][0].tolist() == [[1], [20], [3]]
    assert joined(readings[:1], states[:1], tuple("cab")) is states[0]

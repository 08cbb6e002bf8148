"""Successive halving, `cl-jax run EXPERIMENT --halving N`: configurations that lag behind at a boundary stop there.

At the boundaries 2, 2 N, 2 N^2, ... before the last, within each method and task stream, the ceil(n / N) best of the n
configurations that are left go on, by

    mean over seeds of mean_{j <= b} V[b, j],

the validation accuracy on the tasks so far at boundary b. A configuration stands or falls with all of its seeds; one
with a diverged run falls before those without; ties go to the one listed first. One always goes on.

Not at boundary 1: nothing can be forgotten there, and the strengths of a penalty have not acted yet, so that they tie.
The budget between two decisions grows as the number of configurations falls, so that each round costs about the same.

Sources: Jamieson and Talwalkar 2016, arXiv 1502.07943 (budgets there are iterations, here tasks); Li et al. 2018
(Hyperband), arXiv 1603.06560.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cl_jax.errors import UserError
from cl_jax.evaluate import EVALUATED, METRICS
from cl_jax.experiment import Entry, Member, hyper_parameters
from cl_jax.plan import Shard
from cl_jax.results import Record, read_json, write_json
from cl_jax.standing import read_record

FILE = "halving.json"


class Contender(NamedTuple):
    """A configuration at a boundary."""

    group: str  # those of one group compete
    members: tuple[str, ...]  # ids, one a seed
    diverged: bool  # any of its runs has
    accuracy: float


def boundaries(factor: int, num_tasks: int, first: int = 0) -> list[int]:
    """Where configurations stop: 2, 2 N, 2 N^2, ..., after boundary `first` and before the last."""
    found = [2 * factor**k for k in range(num_tasks.bit_length())]
    return [boundary for boundary in found if first < boundary < num_tasks]


def losers(contenders: Sequence[Contender], factor: int) -> list[str]:
    """Ids of the members that stop: of each group all but the best ceil(n / factor)."""
    groups: dict[str, list[Contender]] = {}
    for contender in contenders:
        groups.setdefault(contender.group, []).append(contender)
    lost = []
    for group in groups.values():
        order = sorted(group, key=lambda one: (one.diverged, -one.accuracy))  # stable: ties stay in their order
        lost += [name for one in order[math.ceil(len(group) / factor) :] for name in one.members]
    return lost


def contenders(
    entries: Sequence[Entry], members: Sequence[tuple[Member, Record, int]], boundary: int
) -> list[Contender]:
    """The configurations that these members are of, in the order of the entries.

    Args:
        members: each with the record that it is in and its place there.
    """
    found: dict[str, list[tuple[Member, Record, int]]] = {_configuration(entry): [] for entry in entries}
    for each in members:
        found[_configuration(each[0].entry)].append(each)
    made = []
    for runs in found.values():
        if runs and boundary < runs[0][0].entry.run.stream.num_tasks:
            accuracy = [_accuracy(record, place, boundary) for _, record, place in runs]
            diverged = any(bool(record.diverged[place]) for _, record, place in runs)
            ids = tuple(member.id for member, _, _ in runs)
            made.append(Contender(_group(runs[0][0].entry), ids, diverged, float(np.mean(accuracy))))
    return made


def _accuracy(record: Record, place: int, boundary: int) -> float:
    row = record.record[place, boundary, EVALUATED.index("validation"), METRICS.index("accuracy"), :boundary]
    return float(row.mean(dtype=np.float64))


def _configuration(entry: Entry) -> str:
    return json.dumps({**hyper_parameters(entry.run), "label": entry.label}, sort_keys=True)


def _group(entry: Entry) -> str:
    """The method and its tasks."""
    settings = hyper_parameters(entry.run)
    of_tasks = ("data", "validation", "stream", "scenario", "boundary")
    return json.dumps([entry.label, {name: settings[name] for name in settings if name.split(".")[0] in of_tasks}])


class Halving:
    """The decisions of an output folder, each taken once, from what was published at its boundary.

    Args:
        first: boundary that all members have behind them.
    """

    def __init__(self, out: Path, factor: int, entries: Sequence[Entry], members: Sequence[Member], first: int = 0):
        self._out, self._entries, self.factor = out, entries, factor
        self._members = hashlib.sha256(json.dumps(sorted(member.id for member in members)).encode()).hexdigest()
        tasks = {member.entry.run.stream.num_tasks for member in members}
        self.boundaries = sorted({boundary for count in tasks for boundary in boundaries(factor, count, first)})
        self._decisions: list[dict[str, Any]] = _read(out)["decisions"] if (out / FILE).is_file() else []

    @property
    def stopped(self) -> Mapping[str, int]:
        """By member's id, the boundary at which it stops, of those that are known to."""
        return {name: each["after_task"] for each in self._decisions for name in each["stopped"]}

    @property
    def ahead(self) -> list[int]:
        """Boundaries at which nothing is decided yet."""
        return self.boundaries[len(self._decisions) :]

    @property
    def words(self) -> str:
        after = ", ".join(map(str, self.boundaries))
        return f"after task {after} the best 1 in {self.factor} of each method's configurations go on, the others stop"

    def check(self) -> None:
        """Raises UserError where nothing could be stopped, or the output folder was begun otherwise."""
        if any(entry.run.recent is not None for entry in self._entries):
            raise UserError(
                f"--halving {self.factor}: compares accuracy on all tasks so far, of which `recent` measures the "
                f"newest alone; leave one of the two out"
            )
        groups = [_group(entry) for entry in self._entries]
        if not self.boundaries or len(set(groups)) == len(groups):
            why = "no method has two configurations" if self.boundaries else "no task is left after a first decision"
            raise UserError(f"--halving {self.factor}: would stop nothing, for {why}; leave it out")
        if _begun(self._out) and _read(self._out)["members"] != self._members:
            raise UserError(
                f"--halving: {self._out} was begun with other configurations or seeds, and its decisions were taken "
                f"among those; give the same again, or another --out"
            )

    def write(self) -> None:
        """What the output folder is begun with."""
        write_json(self._out / FILE, {"factor": self.factor, "members": self._members, "decisions": self._decisions})

    def decide(self, boundary: int, shards: Sequence[Shard]) -> list[str]:
        """Ids of the members that stop at a boundary which all that are left have reached; it is written first."""
        going = []
        for shard in shards:
            record = read_record(shard)
            assert record is not None
            going += [(each, record, i) for i, each in enumerate(shard.members) if each.id not in self.stopped]
        lost = losers(contenders(self._entries, going, boundary), self.factor)
        self._decisions.append({"after_task": boundary, "stopped": sorted(lost)})
        self.write()
        return lost


def check_halving(out: Path, factor: int | None) -> None:
    """Raises UserError where an output folder was begun with another --halving."""
    if factor is not None and factor < 2:
        raise UserError(f"--halving: was given {factor}; the least allowed is 2, for the better half")
    if not _begun(out):
        return
    began = _read(out)["factor"] if (out / FILE).is_file() else None
    if began != factor:
        was = f"--halving {began}" if began else "no --halving"
        now = f"--halving {factor}" if factor else "none"
        raise UserError(f"{out} was begun with {was}, now it is {now}; give the same again, or another --out")


def _begun(out: Path) -> bool:
    return any((out / "shards").glob("*/shard.json"))


def _read(out: Path) -> dict[str, Any]:
    held = read_json(out / FILE, {"factor": int, "members": str, "decisions": list})
    for each in held["decisions"]:
        names = each.get("stopped") if isinstance(each, dict) else None
        if not isinstance(names, list) or not isinstance(each.get("after_task"), int):
            raise UserError(f"{out / FILE}: is broken; give another --out")
    return held

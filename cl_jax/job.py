"""A checked experiment: read, checked against its data, planned; nothing is compiled and nothing written."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cl_jax import origin, passes, plan, program, results, sources, sweep, trunk, waves
from cl_jax.base import Pretrained, Weights
from cl_jax.budget import image_budget
from cl_jax.checks import check_experiment, check_runs
from cl_jax.config import LARGEST_INT
from cl_jax.data import Data, split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Entry, Experiment, Member, Run, load_experiment, members
from cl_jax.halving import Halving, check_halving
from cl_jax.open_weights import with_digest

SWEEP = "sweep.json"  # in an output folder whose shards are trained apart, see `cl_jax.fleet`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A checked experiment, ready to run."""

    experiment: Experiment
    data: dict[tuple[str, float], Data]
    shards: list[plan.Shard]
    trunks: list[plan.Shard]  # what trains task 1 of the shards that are not done, where members share it
    trunk_of: dict[str, Member]  # by member
    out: Path
    forks: origin.Forks | None = None  # what the members continue from, if not from the start
    halving: Halving | None = None  # where members stop, if they do

    @property
    def steps_to_do(self) -> int:
        """Member-steps of everything that is not done."""
        stopped = self.halving.stopped if self.halving else {}
        total = sum(len(shard.members) * shard.members[0].entry.run.steps for shard in self.trunks if not shard.done)
        for shard in self.shards:
            run = shard.members[0].entry.run
            ends = [stopped.get(member.id, run.stream.num_tasks) for member in shard.members if not shard.done]
            total += run.steps * sum(end - self.tasks_elsewhere(shard) for end in ends)
        return total

    def tasks_elsewhere(self, shard: plan.Shard) -> int:
        """First tasks of a shard that others train or have trained."""
        first = shard.members[0]
        ready = first.id in self.trunk_of or isinstance(first.entry.run.base, Weights)
        return self.forks.task if self.forks else int(ready)


def data_of(shard: plan.Shard) -> tuple[str, float]:
    """Which of `Job.data` a shard trains on."""
    run = shard.members[0].entry.run
    return run.data, run.validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """An experiment and data that fit each other; no output folder has been looked at."""

    experiment: Experiment
    data: dict[tuple[str, float], Data]
    sha256: dict[str, str]  # by name of the data
    streamed: bool

    def members(self) -> list[Member]:
        """Everything that is to be trained."""
        return members(self.experiment, self.sha256)

    def state_bytes(self, member: Member) -> int:
        """Of a member's training state."""
        run = member.entry.run
        return program.state_bytes(run, self.data[run.data, run.validation])


def experiment_of(
    path: Path, *, data: str | None = None, seeds: int | None = None, steps: int | None = None,
    width: int | None = None, size: str | None = None,
) -> Experiment:  # fmt: skip
    """The experiment of a file as the options change it. Arguments and errors: see `prepare`."""
    for option, number in (("--seeds", seeds), ("--steps", steps), ("--width", width)):
        if number is not None and not 1 <= number <= LARGEST_INT:
            bound = "the least allowed is 1" if number < 1 else f"the most allowed is {LARGEST_INT}"
            raise UserError(f"{option}: was given {number}; {bound}")
    experiment = load_experiment(path, size)
    changes: dict[str, Any] = {}
    if data is not None:
        changes["data"] = data
    if steps is not None:
        changes |= {"steps": steps, "passes": None}
    check_experiment(experiment)
    if seeds is not None:
        experiment = dataclasses.replace(experiment, seeds=tuple(range(seeds)))
    if changes:
        entries = tuple(
            Entry(label=entry.label, run=_with_base_steps(dataclasses.replace(entry.run, **changes), steps))
            for entry in experiment.entries
        )
        experiment = dataclasses.replace(experiment, entries=entries)
    return experiment


def checked(experiment: Experiment, folder: Path | None, data_budget: str | None) -> Checked:
    """Loads the data of an experiment and checks them against each other. Arguments and errors: see `prepare`."""
    _check_folder(folder, experiment)
    wanted = {(entry.run.data, entry.run.validation) for entry in experiment.entries}
    loaded = {name: sources.load(name, folder) for name in sorted({name for name, _ in wanted})}
    allowed = image_budget(data_budget)
    streamed = allowed is not None and sum(loaded[name].image_bytes for name, _ in wanted) > allowed
    on_device = {
        (name, share): split_source(loaded[name], share, budget=allowed if streamed else None) for name, share in wanted
    }
    experiment = dataclasses.replace(
        experiment, entries=tuple(_with_steps(entry, on_device) for entry in experiment.entries)
    )
    check_runs(experiment.entries, on_device)
    experiment = dataclasses.replace(experiment, entries=_with_digests(experiment.entries))
    sha256 = {name: source.sha256 for name, source in loaded.items()}
    return Checked(experiment=experiment, data=on_device, sha256=sha256, streamed=streamed)


def prepare(
    path: Path, out: Path, *, data: str | None = None, folder: Path | None = None, seeds: int | None = None,
    steps: int | None = None, width: int | None = None, shared: bool = True, data_budget: str | None = None,
    from_: str | None = None, halve: int | None = None, size: str | None = None,
) -> Job:  # fmt: skip
    """Reads, checks and plans; writes nothing and compiles nothing.

    Args:
        shared: train task 1 once for members that cannot differ before its end.
        data_budget: bytes of images that a device may hold, see `cl_jax.budget.image_budget`; a larger set streams.
        from_: the boundary to continue from, see `cl_jax.origin.parse`; None: from the start.
        halve: N of successive halving, see `cl_jax.halving`; None: every member is trained to its end.
        size: which of the experiment's sizes, see `cl_jax.experiment.load_experiment`.

    Raises:
        UserError: whatever is wrong with the experiment, the data or the output folder.
    """
    experiment = experiment_of(path, data=data, seeds=seeds, steps=steps, width=width, size=size)
    check_out(out, experiment)
    if (out / SWEEP).exists():
        raise UserError(f"{out} holds a sweep in shards; train it by `cl-jax worker`, or give another --out")
    begun_from = None if from_ is None else origin.parse(from_)
    origin.check_out(out, begun_from)
    check_halving(out, halve)
    ready = checked(experiment, folder, data_budget)
    experiment, on_device = ready.experiment, ready.data
    everyone, forks = ready.members(), None
    if begun_from is not None:
        everyone, forks = origin.adopt(everyone, begun_from, on_device, out)
    halved = None
    if halve is not None:
        halved = Halving(out, halve, experiment.entries, everyone, forks.task if forks else 0)
        halved.check()
    shards = plan.make_plan(out, everyone, width, ready.state_bytes)
    for shard in shards:
        if shard.done:
            sweep.read_record(shard)  # a broken one is better known before than after training
    waiting = [member for shard in shards if not shard.done and forks is None for member in shard.members]
    trunk_of = trunk.trunk_members(waiting, ready.sha256, shared=shared)
    first = list({member.id: member for member in trunk_of.values()}.values())
    trunks = plan.make_plan(out, first, width, ready.state_bytes, "trunks")
    for shard in (*shards, *trunks):
        if ready.streamed and not shard.done:
            waves.windows_of(shard, on_device[data_of(shard)], jax.local_device_count())  # raises where they do not fit
    return Job(
        experiment=experiment, data=on_device, shards=shards, trunks=trunks, trunk_of=trunk_of, out=out, forks=forks,
        halving=halved,
    )  # fmt: skip


def _with_steps(entry: Entry, data: Mapping[tuple[str, float], Data]) -> Entry:
    try:
        run = passes.with_steps(entry.run, data[entry.run.data, entry.run.validation])
    except UserError as error:
        raise UserError(f"{entry.label}: {error}") from error
    return dataclasses.replace(entry, run=run)


def _with_digests(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    known: dict[Path, str] = {}
    made = []
    for entry in entries:
        try:
            run = with_digest(entry.run, known)
        except UserError as error:
            raise UserError(f"{entry.label}: {error}") from error
        made.append(dataclasses.replace(entry, run=run))
    return tuple(made)


def _with_base_steps(run: Run, steps: int | None) -> Run:
    """The base is trained for as many as any task."""
    if steps is None or not isinstance(run.base, Pretrained):
        return run
    return dataclasses.replace(run, base=dataclasses.replace(run.base, steps=steps))


def check_out(out: Path, experiment: Experiment) -> None:
    """Raises UserError where an output folder is not of this experiment."""
    for place in (out, *out.absolute().parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"--out {out}: {place} is a file; give a folder")
    file = out / "experiment.json"
    if file.is_file():
        other = results.read_json(file, {"name": str})["name"]
        if other != experiment.name:
            raise UserError(f"{out} holds experiment {other!r}, not {experiment.name!r}; give another --out")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no experiment.json; give an empty or a new folder as --out")


def _check_folder(folder: Path | None, experiment: Experiment) -> None:
    names = sorted({entry.run.data for entry in experiment.entries})
    if folder is not None and not any(name.startswith(("idx", "tfds", "text", "labelled")) for name in names):
        raise UserError(f"--data-dir {folder}: data {', '.join(names)} reads no folder; leave it out or give --data")

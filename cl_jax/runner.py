"""An experiment from its file to its results: load, check, plan, run, write the table."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from cl_jax import (
    compiled,
    estimate,
    origin,
    packing,
    plan,
    program,
    provenance,
    results,
    sources,
    stages,
    sweep,
    trunk,
    waves,
)
from cl_jax.budget import image_budget
from cl_jax.checkpoint import KEPT_STEPS
from cl_jax.checks import check_experiment, check_runs
from cl_jax.config import LARGEST_INT
from cl_jax.data import Data, split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Entry, Experiment, Member, load_experiment, members
from cl_jax.halving import Halving, check_halving
from cl_jax.progress import Bar


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
        return self.forks.task if self.forks else int(shard.members[0].id in self.trunk_of)


def _data_of(shard: plan.Shard) -> tuple[str, float]:
    """Which of `Job.data` a shard trains on."""
    run = shard.members[0].entry.run
    return run.data, run.validation


def prepare(
    path: Path, out: Path, *, data: str | None = None, folder: Path | None = None, seeds: int | None = None,
    steps: int | None = None, width: int | None = None, shared: bool = True, data_budget: str | None = None,
    from_: str | None = None, halve: int | None = None,
) -> Job:  # fmt: skip
    """Reads, checks and plans; writes nothing and compiles nothing.

    Args:
        shared: train task 1 once for members that cannot differ before its end.
        data_budget: bytes of images that a device may hold, see `cl_jax.budget.image_budget`; a larger set streams.
        from_: the boundary to continue from, see `cl_jax.origin.parse`; None: from the start.
        halve: N of successive halving, see `cl_jax.halving`; None: every member is trained to its end.

    Raises:
        UserError: whatever is wrong with the experiment, the data or the output folder.
    """
    for option, number in (("--seeds", seeds), ("--steps", steps), ("--width", width)):
        if number is not None and not 1 <= number <= LARGEST_INT:
            bound = "the least allowed is 1" if number < 1 else f"the most allowed is {LARGEST_INT}"
            raise UserError(f"{option}: was given {number}; {bound}")
    experiment = load_experiment(path)
    changes: dict[str, Any] = {}
    if data is not None:
        changes["data"] = data
    if steps is not None:
        changes["steps"] = steps
    check_experiment(experiment)
    if seeds is not None:
        experiment = dataclasses.replace(experiment, seeds=tuple(range(seeds)))
    if changes:
        entries = tuple(
            Entry(label=entry.label, run=dataclasses.replace(entry.run, **changes)) for entry in experiment.entries
        )
        experiment = dataclasses.replace(experiment, entries=entries)
    _check_out(out, experiment)
    _check_folder(folder, experiment)
    begun_from = None if from_ is None else origin.parse(from_)
    origin.check_out(out, begun_from)
    check_halving(out, halve)
    wanted = {(entry.run.data, entry.run.validation) for entry in experiment.entries}
    loaded = {name: sources.load(name, folder) for name in sorted({name for name, _ in wanted})}
    allowed = image_budget(data_budget)
    streamed = allowed is not None and sum(loaded[name].image_bytes for name, _ in wanted) > allowed
    on_device = {
        (name, share): split_source(loaded[name], share, budget=allowed if streamed else None) for name, share in wanted
    }
    check_runs(experiment.entries, on_device)
    sha256 = {name: source.sha256 for name, source in loaded.items()}
    everyone, forks = members(experiment, sha256), None
    if begun_from is not None:
        everyone, forks = origin.adopt(everyone, begun_from, on_device, out)
    halved = None
    if halve is not None:
        halved = Halving(out, halve, experiment.entries, everyone, forks.task if forks else 0)
        halved.check()

    def state_bytes(member: Member) -> int:
        run = member.entry.run
        return program.state_bytes(run, on_device[run.data, run.validation])

    shards = plan.make_plan(out, everyone, width, state_bytes)
    for shard in shards:
        if shard.done:
            sweep.read_record(shard)  # a broken one is better known before than after training
    waiting = [member for shard in shards if not shard.done and forks is None for member in shard.members]
    trunk_of = trunk.trunk_members(waiting, sha256, shared=shared)
    first = list({member.id: member for member in trunk_of.values()}.values())
    trunks = plan.make_plan(out, first, width, state_bytes, "trunks")
    for shard in (*shards, *trunks):
        if streamed and not shard.done:
            waves.windows_of(
                shard, on_device[_data_of(shard)], jax.local_device_count()
            )  # raises where they do not fit
    return Job(
        experiment=experiment, data=on_device, shards=shards, trunks=trunks, trunk_of=trunk_of, out=out, forks=forks,
        halving=halved,
    )  # fmt: skip


def _check_out(out: Path, experiment: Experiment) -> None:
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
    if folder is not None and not any(name.startswith(("idx", "tfds")) for name in names):
        raise UserError(f"--data-dir {folder}: data {', '.join(names)} reads no folder; leave it out or give --data")


def run(job: Job, *, quiet: bool = False, parallel: int | None = None, keep: int | None = KEPT_STEPS) -> None:
    """Trains what is missing and writes results.parquet; an error or Ctrl-C loses no finished task.

    Args:
        parallel: static groups compiled and trained at once, each in a thread of its own; default: the cores of a CPU,
            at most 4, and 2 on an accelerator. Where data streams, 1: a budget is for one group at a time. Results do
            not depend on it.
        keep: task boundaries of each shard whose checkpoints stay, the newest ones; None: all.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    results.write_json(
        job.out / "experiment.json", {"name": job.experiment.name, "description": job.experiment.description}
    )
    if job.forks is not None:
        job.forks.write(job.out)
    if job.halving is not None:
        job.halving.write()
    todo = [shard for shard in job.shards if not shard.done]
    # On an accelerator one compiles while the other trains.
    threads = min(os.cpu_count() or 1, 4) if jax.default_backend() == "cpu" else 2
    if any(data.host is not None for data in job.data.values()):
        parallel = 1
    began, programs = time.monotonic(), compiled.Programs()
    if todo or not (job.out / "environment.json").is_file():
        results.write_json(job.out / "environment.json", _environment(job))
    try:
        with Bar(job.steps_to_do, quiet=quiet) as bar:
            job, _ = settle(job, programs, share=packing.SHARE, say=bar.say)
            todo, trunks = [shard for shard in job.shards if not shard.done], trunk.Trunks(job.trunks, job.trunk_of)
            if len(todo) < len(job.shards):
                bar.say(f"{len(job.shards) - len(todo)} of {len(job.shards)} shards are finished already")

            def one(shard: plan.Shard, stage: sweep.Stage) -> None:
                data = job.data[_data_of(shard)]
                sweep.run_shard(shard, data, bar, programs, trunks, forks=job.forks, keep=keep, stage=stage)

            stages.train(job.shards, one, job.halving, bar, parallel or threads)
    except BaseException:
        with contextlib.suppress(UserError, OSError):  # the first error is the one to tell
            gather(job)
        raise
    gather(job)
    if todo:
        seconds = time.monotonic() - began
        rate = round(bar.trained / seconds)
        speed = {"seconds": round(seconds, 1), "member_steps": bar.trained, "member_steps_per_second": rate}
        results.write_json(job.out / "environment.json", {**_environment(job), "last_run": speed})


def gather(job: Job) -> None:
    """Writes the one table from every shard's record."""
    table_rows = []
    for shard in job.shards:
        read = sweep.read_record(shard)
        if read is not None:
            table_rows += results.rows(shard.members, *read)
    if table_rows:
        results.write_table(job.out / results.RESULTS, table_rows)


def _environment(job: Job) -> dict[str, Any]:
    return {
        **provenance.environment(),
        "width": {shard.folder.name: shard.width for shard in job.shards},
        "data_sha256": {name: data.sha256 for (name, _), data in job.data.items()},
    }


def settle(job: Job, programs: compiled.Programs, *, share: float, say: Callable[[str], None]) -> tuple[Job, Any]:
    """The job at widths that were measured where that pays, and what was measured, by shard's folder."""
    measured = {}

    def one(shard: plan.Shard) -> plan.Shard:
        if shard.done:
            return shard
        shard, found = packing.settled(shard, job.data[_data_of(shard)], programs, share=share)
        if found:
            times = ", ".join(f"{each.milliseconds:.3f} at {each.width}" for each in found if each.fits)
            say(f"{shard.members[0].entry.label}: width {shard.width}; ms a member-step by width: {times}")
        measured[shard.folder] = found
        return shard

    shards, trunks = [one(shard) for shard in job.shards], [one(shard) for shard in job.trunks]
    return dataclasses.replace(job, shards=shards, trunks=trunks), measured


def describe(job: Job, *, measure: bool = False, say: Callable[[str], None] = print) -> None:
    """The plan in words and as a table; with `measure` each program is compiled and timed for it."""
    total = sum(len(shard.members) for shard in job.shards)
    measured: dict[Path, Any] = {}
    if measure:
        job, measured = settle(job, compiled.Programs(), share=math.inf, say=lambda text: None)
    say(f"{job.experiment.name}: {total} members in {len(job.shards)} static groups (compiles)")
    estimates = []
    for shard in [*job.trunks, *job.shards]:
        if not shard.done:
            estimates.append(
                estimate.estimate(
                    shard,
                    job.data[_data_of(shard)],
                    measured.get(shard.folder, []),
                    tasks_elsewhere=job.tasks_elsewhere(shard),
                    only_first=shard in job.trunks,
                )
            )
    estimate.show(estimate.table(estimates, [shard for shard in job.shards if shard.done]))
    say(estimate.summary(estimates))
    if job.halving is not None:
        say(f"at most: {job.halving.words}")
    for shard in job.shards:
        data = job.data[_data_of(shard)]
        if data.host is not None and not shard.done:
            windows = waves.windows_of(shard, data, jax.local_device_count())
            label, held = shard.members[0].entry.label, f"{windows.training} of {sum(data.sizes)} images"
            say(f"{label}: {held} at a time on a device, {windows.chunk} steps each")

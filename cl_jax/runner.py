"""Runs a job: widths, shards in threads, the one table; or says what that would take."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from cl_jax import compiled, estimate, packing, passes, plan, provenance, results, stages, sweep, trunk, waves
from cl_jax.checkpoint import KEPT_STEPS
from cl_jax.diagnostics import table
from cl_jax.errors import UserError
from cl_jax.job import Job, data_of
from cl_jax.job import prepare as prepare
from cl_jax.progress import Bar


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
                data = job.data[data_of(shard)]
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
    """Writes the one table from every shard's record, and that of the diagnostics where there are any."""
    table_rows, parts = [], []
    for shard in job.shards:
        read = sweep.read_record(shard)
        if read is not None:
            table_rows += results.rows(shard.members, *read)
            parts.append((shard.folder, shard.members, read))
    if table_rows:
        results.write_table(job.out / results.RESULTS, table_rows)
    table.gather(job.out, parts)


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
        shard, found = packing.settled(shard, job.data[data_of(shard)], programs, share=share)
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
                    job.data[data_of(shard)],
                    measured.get(shard.folder, []),
                    tasks_elsewhere=job.tasks_elsewhere(shard),
                    only_first=shard in job.trunks,
                )
            )
    estimate.show(estimate.table(estimates, [shard for shard in job.shards if shard.done]))
    say(estimate.summary(estimates))
    runs = [entry.run for entry in job.experiment.entries]
    for text in dict.fromkeys(passes.in_words(run, job.data[run.data, run.validation]) for run in runs):
        if text:
            say(text)
    if job.halving is not None:
        say(f"at most: {job.halving.words}")
    for shard in job.shards:
        data = job.data[data_of(shard)]
        if data.host is not None and not shard.done:
            windows = waves.windows_of(shard, data, jax.local_device_count())
            label, held = shard.members[0].entry.label, f"{windows.training} of {sum(data.sizes)} images"
            say(f"{label}: {held} at a time on a device, {windows.chunk} steps each")

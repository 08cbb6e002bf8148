"""The commands of a sweep in shards, from their options to what does them."""

import math
import sys
from pathlib import Path

from cl_jax.config import LARGEST_INT
from cl_jax.errors import UserError
from cl_jax.fleet import options, sweep_file
from cl_jax.fleet.bucket import is_url
from cl_jax.fleet.launching import launch as launch
from cl_jax.fleet.start import ALONE, Notice, placed


def shards(command: options.Shards, out: Path, data: str | None, place: str | None = None) -> None:
    """Plans a sweep, writes it and says what it is.

    Args:
        data: the source that --data names.
        place: what `out` is called; None: its own name.

    Raises:
        UserError: an option, the experiment, the data or the output folder is not right.
    """
    from cl_jax import job, results
    from cl_jax.fleet import cost
    from cl_jax.fleet.shards import in_words, make_sweep

    if command.members is not None and command.hours is not None:
        raise UserError("--members and --hours both say how large a shard is; give one of them")
    if command.members is not None and not 1 <= command.members <= LARGEST_INT:
        raise UserError(f"--members: was given {command.members}; allowed are 1 to {LARGEST_INT}")
    if command.hours is not None and not 0 < command.hours < math.inf:
        raise UserError(f"--hours: was given {command.hours}; give a number above 0")
    given = {name: value for name in cost.Terms._fields if (value := getattr(command, name)) is not None}
    terms = cost.checked(cost.Terms(**given))
    experiment = job.experiment_of(
        command.experiment, data=data, seeds=command.seeds, steps=command.steps, width=command.width, size=command.size
    )
    job.check_out(out, experiment)
    if not (out / job.SWEEP).exists() and (out / "shards").is_dir():
        raise UserError(f"{out} holds a run of its own, which `cl-jax run` goes on with; give another --out")
    folder = None if command.data_dir is None else str(command.data_dir.resolve())
    chosen = sweep_file.Options(
        data=data, data_dir=folder, seeds=command.seeds, steps=command.steps, width=command.width,
        data_budget=command.data_budget, size=command.size, unshared=command.unshared,
    )  # fmt: skip
    ready = job.checked(experiment, command.data_dir, command.data_budget)
    file = command.experiment / "config.py" if command.experiment.is_dir() else command.experiment
    sweep, kinds = make_sweep(
        ready, file, chosen, members=command.members, hours=command.hours, measure=command.measure
    )
    results.write_json(
        out / "experiment.json", {"name": ready.experiment.name, "description": ready.experiment.description}
    )
    sweep_file.write(out / job.SWEEP, sweep)
    labels = {member.id: member.entry.label for member in ready.members()}
    print("\n".join(in_words(sweep, lambda piece: labels[piece.members[0]])))
    print("\n".join(f"  {line}" for line in cost.in_words(kinds, terms)))
    file = out / job.SWEEP if place is None else f"{place}/{job.SWEEP}"
    print(f"sweep: {file}")
    print(f"each:  cl-jax worker --sweep {file} --shard I, for I from 0 to {len(sweep.shards) - 1}")


def shards_in_store(command: options.Shards, url: str, data: str | None) -> None:
    """`shards` of a sweep in an object store."""
    from cl_jax.fleet import view

    with view.planned(url) as folder:
        shards(command, folder, data, url.rstrip("/"))


def worker(command: options.Worker) -> None:
    """Trains a shard; see `cl_jax.fleet.worker.work`."""
    notice = Notice()
    notice.listen()  # before anything that takes long to import
    if command.sweep is None or command.shard is None:
        raise UserError(f"worker: {options.MISSING['sweep' if command.sweep is None else 'shard']}")
    place = placed(command.processes, command.process, command.coordinator)
    from cl_jax import cache
    from cl_jax.fleet.worker import work

    cache.keep_compiled()
    if is_url(command.sweep):
        from cl_jax.fleet.store import Mirror

        if place != ALONE:
            raise UserError(
                "--processes: several processes a shard need a folder that all of them see, and the sweep is in a "
                "store; leave it out, or plan the sweep in a folder"
            )
        mirror = Mirror(command.sweep, command.shard, command.scratch)
        over = False
        try:
            work(mirror.file, command.shard, notice, quiet=command.quiet, mirror=mirror)
            over = True
        finally:
            mirror.close(over=over)
    elif command.scratch is not None:
        raise UserError("--scratch: a sweep in a folder is trained there; leave it out")
    else:
        work(Path(command.sweep), command.shard, notice, place=place, quiet=command.quiet)


def status(command: options.Status) -> None:
    """Prints where a sweep stands."""
    from cl_jax.fleet.status import show

    if not is_url(command.out):
        show(Path(command.out), watch=command.watch)
        return
    from cl_jax.fleet.view import viewed

    with viewed(command.out, results=False) as view:
        show(view.folder, watch=command.watch, refresh=view.refresh)


def gather(command: options.Gather) -> None:
    """Writes the table. Raises SystemExit: 1, where anything is missing."""
    from cl_jax.fleet import gather as gathering

    if is_url(command.out):
        from cl_jax.fleet import view

        with view.viewed(command.out, results=True) as seen:
            out = view.gathered_into(seen, command.to)
            seen.refresh()
            lacks = gathering.gather(seen.folder, mixed=command.mixed)
            lacks = [lack._replace(why=lack.why.replace(str(seen.folder), seen.bucket.url)) for lack in lacks]
            view.give(seen, out)
            print(f"results: {seen.bucket.url}/results.parquet")
    elif command.to is not None:
        raise UserError("--to: the table of a sweep in a folder goes there; leave it out")
    else:
        out = Path(command.out)
        lacks = gathering.gather(out, mixed=command.mixed)
    for lack in lacks:
        print(
            f"missing: shard {lack.number} ({lack.folder}), {lack.why}; members {', '.join(lack.members)}",
            file=sys.stderr,
        )
    print(f"results: {out / 'results.parquet'}{', in part' if lacks else ''}")
    if lacks:
        raise SystemExit(1)

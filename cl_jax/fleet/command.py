"""The commands of a sweep in shards, from their options to what does them."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

from cl_jax.config import LARGEST_INT
from cl_jax.errors import UserError, unknown
from cl_jax.fleet import options, sweep_file
from cl_jax.fleet.start import Notice


def shards(command: options.Shards, out: Path, data: str | None) -> None:
    """Plans a sweep, writes it and says what it is.

    Args:
        data: the source that --data names.

    Raises:
        UserError: an option, the experiment, the data or the output folder is not right.
    """
    from cl_jax import job, results
    from cl_jax.fleet.shards import in_words, make_sweep

    if command.members is not None and command.hours is not None:
        raise UserError("--members and --hours both say how large a shard is; give one of them")
    if command.members is not None and not 1 <= command.members <= LARGEST_INT:
        raise UserError(f"--members: was given {command.members}; allowed are 1 to {LARGEST_INT}")
    if command.hours is not None and not 0 < command.hours < math.inf:
        raise UserError(f"--hours: was given {command.hours}; give a number above 0")
    experiment = job.experiment_of(
        command.experiment, data=data, seeds=command.seeds, steps=command.steps, width=command.width, size=command.size
    )
    job.check_out(out, experiment)
    if not (out / job.SWEEP).exists() and (out / "shards").is_dir():
        raise UserError(f"{out} holds a run of its own, which `cl-jax run` goes on with; give another --out")
    folder = None if command.data_dir is None else str(command.data_dir.resolve())
    given = sweep_file.Options(
        data=data, data_dir=folder, seeds=command.seeds, steps=command.steps, width=command.width,
        data_budget=command.data_budget, size=command.size, unshared=command.unshared,
    )  # fmt: skip
    ready = job.checked(experiment, command.data_dir, command.data_budget)
    file = command.experiment / "config.py" if command.experiment.is_dir() else command.experiment
    sweep = make_sweep(ready, file, given, members=command.members, hours=command.hours, measure=command.measure)
    results.write_json(
        out / "experiment.json", {"name": ready.experiment.name, "description": ready.experiment.description}
    )
    sweep_file.write(out / job.SWEEP, sweep)
    labels = {member.id: member.entry.label for member in ready.members()}
    print("\n".join(in_words(sweep, lambda piece: labels[piece.members[0]])))
    print(f"sweep: {out / job.SWEEP}")
    print(f"each:  cl-jax worker --sweep {out / job.SWEEP} --shard I, for I from 0 to {len(sweep.shards) - 1}")


def worker(command: options.Worker) -> None:
    """Trains a shard; see `cl_jax.fleet.worker.work`."""
    notice = Notice()
    notice.listen()  # before anything that takes long to import
    if command.sweep is None or command.shard is None:
        raise UserError(f"worker: {options.MISSING['sweep' if command.sweep is None else 'shard']}")
    from cl_jax import cache
    from cl_jax.fleet.worker import work

    cache.keep_compiled()
    work(command.sweep, command.shard, notice, quiet=command.quiet)


def launch(command: options.Launch) -> None:
    """Hands a sweep to an engine. Raises SystemExit: as the engine ends."""
    if command.engine not in options.ENGINES:
        raise unknown("engine", command.engine, options.ENGINES)
    slices = ("topology", "accelerator", "limit")
    if command.hosts is None and (given := [name for name in slices if getattr(command, name) is not None]):
        raise UserError(f"--{given[0]}: is for several hosts a shard; give --hosts too")
    engines = options.ENGINES if command.hosts is None else options.SLICES
    file = Path(__file__).parents[2] / "launch" / engines[command.engine]
    if not file.is_file():
        raise UserError(f"launch: {file.name} is in the checkout's folder launch, and this is not run from a checkout")
    if importlib.util.find_spec(command.engine) is None:
        raise UserError(
            f"launch: {command.engine} is not installed; pip install 'cl_jax[{command.engine}]', or run {file} by a "
            f"Python that has it"
        )
    names = ("cpus", "gpus", "address", "hosts", *slices)
    words = [f"--{name}={value}" for name in names if (value := getattr(command, name)) is not None]
    raise SystemExit(subprocess.run([sys.executable, str(file), str(command.out), *words], check=False).returncode)


def status(command: options.Status) -> None:
    """Prints where a sweep stands."""
    from cl_jax.fleet.status import show

    show(command.out, watch=command.watch)


def gather(command: options.Gather) -> None:
    """Writes the table. Raises SystemExit: 1, where anything is missing."""
    from cl_jax.fleet import gather as gathering

    lacks = gathering.gather(command.out, mixed=command.mixed)
    for lack in lacks:
        print(
            f"missing: shard {lack.number} ({lack.folder}), {lack.why}; members {', '.join(lack.members)}",
            file=sys.stderr,
        )
    print(f"results: {command.out / 'results.parquet'}{', in part' if lacks else ''}")
    if lacks:
        raise SystemExit(1)

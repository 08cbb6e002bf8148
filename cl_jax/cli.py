"""The command line: parse, validate, call."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from cl_jax.errors import UserError


@dataclasses.dataclass
class Run:
    """Train every run of an experiment and write its table and report; run again to continue it."""

    experiment: tyro.conf.Positional[Path]
    """Folder with a config.py, or a .py file."""
    out: Path | None = None
    """Where results go (default: runs/<name of the experiment's folder>)."""
    data: str | None = None
    """Use this data instead: digits, idx:<folder>, tfds:<name>, or just a folder of IDX files."""
    data_dir: Path | None = None
    """Folder of original or prepared files for tfds:<name>."""
    seeds: int | None = None
    """Use seeds 0 ... N-1 instead of the experiment's."""
    steps: int | None = None
    """Training steps a task instead of the experiment's."""
    width: int | None = None
    """Members side by side in one vmap."""
    quiet: bool = False
    """No progress, no table."""


@dataclasses.dataclass
class Plan(Run):
    """Show what `run` would do: members, compiled programs, what is finished already."""


@dataclasses.dataclass
class Report:
    """Print the summary of a run and write its page and figures."""

    out: tyro.conf.Positional[Path]
    """Output folder of `cl-jax run`."""
    format: str = "terminal"
    """terminal, markdown, latex or csv."""


@dataclasses.dataclass
class List:
    """Name everything an experiment can be made of, a line each."""


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[List, tyro.conf.subcommand("list")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `cl-jax`; exits 0 when done, 2 at a user's mistake, 130 at Ctrl-C."""
    command = tyro.cli(Command, args=arguments, prog="cl-jax", description="Measure catastrophic forgetting.")  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        _call(command)
    except UserError as error:
        print(f"cl-jax: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\ncl-jax: stopped; finished tasks are kept, the same command goes on from there", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)  # compiled chunks in other threads cannot be interrupted; everything on disk is safe


def _call(command: Run | Plan | Report | List) -> None:
    if isinstance(command, List):
        _list()
    elif isinstance(command, Report):
        _report(command.out, command.format)
    else:
        from cl_jax import runner

        name = command.experiment.resolve().name.removesuffix(".py")
        out = command.out or Path("runs") / name
        data = command.data
        if data is not None and ":" not in data and Path(data).is_dir():
            data = f"idx:{Path(data).resolve()}"
        job = runner.prepare(
            command.experiment, out, data=data, folder=command.data_dir, seeds=command.seeds, steps=command.steps,
            width=command.width,
        )  # fmt: skip
        if isinstance(command, Plan):
            runner.describe(job)
            return
        runner.run(job, quiet=command.quiet)
        _report(out, "terminal", quiet=command.quiet)


def _report(out: Path, format: str, quiet: bool = False) -> None:
    from cl_jax import report, results

    table = results.read_table(out)
    experiment = results.read_json(out / "experiment.json")
    environment = results.read_json(out / "environment.json")
    if not quiet:
        print(report.render_table(report.summary(table), format))
    report.write_report(table, environment, experiment, out / "report")
    if not quiet and format == "terminal":
        print(f"report: {out / 'report' / 'report.html'}")


def _list() -> None:
    from cl_jax.adapters import ADAPTERS
    from cl_jax.methods import METHODS
    from cl_jax.optimizers import OPTIMIZERS
    from cl_jax.schedules import SCHEDULES
    from cl_jax.tasks import STREAMS

    kinds = {
        "streams": STREAMS, "methods": METHODS, "adapters": ADAPTERS, "optimizers": OPTIMIZERS, "schedules": SCHEDULES,
    }  # fmt: skip
    for kind, table in kinds.items():
        print(kind)
        for name, value in table.items():
            module = sys.modules[value.__module__].__doc__ or ""
            own = (value.__doc__ or "").strip().splitlines()[0]
            print(f"  {name:<12} {module.strip().splitlines()[0] if own.startswith('See ') else own}")

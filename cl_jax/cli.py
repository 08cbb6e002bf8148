"""The command line: parse, validate, call. Nothing slow is imported before a command needs it."""

import contextlib
import dataclasses
import os
import re
import shlex
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from cl_jax.errors import UserError, did_you_mean, unknown

FORMATS = ("terminal", "markdown", "latex", "csv")
_Kind = TypeVar("_Kind")
_Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


def _option(kind: type[_Kind], metavar: str) -> Any:
    return Annotated[kind | None, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]


def _place(metavar: str) -> Any:
    return Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]


@dataclasses.dataclass
class Plan:
    """Show what `run` would do, and do none of it."""

    experiment: _place("EXPERIMENT")  # pyright: ignore[reportInvalidTypeForm]
    """Folder with a config.py, such as experiments/quickstart, or a .py file."""
    out: _option(Path, "FOLDER") = None  # pyright: ignore[reportInvalidTypeForm]
    """Where results go; left out: runs/<name of the experiment's folder>."""
    data: _option(str, "DATA") = None  # pyright: ignore[reportInvalidTypeForm]
    """Train on this instead of the experiment's data: digits, tfds:<name>, or a folder of IDX files as MNIST's."""
    data_dir: _option(Path, "FOLDER") = None  # pyright: ignore[reportInvalidTypeForm]
    """For tfds:<name>: a folder of its prepared or original files, so that no network is needed."""
    seeds: _option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Use the seeds 0 to N-1 instead of the experiment's."""
    steps: _option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Train N steps a task instead of the experiment's number."""
    width: _option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Train N runs side by side in one program; left out: chosen, then kept."""


@dataclasses.dataclass
class Run(Plan):
    """Train an experiment, or go on with it; write its table and report."""

    quiet: _Flag = False
    """Print nothing but errors."""


@dataclasses.dataclass
class Report:
    """Print the summary of a run; write its page and figures."""

    out: _place("FOLDER")  # pyright: ignore[reportInvalidTypeForm]
    """Output folder of `cl-jax run`, such as runs/quickstart."""
    format: Annotated[str, tyro.conf.arg(metavar="|".join(FORMATS), help_behavior_hint="")] = "terminal"
    """How to print the summary; left out: terminal."""


@dataclasses.dataclass
class List:
    """Name everything an experiment can be made of."""


COMMANDS = {"run": Run, "plan": Plan, "report": Report, "list": List}
_ABOUT = """Measure catastrophic forgetting, and find what reduces it.

Start with:
  cl-jax run experiments/quickstart
"""
_ABOUT_COMMAND = {
    "run": """Train every run of an experiment, and write its table (results.parquet) and its report.

The same command again goes on where it stopped; nothing finished is trained twice.

Examples:
  cl-jax run experiments/quickstart
  cl-jax run experiments/quickstart --data tfds:mnist --seeds 3 --out runs/mnist
""",
    "plan": """Show what `run` would do, and do none of it.

That is: the number of training runs and of compiled programs, and what is finished already.

Example:
  cl-jax plan experiments/quickstart --seeds 20
""",
    "report": """Print the summary of a run, finished or not, and write its page and figures.

Examples:
  cl-jax report runs/quickstart
  cl-jax report runs/quickstart --format latex > table.tex
""",
    "list": """Name everything an experiment can be made of, a line each.""",
}


_WHOLE = ("seeds", "steps", "width")
_MISSING = {
    "experiment": "give an experiment, such as experiments/quickstart",
    "out": "give the output folder of a run, such as runs/quickstart",
}


class Terminated(BaseException):
    """SIGTERM arrived."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `cl-jax`.

    Returns when done; exits 2 at a user's mistake, 130 at Ctrl-C, 143 at SIGTERM.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _terminable():
            _check_words(words)
            _call(_parse(words))
            sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at exit
        raise SystemExit(1) from None
    except OSError as error:
        _fail(
            f"{error.filename or 'a file'}: {error.strerror or error}; what was finished is kept: mend it and run again"
        )
    except KeyboardInterrupt:
        _stop(130, words)
    except Terminated:
        _stop(143, words)


def _fail(message: str) -> None:
    print(f"cl-jax: {message}", file=sys.stderr)
    raise SystemExit(2) from None


def _stop(code: int, words: Sequence[str]) -> None:
    again = f"; to go on from there: {shlex.join(['cl-jax', *words])}" if words and words[0] == "run" else ""
    print(f"\ncl-jax: stopped; finished tasks are kept{again}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)  # threads that compile or train cannot be interrupted, and everything on disk is safe


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises here, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_words(words: Sequence[str]) -> None:
    """A misspelt command or option, a value that is no number, a missing or surplus word: in one line each."""
    if not words:
        raise UserError(f"give a command: {', '.join(COMMANDS)}. See: cl-jax --help")
    if words[0] in ("-h", "--help"):
        return
    if words[0] not in COMMANDS:
        raise UserError(f"{unknown('command', words[0], COMMANDS)} See: cl-jax --help")
    if "-h" in words or "--help" in words:
        return
    fields = dataclasses.fields(COMMANDS[words[0]])
    options = {_spelling(f.name): f for f in fields if f.default is not dataclasses.MISSING}
    places = [field.name for field in fields if field.default is dataclasses.MISSING]
    help_ = f"See: cl-jax {words[0]} --help"
    rest, placed = list(words[1:]), []
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            placed.append(word)
            continue
        name, given, value = word.partition("=")
        if name.replace("_", "-") not in options:
            allowed = f"allowed: {', '.join(options)}" if options else "it has none"
            hint = did_you_mean(name, options)
            raise UserError(f"unknown option {name!r} of {words[0]}; {allowed}.{hint} {help_}")
        field = options[name.replace("_", "-")]
        if isinstance(field.default, bool):
            continue
        if not given:
            value = rest.pop(0) if rest else ""
        if not value or (not given and value.startswith("--")):
            raise UserError(f"{name}: a value is missing. {help_}")
        if field.name in _WHOLE and not re.fullmatch(r"[+-]?[0-9]{1,18}", value):
            raise UserError(f"{name}: expected a whole number, was given {value!r}. {help_}")
    if len(placed) < len(places):
        raise UserError(f"{words[0]}: {_MISSING[places[len(placed)]]}. {help_}")
    if len(placed) > len(places):
        raise UserError(f"{words[0]}: too many words: {' '.join(placed[len(places) :])}. {help_}")


def _spelling(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _parse(words: Sequence[str]) -> Any:
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    if words and words[0] in COMMANDS:
        name = words[0]
        prog, about = f"cl-jax {name}", _ABOUT_COMMAND[name]
        return tyro.cli(COMMANDS[name], args=words[1:], prog=prog, description=about, config=markers)
    commands: Any = (
        Annotated[Run, tyro.conf.subcommand("run")]
        | Annotated[Plan, tyro.conf.subcommand("plan")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[List, tyro.conf.subcommand("list")]
    )
    return tyro.cli(commands, args=words, prog="cl-jax", description=_ABOUT, config=markers)


def _call(command: Run | Plan | Report | List) -> None:
    if isinstance(command, List):
        _list()
    elif isinstance(command, Report):
        if command.format not in FORMATS:
            raise unknown("--format", command.format, FORMATS)
        _report(command.out, command.format)
    else:
        from cl_jax import runner

        out = command.out or Path("runs") / command.experiment.resolve().name.removesuffix(".py")
        job = runner.prepare(
            command.experiment, out, data=_data_name(command.data), folder=command.data_dir, seeds=command.seeds,
            steps=command.steps, width=command.width,
        )  # fmt: skip
        if isinstance(command, Run):
            runner.run(job, quiet=command.quiet)
            _report(out, "terminal", quiet=command.quiet)
        else:
            runner.describe(job)


def _data_name(data: str | None) -> str | None:
    """The source that --data names; a folder by its path alone is one of IDX files."""
    if data is None or data.startswith(("idx:", "tfds:")):
        return data
    if Path(data).is_dir():
        return f"idx:{Path(data).resolve()}"
    if os.sep in data:
        raise UserError(f"--data {data}: there is no such folder; give digits, tfds:<name> or a folder of IDX files")
    return data


def _report(out: Path, format: str, quiet: bool = False) -> None:
    from cl_jax import report, results

    table = results.read_table(out)
    experiment = results.read_json(out / "experiment.json", {"name": str, "description": str})
    environment = results.read_json(out / "environment.json", {"versions": dict, "device": dict})
    if not quiet:
        print(report.render_table(report.summary(table), format))
    report.write_report(table, environment, experiment, out / "report")
    if not quiet and format == "terminal":
        print(f"report: {out / 'report' / 'report.html'}")


def _list() -> None:
    from cl_jax import sources
    from cl_jax.adapters import ADAPTERS
    from cl_jax.experiment import MODELS
    from cl_jax.methods import METHODS
    from cl_jax.optimizers import OPTIMIZERS
    from cl_jax.schedules import SCHEDULES
    from cl_jax.tasks import STREAMS

    kinds = {
        "streams": STREAMS, "methods": METHODS, "adapters": ADAPTERS, "optimizers": OPTIMIZERS, "schedules": SCHEDULES,
        "models": MODELS,
    }  # fmt: skip
    lines = {kind: {name: _what(value) for name, value in table.items()} for kind, table in kinds.items()}
    for kind, table in {**lines, "data": sources.KNOWN}.items():
        print(kind)
        for name, text in table.items():
            print(f"  {name:<20} {textwrap.shorten(text, 96, placeholder=' ...')}")


def _what(part: Any) -> str:
    """First sentence of a part's docstring, or of its module's where the part's own only points elsewhere."""
    own = part.__doc__ or ""
    text = (sys.modules[part.__module__].__doc__ or "") if own.startswith("See ") else own
    return " ".join(text.strip().partition("\n\n")[0].split())

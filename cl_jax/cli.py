"""The command line: call what was asked for, and say what went wrong. Nothing slow is imported before it is needed."""

import contextlib
import logging
import os
import re
import shlex
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cl_jax import options
from cl_jax.errors import UserError, unknown
from cl_jax.fleet import options as fleet
from cl_jax.fleet.bucket import StoreError, is_url


class Terminated(BaseException):
    """SIGTERM arrived."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `cl-jax`.

    Returns when done; exits 2 at a user's mistake, 130 at Ctrl-C, 143 at SIGTERM; a worker as it says.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _terminable():
            _call(options.parse(words))
            sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except StoreError as error:
        print(f"cl-jax: {error}; what was brought up is safe: run again", file=sys.stderr)
        raise SystemExit(1) from None
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
        _stop(75 if words[:1] == ["worker"] else 143, words)


def _fail(message: str) -> None:
    print(f"cl-jax: {' '.join(message.splitlines())}", file=sys.stderr)
    raise SystemExit(2) from None


def _stop(code: int, words: Sequence[str]) -> None:
    goes_on = words[:1] in (["run"], ["adapt"], ["worker"])
    again = f"; to go on from there: {shlex.join(['cl-jax', *words])}" if goes_on else ""
    kept = "rounds" if words[:1] == ["adapt"] else "tasks"
    print(f"\ncl-jax: stopped; finished {kept} are kept{again}", file=sys.stderr, flush=True)
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


def _call(command: Any) -> None:
    if isinstance(command, options.List):
        _list()
    elif isinstance(command, options.Report):
        if command.format not in options.FORMATS:
            raise unknown("--format", command.format, options.FORMATS)
        _report(command.out, command.format, command.select)
    elif isinstance(command, options.Adapt):
        from cl_jax import cache
        from cl_jax.conversations import command as conversations

        _hush()
        cache.keep_compiled()
        conversations.call(command)
    elif isinstance(command, (fleet.Worker, fleet.Launch, fleet.Status, fleet.Gather)):
        from cl_jax.fleet import command as of_shards

        _hush()
        getattr(of_shards, type(command).__name__.lower())(command)
    else:
        from cl_jax import cache, devices, runner

        _hush()
        keep = _boundaries(command.keep) if isinstance(command, options.Run) else None
        devices.every_core()
        cache.keep_compiled()
        name = command.experiment.resolve().name.removesuffix(".py")
        out = Path(command.out or Path("runs") / (name if command.size is None else f"{name}-{command.size}"))
        if isinstance(command, fleet.Shards):
            from cl_jax.fleet import command as of_shards

            if is_url(command.out):
                of_shards.shards_in_store(command, command.out, _data_name(command.data))
            else:
                of_shards.shards(command, out, _data_name(command.data))
            return
        if re.match(r"[a-z0-9]+:/", str(out)):  # two slashes are one in a path
            raise UserError(f"--out {out}: give a folder; in a store is what `cl-jax shards` and its workers make")
        job = runner.prepare(
            command.experiment, out, data=_data_name(command.data), folder=command.data_dir, seeds=command.seeds,
            steps=command.steps, width=command.width, shared=not command.unshared,
            data_budget=command.data_budget, from_=command.from_, halve=command.halving, size=command.size,
        )  # fmt: skip
        if isinstance(command, options.Run):
            runner.run(job, quiet=command.quiet, keep=keep)
            _report(out, "terminal", "all", quiet=command.quiet, again=False)
        else:
            runner.describe(job, measure=command.measure)


def _hush() -> None:
    # Orbax and asyncio log with a traceback what Orbax's threads raise, which also reaches us as an error.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _tell_unraisable


def _tell_unraisable(found: Any) -> None:
    # TensorStore tells a reader or writer that failed of each array it had begun, after its event loop is closed.
    if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def _boundaries(keep: str) -> int | None:
    """How many boundaries --keep lets stay; None: all."""
    if keep != "all" and not (re.fullmatch("[0-9]{1,9}", keep) and int(keep)):
        raise UserError(f"--keep: was given {keep!r}; give all, or a number of task boundaries from 1")
    return None if keep == "all" else int(keep)


def _data_name(data: str | None) -> str | None:
    """The source that --data names; a folder by its path alone is one of IDX files."""
    if data is None or data.startswith(("idx:", "tfds:", "text:", "labelled:")):
        return data
    if Path(data).is_dir():
        return f"idx:{Path(data).resolve()}"
    if os.sep in data:
        raise UserError(f"--data {data}: there is no such folder; give digits, tfds:<name> or a folder of IDX files")
    return data


def _report(out: Path, format: str, select: str, *, quiet: bool = False, again: bool = True) -> None:
    """Prints the summary and writes the page; unless `again`, one that is newer than the results stays.

    Every selection protocol but "all" has a folder of its own, so that none is taken for another.
    """
    from cl_jax import selection

    protocol = selection.parse(select)
    from cl_jax import report, results
    from cl_jax.diagnostics import table as diagnostics

    table, measured = results.read_table(out), diagnostics.read_table(out)
    experiment = results.read_json(out / "experiment.json", {"name": str, "description": str})
    environment = results.read_json(out / "environment.json", {"versions": dict, "device": dict})
    rows = report.summary(table, protocol=protocol)
    if not quiet:
        print(report.render_table(rows, format))
        if format == "terminal" and "partial" in environment:
            print(f"in part: {environment['partial']}")
    folder = "report" if protocol.name == "all" else f"report-{protocol.name.replace(':', '-')}"
    page = out / folder / "report.html"
    if again or not page.is_file() or page.stat().st_mtime < (out / results.RESULTS).stat().st_mtime:
        report.write_report(table, environment, experiment, page.parent, protocol=protocol, diagnostics=measured)
    if not quiet and format == "terminal":
        print(f"report: {page}")


def _list() -> None:
    from cl_jax import sources
    from cl_jax.adapters import ADAPTERS
    from cl_jax.diagnostics import DIAGNOSTICS
    from cl_jax.experiment import MODELS
    from cl_jax.methods import METHODS
    from cl_jax.optimizers import OPTIMIZERS
    from cl_jax.schedules import SCHEDULES
    from cl_jax.tasks import BOUNDARIES, STREAMS

    kinds = {
        "streams": STREAMS, "boundaries": BOUNDARIES, "methods": METHODS, "adapters": ADAPTERS,
        "optimizers": OPTIMIZERS, "schedules": SCHEDULES, "models": MODELS,
        "diagnostics": {name: each.measure for name, each in DIAGNOSTICS.items()},
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


if __name__ == "__main__":
    main()

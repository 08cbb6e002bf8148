"""Measures this machine: `python -m experiments.benchmark`, or `bash launch/local.sh benchmark`. See README.md here."""

import dataclasses
import datetime
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn

from cl_jax import provenance
from cl_jax.devices import cores, every_core
from cl_jax.errors import UserError, unknown
from cl_jax.results import write_atomically, write_json
from experiments.benchmark import boundary, fishers, language, overhead, peak, scaling, steps, with_torch
from experiments.benchmark.bench import Bench, Step, settings
from experiments.benchmark.notebook import readme
from experiments.benchmark.rows import Row, write_table

SECTIONS: dict[str, Callable[[Bench], list[Step]]] = {
    "mlp": lambda bench: steps.plan(bench, "mlp"),
    "cnn": lambda bench: steps.plan(bench, "cnn"),
    "resnet18": lambda bench: steps.plan(bench, "resnet18"),
    "overhead": overhead.plan,
    "fisher": fishers.plan,
    "boundary": boundary.plan,
    "scaling": scaling.plan,
    "language": language.plan,
}


@dataclasses.dataclass
class Options:
    """Measure how fast this machine trains, beside its matmul peak, a scan by hand and PyTorch."""

    quick: bool = False
    """Little more than the table of targets needs: five minutes instead of half an hour, on two quiet cores."""
    only: Annotated[str, tyro.conf.arg(metavar="PART,...", help_behavior_hint="")] = ""
    """Some parts: mlp, cnn, resnet18, overhead, fisher, boundary, scaling, language; left out: all."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/benchmark")
    """Where the table, the page and the figures go."""
    torch_python: Annotated[str | None, tyro.conf.arg(metavar="PYTHON", help_behavior_hint="")] = None
    """A Python that has PyTorch, to measure it beside us; left out: this one, if it has it."""


def main(words: Sequence[str] | None = None) -> None:
    """Returns when done; exits 2 at a user's mistake, 130 when stopped. What was measured by then is written."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    options = tyro.cli(Options, args=words, prog="benchmark", config=markers)
    try:
        run(options, sys.argv[1:] if words is None else words)
    except (UserError, OSError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nbenchmark: stopped; what was measured is written", file=sys.stderr)
        raise SystemExit(130) from None


def run(options: Options, words: Sequence[str]) -> list[Row]:
    """Takes every step, showing the time left, and writes what was measured, whatever happens."""
    names = [name.strip() for name in options.only.split(",")] if options.only else list(SECTIONS)
    for name in names:
        if name not in SECTIONS:
            raise unknown("part", name, SECTIONS)
    every_core()
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is measured
    torch = with_torch.find(options.torch_python)
    bench, rows, began, load = settings(options.quick, torch), [], time.monotonic(), os.getloadavg()[0]
    options.out.mkdir(parents=True, exist_ok=True)
    kept = tempfile.TemporaryDirectory()
    os.environ["CL_JAX_CACHE"] = kept.name  # widths are measured anew
    try:
        todo = [Step("matmul peak", 5.0, lambda: peak.measure(bench))]
        todo += [step for name in names for step in SECTIONS[name](bench)]
        for measured in progress(todo):
            rows += measured
            write_table(options.out, rows)
            jax.clear_caches()  # hundreds of compiled programs use up the memory maps that Linux gives a process
    finally:
        kept.cleanup()
        if torch is not None:
            torch.close()
        if rows:
            about = environment(words, load, time.monotonic() - began, torch.version if torch else None)
            write(options.out, rows, about)
    return rows


def progress(todo: Sequence[Step]) -> Iterable[list[Row]]:
    """Takes the steps one by one; what is done, what is under way, and the time left by what was expected of each."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}")
    expected, done, began = sum(step.seconds for step in todo), 0.0, time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=expected, left="")
        for number, step in enumerate(todo, 1):
            slower = (time.monotonic() - began) / done if done else 1.0
            left = f"{(expected - done) * slower / 60:.0f} min left"
            bar.update(task, description=step.name, completed=done, left=left)
            if not console.is_terminal:
                console.print(f"{number}/{len(todo)}  {step.name}  {left}", highlight=False)
            yield step.run()
            done += step.seconds


def environment(words: Sequence[str], load: float, seconds: float, torch: str | None) -> dict[str, Any]:
    """What the numbers depend on; no path and no name of the machine."""
    found = provenance.environment()
    return {
        "date": datetime.date.today().isoformat(),
        "device": device_name(),
        "cores": cores(),
        "load": load,
        "python": found["python"],
        "versions": {name: found["versions"][name] for name in ("jax", "jaxlib", "optax", "numpy")}
        | ({"torch": torch} if torch else {}),
        "code": found["code"],
        "flags": found["flags"],
        "matmul_precision": found["matmul_precision"],
        "command": shlex.join(["bash", "launch/local.sh", "benchmark", *without_places(words)]),
        "seconds": round(seconds, 1),
    }


def without_places(words: Sequence[str]) -> list[str]:
    """The words less the options that name a place of this machine."""
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, given, _ = word.partition("=")
        if name not in ("--out", "--torch-python"):
            kept.append(word)
        elif not given and rest:
            rest.pop(0)
    return kept


def device_name() -> str:
    """The accelerator's name, or the processor's where the system tells."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind} x {jax.device_count()}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({platform.machine()})"


def write(folder: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """The table, the environment, the figures and the page; the page also to the terminal."""
    from experiments.benchmark import figures

    write_table(folder, rows)
    write_json(folder / "environment.json", about)
    page = readme(rows, about, figures.draw(folder, rows))
    write_atomically(folder / "README.md", page.encode())
    Console().print(Markdown(page.partition("## Measured")[2]))
    print(f"table, page and figures: {folder}")


if __name__ == "__main__":
    main()

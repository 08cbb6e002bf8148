"""The command line: its help, what it says to a mistyped word, and how it stops."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cl_jax import cli, options

CONFIG = """
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.tasks import Permuted

base = Run(stream=Permuted(num_tasks=3), model=Mlp(hidden=(8,)), steps={steps})
experiment = Experiment(name="tiny", description="", entries=sweep("finetune", base), seeds=(0,))
"""
SECONDS_TO_STOP = 5.0  # "within seconds": interpreters and writers may take that on a busy machine


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in options.COMMANDS), ["run", "x", "-h"]])
def test_help_is_for_people(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 0 and err == ""
    assert max(map(len, out.splitlines())) <= 100
    assert not re.search(r"None|\bSTR\b|\bINT\b|\bPATH\b|default:|--no-|Annotated", out)
    if words[0] in ("run", "plan", "report", "adapt"):
        assert f"cl-jax {words[0]} " in out.partition("Example")[2]


def test_help_of_a_command_tells_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    out = capsys.readouterr().out
    for option in ("--out", "--data", "--data-dir", "--seeds", "--steps", "--width", "--quiet", "EXPERIMENT"):
        assert option in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "",
            "give a command: run, plan, report, adapt, shards, worker, launch, status, gather, list. "
            "See: cl-jax --help",
        ),
        (
            "rnu x",
            "unknown command 'rnu'; known: adapt, gather, launch, list, plan, report, run, shards, status, worker. "
            "Did you mean 'run'? See: cl-jax",
        ),
        ("--seeds 3", "unknown command '--seeds'"),
        ("run", "run: give an experiment, such as experiments/quickstart. See: cl-jax run --help"),
        ("run a b", "run: too many words: b."),
        ("list a", "list: too many words: a."),
        ("list --out a", "unknown option '--out' of list; it has none."),
        ("run --sedes 3 x", "unknown option '--sedes' of run; allowed: --out, --size, --data, --data-dir, --seeds,"),
        ("run x --sedes=3", "Did you mean '--seeds'?"),
        ("plan x --quiet", "unknown option '--quiet' of plan"),
        ("run x --seeds", "--seeds: a value is missing."),
        ("run x --seeds --quiet", "--seeds: a value is missing."),
        ("run x --seeds=", "--seeds: a value is missing."),
        ("run x --seeds abc", "--seeds: expected a whole number, was given 'abc'. See: cl-jax run --help"),
        ("run x --seeds 1.5", "--seeds: expected a whole number, was given '1.5'."),
        ("run x --quiet=yes", "--quiet: takes no value, was given 'yes'."),
        ("run -q x", "unknown option '-q' of run"),
        ("report", "report: give the output folder of a run, such as runs/quickstart."),
    ],
)
def test_mistyped_words(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.startswith(f"cl-jax: {message}" if message[0] not in "D" else "cl-jax: ") and message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["run", "x", "--out"], ["run", "x", "--seeds", "0x10"], ["report", "a", "--format"]])
def test_no_words_reach_a_traceback(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_list_has_a_line_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    from cl_jax import adapters, diagnostics, experiment, methods, optimizers, schedules, sources, tasks

    cli.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    kinds = [line for line in lines if not line.startswith("  ")]
    assert kinds == [
        "streams",
        "boundaries",
        "methods",
        "adapters",
        "optimizers",
        "schedules",
        "models",
        "diagnostics",
        "data",
    ]
    tables = (
        tasks.STREAMS, tasks.BOUNDARIES, methods.METHODS, adapters.ADAPTERS, optimizers.OPTIMIZERS, schedules.SCHEDULES,
        experiment.MODELS, diagnostics.DIAGNOSTICS, sources.KNOWN,
    )  # fmt: skip
    named = [line.split() for line in lines if line.startswith("  ")]
    assert [words[0] for words in named] == [name for table in tables for name in table]
    assert min(len(words) for words in named) > 3 and max(map(len, lines)) <= 120
    assert not any(words[1] in ("See", "dict(iterable)") for words in named)


def test_help_imports_nothing_slow() -> None:
    code = "import sys, cl_jax.cli; print([m for m in ('jax', 'numpy', 'pyarrow', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_closed_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "cl_jax.cli", "list"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def write_experiment(folder: Path, steps: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.py").write_text(CONFIG.format(steps=steps))
    return folder


def command(experiment: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "cl_jax.cli", "run", str(experiment), "--out", str(out)]


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Reads the process's errors up to a line with `text`."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"ended before it said {text!r}: {seen}")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["compiling", "task 2 of 3"])
def test_signals_stop_it_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals, code: int, moment: str
) -> None:
    steps = 10 if moment == "compiling" else 400_000  # seconds a task
    experiment, out = write_experiment(tmp_path / "x", steps), tmp_path / "out"
    process = subprocess.Popen(command(experiment, out), stderr=subprocess.PIPE, text=True)
    if moment == "compiling":
        wait_for(process, moment)
        time.sleep(0.3)
    else:
        while not any(out.glob("shards/*/attempt-*/1")):  # the checkpoint after task 1
            assert process.poll() is None
            time.sleep(0.05)
    process.send_signal(number)
    sent = time.monotonic()
    _, rest = process.communicate(timeout=60)
    assert time.monotonic() - sent < SECONDS_TO_STOP
    assert process.returncode == code
    assert f"cl-jax: stopped; finished tasks are kept; to go on from there: cl-jax run {experiment} --out {out}" in rest
    assert "Traceback" not in rest
    if moment == "compiling":
        done = subprocess.run(command(experiment, out), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        table = pq.read_table(out / "results.parquet")
        assert set(table["after_task"].to_pylist()) == {0, 1, 2, 3}
    else:
        process = subprocess.Popen(command(experiment, out), stderr=subprocess.PIPE, text=True)
        wait_for(process, "continues after task 1 of 3")
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == code


@pytest.mark.slow
def test_full_disk(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "none", place]).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    experiment = write_experiment(tmp_path / "x", 10)
    try:
        done = subprocess.run(command(experiment, place / "out"), capture_output=True, text=True, timeout=240)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr and "No space left on device" in done.stderr
        assert "run again" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        done = subprocess.run(command(experiment, place / "out"), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        shutil.copy(place / "out" / "results.parquet", tmp_path)
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    assert set(pq.read_table(tmp_path / "results.parquet")["after_task"].to_pylist()) == {0, 1, 2, 3}


def test_files_that_may_not_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = write_experiment(tmp_path / "x", 10)
    cli.main(["plan", str(experiment), "--out", str(tmp_path / "out")])  # imports that try out files are done now
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["run", str(experiment), "--out", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert stopped.value.code == 2
    assert "File too large" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []  # no torn file is left


def test_read_only_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "fixed"
    place.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", place]).returncode:
        pytest.skip("mounting a read-only disk needs root and the right to mount")
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["run", str(write_experiment(tmp_path / "x", 10)), "--out", str(place / "out")])
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    assert stopped.value.code == 2
    assert f"cl-jax: {place / 'out'}: Read-only file system" in capsys.readouterr().err

"""Data from the host: the same bits as data on the device, never more of it there than the budget, read ahead."""

import re
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from cl_jax import cli, plan, runner, sweep, waves
from cl_jax.batch import Reference
from cl_jax.budget import image_budget
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import Data, HostImages, split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Experiment, Mlp, Run, members
from cl_jax.experiment import sweep as entries_of
from cl_jax.methods import Ewc, Replay
from cl_jax.optimizers import Sgd
from cl_jax.sources import Source
from cl_jax.streaming import read_ahead
from cl_jax.tasks import Fuzzy, NoisyLabels, Permuted, Split
from cl_jax.tasks.render import render
from cl_jax.tasks.stream import View, make_curriculum
from cl_jax.train import kept
from tests.test_sweep import Silent

SHAPE = (7, 5, 1)  # like no image of another test, so that live arrays of it are this module's
ROW = 35
BUDGET = 2 * 250 * ROW  # two windows of 250 of the 700 images

BASE = Run(
    stream=Permuted(num_tasks=2), model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.5), steps=24, batch_size=8
)
EWC = Ewc(anchors="online", strength=10.0)
SPLIT = {"stream": Split(num_tasks=5), "scenario": "class", "exposure": "seen", "steps": 16}
RUNS = {
    "replay of each step, and ewc of tasks too large for a window": replace(
        BASE, {"methods": {"ewc": EWC, "replay": Replay(capacity=20)}}
    ),
    "replay of finished tasks, and ewc of tasks that fit": replace(
        BASE, {**SPLIT, "methods": {"ewc": EWC, "replay": Replay(capacity=5, insert="boundary")}}
    ),
    "joint training": replace(BASE, {"exposure": "all"}),
    "fine-tuning": BASE,
    "fine-tuning on a split stream": replace(BASE, SPLIT),
    "blurry boundaries, and the newest task evaluated": replace(
        BASE, {"boundary": Fuzzy(width=0.5), "recent": 1, "methods": {"replay": Replay(capacity=20)}}
    ),
    "noisy labels and derived permutations": replace(
        BASE, {"stream": NoisyLabels(stream=Permuted(num_tasks=2, permutations="derived"))}
    ),
}
QUICK = list(RUNS)[:2]


def source(num_train: int = 600, num_test: int = 100) -> Source:
    """Ten classes of noise, each brighter in pixels of its own; a test set apart."""
    rng, made = np.random.default_rng(0), []
    for number in (num_train, num_test):
        labels = rng.permutation(np.arange(number, dtype=np.int32) % 10)
        images = rng.integers(0, 100, (number, *SHAPE)).astype(np.uint8)
        images.reshape(number, -1)[np.arange(number)[:, None], 3 * labels[:, None] + np.arange(3)] += 150
        made += [images, labels]
    return Source("noise", *made, num_classes=10, pixel_max=255)


PROGRAMS = Programs(devices=jax.devices()[:2])
RESIDENT = split_source(source(), 0.1)


def shard_of(run: Run, out: Path) -> plan.Shard:
    """Three rates, at the last of which members diverge, and two seeds; in waves of four."""
    rates = entries_of("x", run, {"optimizer.learning_rate": [0.05, 0.1, 1e6]})
    everyone = members(Experiment(name="x", description="", entries=rates, seeds=(0, 1)), {"digits": "sha"})
    return plan.make_plan(out, everyone, 2, lambda member: 1000)[0]


def images_on_a_device() -> list[int]:
    """Bytes of each array of this module's images but the resident data set; of what is on several devices, once."""
    live = [array for array in jax.live_arrays() if array.shape[1:] == SHAPE and array.dtype == jnp.uint8]
    return [array.nbytes for array in live if array.size and array.shape != RESIDENT.images.shape]


class Watching(Silent):
    """Looks at what the devices hold at every report."""

    def __init__(self, stop_at_task: int | None = None):
        super().__init__(stop_at_task)
        self.held: list[list[int]] = []

    def advanced(self, shard: plan.Shard, task: int, member_steps: int) -> None:
        self.held.append(images_on_a_device())
        super().advanced(shard, task, member_steps)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in RUNS])
def test_streamed_is_resident_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed, watching = split_source(source(), 0.1, budget=BUDGET), Watching()
    read = HostImages.read

    def watched(self: HostImages, rows: np.ndarray) -> np.ndarray:
        watching.held.append(images_on_a_device())
        return read(self, rows)

    monkeypatch.setattr(HostImages, "read", watched)
    shards = {kind: shard_of(RUNS[name], tmp_path / kind) for kind in ("resident", "streamed")}
    sweep.run_shard(shards["resident"], RESIDENT, Silent(), PROGRAMS)
    watching.held.clear()
    with pytest.raises(KeyboardInterrupt):
        sweep.run_shard(shards["streamed"], streamed, Watching(stop_at_task=1), PROGRAMS)
    assert images_on_a_device() == []
    sweep.run_shard(shards["streamed"], streamed, watching, PROGRAMS)

    one, other = (sweep.read_record(shard) for shard in shards.values())
    assert one is not None and other is not None
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert one.diverged.tolist() == [False] * 4 + [True] * 2
    assert len({member.tobytes() for member in one.record}) == 6

    windows = waves.windows_of(shards["streamed"], streamed, 2)
    assert windows.chunk < RUNS[name].steps and windows.training <= 250  # several windows a task
    assert (windows.task is None) == (RUNS[name].stream != SPLIT["stream"])  # a permuted task is every row
    held = [sum(sizes) for sizes in watching.held]
    assert ROW * windows.training <= max(held) <= BUDGET < RESIDENT.images.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("at", [130, 400])
def test_whoever_diverges_is_left_as_it_was_before_the_whole_chunk_however_that_is_cut(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, steps, trained = replace(BASE, {"steps": 500, "batch_size": 1}), PROGRAMS.steps, []
    keep = jax.jit(jax.vmap(kept))

    def diverging(wave: Any, state: Any, data: Data, task: int, first: int, *, num_steps: int) -> Any:
        """As a program whose second member diverges at step `at`."""
        before = jax.tree.map(jnp.copy, state)
        state, losses = steps(wave, state, data, task, first, num_steps=num_steps)
        now = jnp.arange(4) == (1 if first <= at < first + num_steps else -1)
        return keep(before, state._replace(diverged=state.diverged | now)), losses

    monkeypatch.setattr(PROGRAMS, "steps", diverging)
    for data, chunk in ((RESIDENT, 250), (split_source(source(), 0.1, budget=BUDGET), 125)):
        crew = waves.crew_of(shard_of(run, tmp_path), data, PROGRAMS)
        wave = waves.muster(crew, np.arange(4))[0]
        assert crew.windows.chunk == chunk
        trained.append(waves.to_host(wave, waves.train_task(crew, wave, waves.first_states(crew, wave), 0, Silent())))
    assert trained[0].diverged.tolist() == [False, True, False, False]
    jax.tree.map(np.testing.assert_array_equal, *trained)


def test_the_host_reads_rows_of_all_parts_in_any_order() -> None:
    for given in (source(), Source("one part", source().train_images, source().train_labels, None, None, 10, 255)):
        resident, host = split_source(given, 0.1), split_source(given, 0.1, budget=1).host
        assert host is not None and len(host) == sum(resident.sizes) and host.row_bytes == ROW
        for rows in (np.arange(len(host)), np.random.default_rng(1).integers(0, len(host), 50), np.zeros(0, np.int32)):
            np.testing.assert_array_equal(host.read(rows), np.asarray(resident.images)[rows])


def windows_read(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> tuple[Generator[Data], list[int]]:
    """Four windows of rows 0-4, 1-5 ..., each taking some time to read, and the first row of each that was read."""
    data, read = split_source(source(), 0.1, budget=BUDGET), HostImages.read
    started: list[int] = []

    def slow(self: HostImages, rows: np.ndarray) -> np.ndarray:
        started.append(int(rows[0]))
        time.sleep(seconds)
        return read(self, rows)

    monkeypatch.setattr(HostImages, "read", slow)
    return read_ahead([np.arange(number, number + 5) for number in range(4)], 6, data), started


def until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_next_window_is_on_the_device_before_anybody_asks_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    windows, started = windows_read(monkeypatch)
    assert started == []
    first = next(windows)
    until(lambda: len(images_on_a_device()) == 2)
    time.sleep(0.05)
    assert started == [0, 1]
    second = next(windows)
    assert first.images.is_deleted() and not second.images.is_deleted()
    until(lambda: len(images_on_a_device()) == 2)
    assert started == [0, 1, 2] and second.slots is not None
    slots = np.asarray(second.slots)
    np.testing.assert_array_equal(np.flatnonzero(slots >= 0), np.arange(1, 6))
    np.testing.assert_array_equal(second.images[slots[1:6]], RESIDENT.images[1:6])
    windows.close()
    until(lambda: images_on_a_device() == [])
    assert second.images.is_deleted() and started == [0, 1, 2]


def test_reading_hides_behind_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    windows, _ = windows_read(monkeypatch, seconds=0.2)
    next(windows)
    for _ in range(3):
        time.sleep(0.3)  # the device computes
        begin = time.monotonic()
        next(windows)
        assert time.monotonic() - begin < 0.1


def test_a_row_that_no_window_foresaw_is_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    windows, _ = windows_read(monkeypatch)
    window = next(windows)
    view = View(Permuted(num_tasks=2).build(RESIDENT), "domain")
    tables = make_curriculum(jax.random.key(0), view.stream, RESIDENT).tables
    reference = Reference(jnp.array([3, 5, 4], jnp.int32), jnp.ones(3, jnp.int32))
    present = jnp.ones((), jnp.int32)

    @jax.jit
    def shown(data: Data) -> jax.Array:
        return render(view, tables, data, reference, present, mask="seen", one_task=False).x

    seen, true = np.asarray(shown(window)), np.asarray(shown(RESIDENT))
    np.testing.assert_array_equal(seen[[0, 2]], true[[0, 2]])
    assert np.isnan(seen[1]).all() and not np.isnan(true).any()


CONFIG = """
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted

base = Run(stream=Permuted(num_tasks=2), model=Mlp(hidden=(8,)), optimizer=Sgd(), steps=6, batch_size=30)
experiment = Experiment(name="tiny", description="", entries=sweep("one", base), seeds=(0, 1))
"""


def test_too_small_a_budget_is_one_message_that_names_the_least(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "config.py", tmp_path / "out"
    config.write_text(CONFIG)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", str(config), "--data-budget", "10KB", "--out", str(out)])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == "" and said.err.count("\n") == 1 and not out.exists()
    found = re.search(r"data budget of 10000 bytes: .*; give --data-budget (\d+) or more", said.err)
    assert found, said.err
    least = int(found[1])
    assert least == 2 * 64 * 359  # two windows of all test images of the digits, evaluated at once
    with pytest.raises(UserError, match=f"give --data-budget {least} or more"):
        runner.prepare(config, out, data_budget=str(least - 1))
    runner.prepare(config, out, data_budget=str(least))


@pytest.mark.slow
def test_an_experiment_streamed_writes_the_same_table(tmp_path: Path) -> None:
    config, tables = tmp_path / "config.py", []
    config.write_text(CONFIG)
    for budget in (None, "46kB"):
        job = runner.prepare(config, tmp_path / str(budget), data_budget=budget)
        assert all((data.host is None) == (budget is None) for data in job.data.values())
        runner.run(job, quiet=True)
        tables.append(pq.read_table(job.out / "results.parquet"))
    assert tables[0].equals(tables[1]) and tables[0].num_rows > 0


def test_the_plan_tells_what_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    cli.main(["plan", str(config), "--out", str(tmp_path / "out"), "--width", "2", "--data-budget", "60kB"])
    assert "360 of 1797 images at a time on a device, 6 steps each" in capsys.readouterr().out
    cli.main(["plan", str(config), "--out", str(tmp_path / "out"), "--width", "2", "--data-budget", "1MB"])
    assert "at a time" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "number"),
    [("500000", 500_000), ("64MB", 64_000_000), ("1.5GiB", 3 * 2**29), ("2 kb", 2000), ("7B", 7), (None, None)],
)
def test_a_budget_in_words(given: str | None, number: int | None) -> None:
    assert image_budget(given) == number


@pytest.mark.parametrize("given", ["", "0", "0.1", "-5", "much", "1TB", "1e6", "64 MB or so"])
def test_what_is_no_budget(given: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--data-budget: was given {given!r}; expected a number of bytes")):
        image_budget(given)

"""Widths: what is tried, what is chosen, what is kept; and that a plan says what it takes."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from cl_jax import cache, packing, plan, program, sources
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Experiment, Mlp, Run, members
from cl_jax.experiment import sweep as entries_of
from cl_jax.methods import Ewc, Replay
from cl_jax.optimizers import Sgd
from cl_jax.packing import Measured, best_width, explore
from cl_jax.tasks import Permuted
from cl_jax.waves import crew_of

RUN = Run(
    stream=Permuted(num_tasks=2), model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.2), steps=20, batch_size=8
)


def device(milliseconds: dict[int, float], asked: list[int], bytes: int = 10) -> Callable[[int], Measured]:
    """A device on which widths take this long."""

    def of_width(width: int) -> Measured:
        asked.append(width)
        return Measured(width, milliseconds[width], bytes * width, 0.0)

    return of_width


def wide_enough(known: Measured, width: int) -> float:
    return 1e-6


@pytest.mark.parametrize(
    ("milliseconds", "first", "tried"),
    [
        ({1: 8.0, 2: 4.0, 4: 2.0, 8: 1.0, 16: 0.5, 64: 0.2}, 64, [64, 16]),  # the wider the better, as on a GPU
        ({1: 1.0, 2: 1.4, 4: 2.0, 8: 3.0, 16: 4.0, 64: 5.0}, 1, [1, 2]),  # the narrower
        ({1: 1.2, 2: 1.0, 4: 0.9, 8: 1.0, 16: 1.5, 64: 2.0}, 4, [4, 8, 16, 2, 1]),  # between
        ({1: 1.0, 2: 0.9, 4: 0.8, 8: 0.7, 16: 0.6, 64: 0.5}, 8, [8, 16, 64, 4]),
    ],
)
def test_widths_are_tried_until_they_are_clearly_worse(
    milliseconds: dict[int, float], first: int, tried: list[int]
) -> None:
    asked: list[int] = []
    found = explore(device(milliseconds, asked), wide_enough, first, packing.WIDTHS, lambda known: np.inf)
    assert asked == tried
    best = min(milliseconds, key=milliseconds.__getitem__)
    assert best_width(found, 64 * 100, 1) == best


def test_nothing_more_is_tried_than_the_time_allows() -> None:
    times, asked = dict.fromkeys(packing.WIDTHS, 1.0), []
    explore(device(times, asked), lambda known, width: width * 0.1, 4, packing.WIDTHS, lambda known: 1.0)
    assert asked == [4, 2, 1]  # two calls at 8 would take more than the second there is
    asked.clear()
    explore(device(times, asked), lambda known, width: width * 1.0, 4, packing.WIDTHS, lambda known: np.inf)
    assert asked == [4, 8, 2, 1]  # one at 16 is longer than any call may be


def test_what_does_not_fit_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "memory_bytes", lambda: 1000)
    found = [Measured(1, 3.0, 200, 0.0), Measured(4, 2.0, 800, 0.0), Measured(16, np.inf, 3200, 0.0)]
    assert best_width(found, 160, 1) == 4
    with pytest.raises(UserError, match="one member takes") as error:
        best_width([Measured(2, np.inf, 3000, 0.0), Measured(1, np.inf, 900, 0.0)], 10, 1)
    assert "smaller model" in str(error.value)


def test_a_measurement_is_kept_and_a_torn_file_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CL_JAX_CACHE", str(tmp_path))
    calls: list[int] = []

    def measured() -> list[Measured]:
        calls.append(1)
        return [Measured(4, 0.5, 100, 2.0)]

    assert (
        packing.kept("program", (1, 4), measured)
        == packing.kept("program", (1, 4), measured)
        == [Measured(4, 0.5, 100, 2.0)]
    )
    assert len(calls) == 1
    packing.kept("another", (1, 4), measured)
    packing.kept("program", (1, 4, 16), measured)  # more members, that may lie wider
    assert len(calls) == 3
    for file in tmp_path.glob("widths/*.json"):
        file.write_text(json.dumps({"measured": [{"width": 4}]}))
    assert packing.kept("program", (1, 4), measured) == [Measured(4, 0.5, 100, 2.0)] and len(calls) == 4


@pytest.fixture(scope="module")
def data() -> Data:
    return split_source(sources.load("digits"), 0.1)


def shard_of(run: Run, seeds: int, width: int, *, fixed: bool = False) -> plan.Shard:
    experiment = Experiment(name="t", description="", entries=entries_of("m", run), seeds=tuple(range(seeds)))
    everyone = tuple(members(experiment, {"digits": "sha"}))
    return plan.Shard(folder=Path(), members=everyone, width=width, fixed=fixed)


def test_the_program_is_measured_and_its_memory_is_linear_in_the_members(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CL_JAX_CACHE", str(tmp_path))
    programs = Programs(devices=jax.devices()[:2])
    shard, found = packing.settled(shard_of(RUN, 16, 4), data, programs, share=np.inf)
    assert shard.fixed and shard.width in range(1, 9) and {each.width for each in found} >= {4, 8}
    assert all(each.milliseconds > 0 and each.fits for each in found)
    by_width = {each.width: each.bytes for each in found}
    state = program.state_bytes(RUN, data)
    assert 0 < (by_width[8] - by_width[4]) / 4 < 100 * state  # not a data set each
    assert by_width[4] > data.images.nbytes
    forced, again = packing.settled(shard_of(RUN, 16, 3, fixed=True), data, programs, share=np.inf)
    assert forced.width == 3 and again == found  # kept; and a width that is asked for stays
    short, nothing = packing.settled(shard_of(RUN, 16, 4), data, programs)
    assert short.width == 4 and nothing == []  # a second of training is not worth measuring


@pytest.mark.parametrize(("alone", "expected"), [(0.5, True), (2.0, False)])
def test_one_at_a_time_with_every_core_is_taken_where_it_is_faster(
    alone: float, expected: bool, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CL_JAX_CACHE", str(tmp_path))
    asked: list[tuple[int, bool]] = []

    def told(shard: plan.Shard, data: Data, programs: Programs, width: int, *, alone: bool = False) -> Measured:
        asked.append((width, alone))
        return Measured(width, times[alone] * width, 100, 0.0, alone)  # the narrower the better

    times = {False: 1.0, True: alone}
    monkeypatch.setattr(packing, "measure", told)
    programs = Programs(devices=jax.devices()[:2])
    shard, _ = packing.settled(shard_of(RUN, 16, 4), data, programs, share=np.inf)
    assert (shard.width, shard.alone) == (1, expected) and asked[-1] == (1, True)
    crew = crew_of(shard, data, programs)
    assert crew.packing.mesh.size == (1 if expected else 2)
    # A run that goes on at the recorded width may do as it likes: the devices change no result.
    again, _ = packing.settled(shard_of(RUN, 16, 1, fixed=True), data, programs, share=np.inf)
    assert again.alone == expected
    wider, _ = packing.settled(shard_of(RUN, 16, 2, fixed=True), data, programs, share=np.inf)
    assert not wider.alone


def test_methods_that_train_alike_are_one_program(data: Data) -> None:
    programs = Programs(devices=jax.devices()[:1])

    def address(run: Run) -> str:
        return packing.program_of(shard_of(run, 1, 1), data, programs)

    exact, empirical = (replace(RUN, {"methods": {"ewc": Ewc(kind=kind)}}) for kind in ("exact", "empirical"))
    assert address(exact) == address(empirical) != address(RUN)
    assert address(replace(RUN, {"methods": {"replay": Replay(capacity=20)}})) != address(RUN)


def test_state_parts(data: Data) -> None:
    weights = 4 * (64 * 8 + 8 + 8 * 10 + 10)
    parts = program.state_parts(replace(RUN, {"methods": {"ewc": Ewc()}}), data)
    assert parts == program.StateParts(weights, optimizer=0, methods={"ewc": 2 * weights + 4}, flag=1)


def test_the_oldest_programs_are_forgotten_first(tmp_path: Path) -> None:
    import os

    for number in range(4):
        (tmp_path / f"{number}").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{number}", (number, number))
    cache.forget_oldest(tmp_path, 250)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["2", "3"]
    cache.forget_oldest(tmp_path / "absent", 0)

"""Members over devices: the same bits on any number, nothing communicated, nothing computed for the diverged."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from cl_jax import flops, plan, sources, waves
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.experiment import Experiment, Mlp, Run, members
from cl_jax.experiment import sweep as entries_of
from cl_jax.methods import Ewc, Replay
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted
from tests.test_sweep import Silent

RUN = Run(
    stream=Permuted(num_tasks=2), model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.2), steps=40, batch_size=8,
    methods={"ewc": Ewc(), "replay": Replay(capacity=30)},
)  # fmt: skip
STRENGTHS = {"methods.ewc.strength": [1.0, 10.0, 100.0]}


@pytest.fixture(scope="module")
def data() -> Data:
    return split_source(sources.load("digits"), 0.1)


def crew(data: Data, programs: Programs, width: int, run: Run = RUN, axes: dict = STRENGTHS) -> waves.Crew:
    experiment = Experiment(name="test", description="", entries=entries_of("both", run, axes), seeds=(0, 1, 2))
    shard = plan.Shard(folder=Path(), members=tuple(members(experiment, {"digits": "sha"})), width=width)
    return waves.crew_of(shard, data, programs)


def two_tasks(crew: waves.Crew) -> tuple[waves.Host, np.ndarray]:
    parts, rows = [], []
    mustered = waves.muster(crew, np.arange(len(crew.members)))
    for wave in mustered:
        state = waves.first_states(crew, wave)
        for task in (0, 1):
            state = waves.train_task(crew, wave, state, task, Silent())
            state, _, row = crew.programs.end_task(wave, state, crew.data, task)
        parts.append(waves.to_host(wave, state))
        rows.append(waves.to_host(wave, row))
    return waves.gathered(mustered, parts, None, len(crew.members)), np.concatenate(rows)


@pytest.mark.parametrize("width", [1, 2])
def test_any_number_of_devices_gives_the_same_bits(width: int, data: Data) -> None:
    one = two_tasks(crew(data, Programs(devices=jax.devices()[:1]), width))
    eight = two_tasks(crew(data, Programs(devices=jax.devices()[:8]), width))
    jax.tree.map(np.testing.assert_array_equal, one, eight)
    assert len({row.tobytes() for row in one[1]}) == 9  # no two members are the same


def test_a_wave_fills_the_devices_that_its_members_need(data: Data) -> None:
    programs = Programs(devices=jax.devices()[:8])
    assert programs.packing(9, 1).mesh.size == 8 and programs.packing(9, 1).wave == 8
    assert programs.packing(9, 4).mesh.size == 3 and programs.packing(9, 4).wave == 12
    nine = crew(data, programs, 2)
    assert [wave.places.tolist() for wave in waves.muster(nine, np.arange(9))] == [list(range(9))]
    assert [wave.places.tolist() for wave in waves.muster(nine, np.array([1, 5]))] == [[1, 5]]


def test_the_step_communicates_nothing_and_holds_the_data_once_a_device(data: Data) -> None:
    nine = crew(data, Programs(devices=jax.devices()[:8]), 2)
    (wave,) = waves.muster(nine, np.arange(9))
    compiled = nine.programs.compiled_steps(wave, waves.first_states(nine, wave), nine.data, 40)
    assert not re.search(
        r"all-gather|all-reduce|all-to-all|collective|reduce-scatter|\bsend\b|\brecv\b", compiled.as_text()
    )
    assert len(nine.data.images.addressable_shards) == 5  # five devices of two
    assert {shard.data.nbytes for shard in nine.data.images.addressable_shards} == {data.images.nbytes}


def test_a_wave_that_has_diverged_is_trained_no_further(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = replace(RUN, {"optimizer.learning_rate": 1e6, "steps": 1000})
    three = crew(data, Programs(devices=jax.devices()[:1]), 4, wild, {})
    (wave,) = waves.muster(three, np.arange(3))
    state, calls, progress = waves.first_states(three, wave), [], Silent()
    steps = three.programs.steps
    monkeypatch.setattr(three.programs, "steps", lambda *a, **k: (calls.append(a[4]), steps(*a, **k))[1])
    state = waves.train_task(three, wave, state, 0, progress)
    assert np.asarray(state.diverged).all()
    assert calls == [0, 250]  # the second was under way when the first was seen to have diverged


def test_calls_of_slow_steps_are_short(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guess of ten seconds at most, and never one step: a loop of one round would be compiled as none."""
    run = replace(RUN, {"steps": 1000})
    a_step = flops.of_a_step(run, data)
    assert a_step == 8 * (4 * 64 * 8 + 6 * 8 * 10)  # of a batch of 8, see `cl_jax.flops`
    assert waves.call_steps(run, data, 64) == 250
    for seconds, expected in ((0.05, 125), (1.5, 5), (7.0, 2), (100.0, 2)):
        rate = 64 * a_step / seconds / jax.local_device_count()
        monkeypatch.setattr(waves, "guessed_rate", lambda rate=rate: rate)
        assert waves.call_steps(run, data, 64) == expected
    assert waves.call_steps(replace(run, {"steps": 7}), data, 64) == 7

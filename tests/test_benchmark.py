"""experiments/benchmark: its arithmetic against hand-computed cases, and its parts end to end at tiny sizes."""

import dataclasses
import importlib.util
import stat
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import flops
from cl_jax.errors import UserError
from cl_jax.fisher import diagonal_fisher
from cl_jax.models.mlp import mlp
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import (
    bench,
    by_hand,
    engine,
    figures,
    fishers,
    measure,
    notebook,
    overhead,
    peak,
    rows,
    scaling,
    steps,
    tables,
    targets,
    with_torch,
)
from experiments.benchmark.cases import Case, images

TINY = Case(model="mlp-8", batch_size=10, optimizer="sgd")
ROOT = Path(__file__).parents[1]

# Answers as experiments/benchmark/torch_worker.py does: every step takes 2 ms.
FAKE_TORCH = """#!{python}
import json, sys
print(json.dumps({{"version": "9.9"}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({{}} if "make" in asked else {{"seconds": 0.002 * asked["steps"]}}), flush=True)
"""


@pytest.fixture(scope="module")
def torch(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("torch") / "python"
    path.write_text(FAKE_TORCH.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    found = with_torch.Torch(str(path))
    yield found
    found.close()


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CL_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def tiny(torch: with_torch.Torch) -> bench.Bench:
    """A benchmark of milliseconds, whose peak is a small product."""
    return bench.Bench(
        quick=True, torch=torch, rounds=3, race_seconds=0.01, call_seconds=0.001, longest=1.0, widths=(1, 2),
        members=(1, 2), matmul=peak.square(32),
    )  # fmt: skip


def test_contestants_take_turns_and_ratios_are_formed_within_rounds() -> None:
    called: list[str] = []
    drift = iter([1.0, 1.0, 1.0, 1.0, 10.0, 20.0, 100.0, 200.0, 1000.0, 2000.0])  # the machine slows down all the time

    def contestant(name: str, units: int) -> measure.Contestant:
        def run() -> float:
            called.append(name)
            return next(drift)

        return measure.Contestant(name=name, run=run, units=units)

    warmed = [measure.warm(contestant("a", 1)), measure.warm(contestant("b", 2))]
    timings = measure.race(warmed, rounds=50, seconds=0.0)
    assert called == ["a", "a", "b", "b", *["a", "b"] * 3]
    assert timings["a"].seconds == (10.0, 100.0, 1000.0) and timings["b"].seconds == (10.0, 100.0, 1000.0)
    assert measure.ratio(timings["a"], timings["b"]) == measure.Spread(1.0, 1.0, 1.0, 3)
    assert timings["a"].rate(30.0).value == 0.3


def test_rounds_follow_the_time_given_and_compiling_is_the_first_call_less_a_usual_one() -> None:
    taken = iter([7.0, *[1.0] * 99])
    found = measure.warm(measure.Contestant(name="a", run=lambda: next(taken), units=4))
    timing = measure.race([found], rounds=9, seconds=5.0)["a"]
    assert timing.seconds == (0.25,) * 5 and found.compiling == 6.0
    assert timing.spread(1e3) == measure.Spread(250.0, 250.0, 250.0, 5)


def test_operations_of_an_mlp_are_those_of_the_formula() -> None:
    batch_size, d = 5, (28 * 28, 7, 6, 10)
    expected = batch_size * (4 * d[0] * d[1] + 6 * (d[1] * d[2] + d[2] * d[3]))
    assert flops.training_step(mlp((7, 6), 10), (28, 28, 1), batch_size) == expected


def test_operations_of_a_convolution_a_scan_and_a_loop() -> None:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    assert flops.count(jax.make_jaxpr(convolve)(x, kernel).jaxpr) == 2 * (2 * 6 * 6 * 4) * (3 * 3 * 3)

    def five(a: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, a), None), a, length=5)[0]

    assert flops.count(jax.make_jaxpr(five)(jnp.ones((4, 4))).jaxpr) == 5 * 2 * 4**3
    endless = jax.make_jaxpr(lambda a: jax.lax.while_loop(lambda c: c.sum() > 0, lambda c: c @ a, a))(jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="while loop"):
        flops.count(endless.jaxpr)


def test_steps_under_every_packing_beside_pytorch(tiny: bench.Bench) -> None:
    found = steps.measure(tiny, TINY)
    at_once = {one.members for one in rows.select(found, metric="ms per member-step", who="cl_jax")}
    assert {1, 2} <= at_once
    (torch,) = rows.select(found, metric="ms per member-step", who="PyTorch")
    assert torch.value == pytest.approx(2.0)
    rates = rows.select(found, metric="GFLOP/s", who="PyTorch")
    assert rates[0].value == pytest.approx(10 * (4 * 784 * 8 + 6 * (64 + 80)) / 0.002 / 1e9)


def test_the_choice_against_the_best_and_against_pytorch() -> None:
    times = {"1 x 1": 3.0, "2 x 1": 1.0, "2 x 2": 2.0, "PyTorch": 6.0}
    one, two, four = engine.Packing(1, 1), engine.Packing(2, 1), engine.Packing(2, 2)
    raced = steps.Raced(
        TINY, [one, two, four], {1: one, 3: four, 4: four, 8: engine.Packing(2, 4)},
        {name: measure.Timing((first, 2 * first, 3 * first)) for name, first in times.items()},
        measure.Timing((0.5, 1.0, 1.5)), 3,
    )  # fmt: skip

    def values(members: int) -> dict[str, float]:
        return {found.metric: found.value for found in steps.choice(raced, members)}

    assert values(1)["chosen / best"] == 1.0 and values(1)["PyTorch / cl_jax"] == 2.0
    assert values(1)["share of peak, chosen"] == 0.5 and values(1)["ms per member-step, chosen"] == 6000.0
    assert values(4)["chosen / best"] == 2.0 and values(4)["cl_jax / PyTorch"] == pytest.approx(1 / 3)
    # The fourth place of a wave is padding.
    assert values(3)["chosen / best"] == 2.0 and values(3)["cl_jax / PyTorch"] == pytest.approx(4 / 9)
    assert values(8) == {}  # not raced


def test_packings_fill_the_devices_as_the_engine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    found = engine.packings((1, 4, 16, 64), (1, 2, 4, 8, 16, 64))
    assert found == [(1, 1), (1, 64), (2, 1), (2, 2), (2, 4), (2, 8), (2, 16), (2, 32)]
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    assert engine.packings((1, 4), (1, 2, 4, 8)) == [(1, 1), (1, 2), (1, 4)]


def test_padding_of_the_last_wave_counts() -> None:
    timing = measure.Timing((1.0, 2.0))
    packing = engine.Packing(2, 1)
    assert steps._padded(timing, packing, 5).seconds == (1.2, 2.4)
    assert steps._padded(timing, packing, 4).seconds == (1.0, 2.0)


def test_what_takes_too_long_or_too_much_memory_is_left_out(tiny: bench.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {engine.Packing(2, 1)}
    assert set(steps.pack(dataclasses.replace(tiny, longest=0.0), TINY, chosen)) == chosen
    monkeypatch.setattr(steps, "memory_bytes", lambda: 0)
    assert steps.pack(tiny, TINY, chosen) == {}


def test_the_scan_by_hand_trains_as_the_engine_does(tiny: bench.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "TURN", 2)
    found = overhead.against(tiny, TINY)
    assert {one.who for one in found} == {"cl_jax", "scan by hand"}
    call = by_hand.scan_of(dataclasses.replace(TINY, batch_size=64), images(), 20)
    losses = [float(call()) for _ in range(10)]  # random labels: down to ln 10 at most
    assert losses[-1] < losses[0]


def test_every_method_is_timed_against_fine_tuning(tiny: bench.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {name: change for name, change in overhead.variants().items() if name in ("fine-tuning", "ewc")}
    monkeypatch.setattr(overhead, "variants", lambda: kept)
    found = rows.select(overhead.methods(tiny, TINY), metric="overhead %")
    assert [one.method for one in found] == ["fine-tuning", "ewc"] and found[0].value == 0.0


def test_textbook_fisher_equals_the_fast_one(tiny: bench.Bench) -> None:
    model = mlp((8,), 10)
    x = jax.random.normal(jax.random.key(1), (6, 5))
    params = model.init(jax.random.key(0), x)
    slow = by_hand.exact_fisher(model, params, x)
    fast = diagonal_fisher(jax.random.key(0), model, params, fishers.Batch(x, jnp.zeros((6,), jnp.int32)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), slow, fast)
    found = fishers.measure(tiny, "mlp-8")
    assert rows.select(found, metric="vmap(jacrev) / cl_jax")[0].value > 0


def test_a_process_of_its_own_has_its_devices_and_tells_its_memory() -> None:
    asked = {"devices": 1, "members": 2, "case": TINY.about, "steps": 2, "seconds": 0.0, "one_by_one": True}
    told = scaling.in_process(asked)
    weights = 784 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert told["state_bytes"] == 2 * (4 * weights + 1)
    assert 50e6 < told["peak_bytes"] < 5e9 and told["ms"]["rounds"] == 3
    with pytest.raises(RuntimeError, match="failed"):
        scaling.in_process({})


def rows_of(value: float) -> list[rows.Row]:
    about = {"model": "mlp-256", "batch_size": 10, "optimizer": "sgd", "members": 64}
    spread = measure.Spread(value, value - 0.5, value + 0.5, 9)
    return [rows.row("mlp", "PyTorch / cl_jax", spread, **about), rows.row("mlp", "chosen / best", 1.0, **about)]


def test_a_target_is_judged_by_the_worst_row() -> None:
    found = [*rows_of(3.0), *rows_of(2.7), rows.row("mlp", "chosen / best", 1.2, model="mlp-32", batch_size=10)]
    judged = {one.target.text: one for one in targets.verdicts(found)}
    faster = judged["MLP-256, batch 10, SGD, 64 members: PyTorch / cl_jax"]
    assert faster.found is not None and faster.found.value == 2.7 and not faster.met
    packing = judged["chosen packing / best packing, MLPs"]
    assert packing.found is not None and packing.found.model == "mlp-32" and not packing.met
    assert sum(one.found is None for one in judged.values()) == len(targets.TARGETS) - 2
    assert all(one.met for one in targets.verdicts(rows_of(2.8)) if one.found is not None)


def test_numbers_and_tables() -> None:
    shown = [tables.number(value) for value in (0.0, 0.00012, 0.0917, 1.2345, 45.67, 789.4, 999.9, 12345.6)]
    assert shown == ["0", "0.00012", "0.0917", "1.23", "45.7", "789", "1000", "12346"]
    made = [
        rows.row("s", metric, value, model=model)
        for model, metric, value in (("a", "x", 1), ("b", "x", 2), ("b", "y", 3))
    ]
    text = tables.pivot(made, {"model": lambda r: r.model}, lambda r: r.metric)
    assert text == "| model | x | y |\n| --- | --- | --- |\n| a | 1.00 |  |\n| b | 2.00 | 3.00 |\n"


def test_table_page_and_figures_say_what_was_measured_and_no_place(tmp_path: Path) -> None:
    found = [*rows_of(3.0), rows.row("mlp", "ms per member-step", 0.1, devices=1, width=4, members=4, model="mlp-256",
                                     batch_size=10, optimizer="sgd")]  # fmt: skip
    about = benchmark.environment(
        ["--quick", "--out", str(tmp_path), f"--torch-python={sys.executable}"], 0.1, 90, None
    )
    benchmark.write(tmp_path, found, about)
    assert rows.read_table(tmp_path) == found
    page = (tmp_path / "README.md").read_text()
    assert page.startswith(notebook.HEAD) and "benchmark --quick`, 1.5 minutes" in page
    assert "| MLP-256, batch 10, SGD, 64 members: PyTorch / cl_jax | >= 2.80 x | 3.00 [2.50, 3.50] x |" in page
    assert str(tmp_path) not in page and sys.executable not in page
    for name in ("packing", "beside_pytorch"):
        assert f"({name}.png)" in page and (tmp_path / f"{name}.png").stat().st_size > 1000
    assert figures.draw(tmp_path, []) == [] and notebook.readme([], about) == notebook.HEAD


def test_the_notebook_in_the_checkout_is_one_that_this_version_writes() -> None:
    assert (ROOT / "experiments" / "benchmark" / "README.md").read_text().startswith(notebook.HEAD)


def test_memory_of_more_members_beside_their_state() -> None:
    numbers = {("peak MB", 1): 400.0, ("peak MB", 64): 770.0, ("state MB", 1): 5.0, ("state MB", 64): 365.0}
    found = [
        rows.row("memory", metric, value, members=members, model="mlp-400", batch_size=128, optimizer="adam")
        for (metric, members), value in numbers.items()
    ]
    assert "mlp-400, b128, adam: 63 more members took 370 MB; their state is 360 MB." in notebook._scaling(found)


def test_mistakes_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--only", "mpl"], "unknown part 'mpl'; known: boundary, cnn, fisher, language, mlp,"),
        (["--torch-python", "no/python"], "--torch-python no/python: there is no such program"),
    ):
        with pytest.raises(SystemExit) as stopped:
            benchmark.main([*words, "--out", str(tmp_path / "out")])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed here")
def test_a_python_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="PyTorch cannot be measured: ModuleNotFoundError: No module named 'torch'"):
        with_torch.Torch(sys.executable)
    assert with_torch.find(None) is None

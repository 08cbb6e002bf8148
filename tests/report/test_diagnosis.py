"""The sections of diagnostics: means by hand, the law's R^2, and every figure drawn."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest

from cl_jax.diagnostics.table import KINDS
from cl_jax.report import diagnostic_charts, measured, write_page
from cl_jax.report.diagnosis import Lines, Points, law, views
from cl_jax.report.diagnostic_figures import write_figures
from cl_jax.report.diagnostic_words import CAPTIONS
from cl_jax.report.streams import read

LAYERS = ("dense_0", "dense_1", "dense_2")
ATTACK = "</script><script>alert(1)</script>"
BY_LAYER = ("fisher_overlap", "gradient_cosine", "distance", "fisher_distance")


def rows_of(member: dict, num_tasks: int, layers: tuple[str, ...]) -> list[dict]:
    """Something of every quantity, as the engine would write it."""
    level = member["seed"] + len(member["method"])
    rows = []

    def add(quantity: str, after: int, task: int | None = None, layer: str | None = None, at: float | None = None):
        value = 0.1 * level + 0.01 * after + (0 if task is None else 0.1 * task)
        depth = None if layer is None or layer not in layers else layers.index(layer)
        depth = 0 if layer is not None and depth is None else depth
        rows.append({**member, "after_task": after, "task": task, "quantity": quantity, "layer": layer,
                     "depth": depth, "at": at, "value": value})  # fmt: skip

    for after in range(num_tasks + 1):
        for layer in (None, *layers):
            add("weight_norm", after, layer=layer)
            for quantity in ("dead_units", "effective_rank") if layer not in (None, layers[0]) else ():
                add(quantity, after, layer=layer)
            for quantity in ("shared_weights", "weight_participation") if after > 1 else ():
                add(quantity, after, layer=layer)
            for task in range(1, after):
                for quantity in BY_LAYER:
                    add(quantity, after, task, layer)
                if layer not in (None, layers[0]):
                    add("feature_similarity", after, task, layer)
        for task in range(1, num_tasks + 1) if after > 1 else ():
            for quantity in ("base_kl", "lost", "gained"):
                add(quantity, after, task)
        for task in range(1, after + 1):
            add("forward_kl", after, task)
            for at in (0.0, 0.5, 1.0) if task < after else ():
                add("path_loss", after, task, at=at)
            for at in (0.0, 1.0, 2.0, 3.0) if after < num_tasks else ():
                add("accuracy_at_step", after, task, at=at)
            if after < num_tasks:
                add("minimum_accuracy", after, task)
        for layer in (None, "trainable"):
            add("parameters", after, layer=layer)
        for layer in (None, "parameters", "optimizer", f"methods.{member['method']}"):
            add("bytes", after, layer=layer)
        add("operations", after)
        add("seconds", after)
    return rows


def diagnostics_of(table: pa.Table, num_tasks: int, layers: tuple[str, ...] = LAYERS) -> pa.Table:
    members = {r["member"]: r for r in table.select(["member", "method", "stream", "seed"]).to_pylist()}
    rows = [row for member in members.values() for row in rows_of(member, num_tasks, layers)]
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in KINDS.items()})


@pytest.fixture(scope="module")
def found(table):
    (each,) = measured.read(diagnostics_of(table, 5), read(table))
    return each


def test_means_are_of_the_chosen_configuration_over_seeds(found):
    x, of = found.over("fisher_overlap", found.apart, found.layer == "dense_1")
    assert x.tolist() == [1, 2, 3, 4] and list(of) == list(found.stream.chosen)
    for method, spans in of.items():
        for place, apart in enumerate(x):
            each = [
                np.mean([0.1 * (seed + len(method)) + 0.01 * (task + apart) + 0.1 * task
                         for task in range(1, 6 - apart)])
                for seed in (0, 1, 2)
            ]  # fmt: skip
            np.testing.assert_allclose([spans.mean[place], spans.std[place]], [np.mean(each), np.std(each, ddof=1)])
        assert spans.n.tolist() == [3] * 4


def test_law_is_of_every_run(found, table):
    x, y, whose = law(found, new=True)
    assert len(x) == len(set(table["member"].to_pylist()))
    at = next(i for i, (configuration, _) in enumerate(whose) if configuration.method == "finetune")
    configuration, index = whose[at]
    matrix = configuration.matrix["test"][index]
    lost = np.mean([np.mean(matrix[i - 1, :i] - matrix[i, :i]) for i in range(1, 5)])
    level = configuration.seeds[index] + len("finetune")
    np.testing.assert_allclose(x[at], np.mean([0.1 * level + 0.01 * after + 0.1 * after for after in range(2, 6)]))
    np.testing.assert_allclose(y[at], lost)
    old, _, _ = law(found, new=False)
    each = [np.mean([0.1 * level + 0.01 * after + 0.1 * task for task in range(1, after)]) for after in range(2, 6)]
    np.testing.assert_allclose(old[at], np.mean(each))


def test_every_diagnostic_has_its_panels_and_words(found):
    panels = views(found)
    assert {f"diagnostic-{name}" for name in panels} | {"diagnostic-cost"} == set(CAPTIONS)
    for name, drawn in panels.items():
        for panel in drawn:
            if isinstance(panel, Lines):
                assert all(len(spans.mean) == len(panel.position) for spans in panel.of.values()), name
                assert panel.ticks is None or len(panel.ticks) == len(panel.position), name
            else:
                assert isinstance(panel, Points) and "R²" in panel.title
    assert panels["fisher_overlap"][0].ticks == list(LAYERS)
    assert panels["stability_gap"][0].ticks == ["0", "1", "2", "3"]


def test_deep_networks_are_shown_by_four_layers(table):
    layers = tuple(f"layer_{i}" for i in range(20))
    (deep,) = measured.read(diagnostics_of(table, 5, layers), read(table))
    panels = views(deep)
    assert len(panels["representation_drift"]) == 4 and len(panels["fisher_overlap"][0].ticks) == 20
    assert [panel.title.split()[2] for panel in panels["representation_drift"]][::3] == ["layer_1", "layer_19"]


def test_costs_name_every_part_of_every_method(found):
    headers, lines = diagnostic_charts.costs(found)
    assert headers[:4] == ["method", "parameters", "trainable", "state"] and headers[-2:] == [
        "operations",
        "seconds a task",
    ]
    assert {"methods.ewc", "methods.replay", "optimizer"} <= set(headers) and "parameters" not in headers[4:]
    by_method = {line[0]: dict(zip(headers, line, strict=True)) for line in lines}
    assert by_method["ewc"]["methods.replay"] == "-" != by_method["ewc"]["methods.ewc"]
    assert sorted(line[-2] for line in lines)[0] == "1.00 x"


def test_the_page_has_a_section_for_each(make_table, tmp_path):
    table = make_table({ATTACK: [{"s": 1.0}, {"s": 2.0}], "finetune": [{}]}, num_tasks=3)
    environment, experiment = {"versions": {}}, {"name": "x", "description": ""}
    page = tmp_path / "report.html"
    write_page(table, environment, experiment, page, diagnostics=diagnostics_of(table, 3))
    text = page.read_text(encoding="utf-8")
    for title, _ in CAPTIONS.values():
        assert f"<h3>{title}</h3>" in text
    assert ATTACK not in text
    (data,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL)
    charts = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(charts) == text.count('data-figure="')
    write_page(table, environment, experiment, page)
    assert "diagnostic-" not in page.read_text(encoding="utf-8")


@pytest.mark.slow  # 27 files
def test_every_figure_is_written(found, tmp_path):
    paths = write_figures(found, tmp_path, "name")
    assert len(paths) == 3 * (len(CAPTIONS) - 1) and sorted(paths) == sorted(tmp_path.iterdir())
    assert write_figures(None, tmp_path, "none") == []


def test_a_stream_that_measured_nothing(table):
    assert measured.read(None, read(table)) == [None] and diagnostic_charts.figures(None) == []
    assert diagnostic_charts.costs(None) is None
    other = diagnostics_of(table, 5)
    other = other.set_column(2, "stream", pa.array(["other"] * other.num_rows))
    assert measured.read(other, read(table)) == [None]

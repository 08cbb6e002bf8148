"""Selection protocols in the report: hand-made tables whose every number is known."""

import csv
import io
import json
import re

import numpy as np
import pyarrow as pa
import pytest

from cl_jax import metrics
from cl_jax.errors import UserError
from cl_jax.report import render_table, summary, write_page
from cl_jax.report.comparison import compare, sentences
from cl_jax.report.page import library
from cl_jax.report.panels import front, matrix, plane, seen, strength_panels
from cl_jax.report.streams import read, reselected
from cl_jax.selection import parse

STRENGTH = "methods.ewc.strength"
# Accuracy [T + 1, T] by strength, validation and test alike but for the seed.
CURVES = {
    1.0: [[0.1, 0.1, 0.1], [0.9, 0.2, 0.1], [0.6, 0.8, 0.2], [0.2, 0.3, 0.7]],  # best after task 1
    10.0: [[0.1, 0.1, 0.1], [0.8, 0.2, 0.1], [0.8, 0.8, 0.2], [0.5, 0.5, 0.5]],  # best after task 2
    100.0: [[0.1, 0.1, 0.1], [0.5, 0.2, 0.1], [0.5, 0.6, 0.2], [0.6, 0.6, 0.6]],  # best after task 3
    None: [[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.3, 0.9, 0.1], [0.2, 0.2, 0.9]],
}
METHODS = {"finetune": [{}], "ewc": [{STRENGTH: strength} for strength in (1.0, 10.0, 100.0)]}


def curve(method, config, num_tasks, seed):
    return np.array(CURVES[config.get(STRENGTH)]) + 0.01 * seed


def table_of(make_table, **options):
    return make_table(METHODS, num_tasks=3, **({"accuracy": curve} | options))


def rows_of(table, name):
    return {row.method: row for row in summary(table, protocol=parse(name))}


@pytest.mark.parametrize(
    ("name", "strength", "tasks", "seeds"),
    [
        ("all", 100.0, slice(0, 3), (0, 1, 2)),
        ("first:1", 1.0, slice(1, 3), (0, 1, 2)),
        ("first:2", 10.0, slice(2, 3), (0, 1, 2)),
        ("seed:1", 100.0, slice(0, 3), (0, 2)),
    ],
)
def test_numbers_are_of_the_reported_seeds_and_tasks(make_table, name, strength, tasks, seeds):
    table = table_of(make_table)
    rows = rows_of(table, name)
    ewc = rows["ewc"]
    assert ewc.chosen == {"strength": strength} and ewc.num_seeds == ewc.num_complete == len(seeds)
    full = np.array([curve("ewc", {STRENGTH: strength}, 3, seed) for seed in seeds])
    part, initial = full[:, 1:][:, tasks, tasks], full[:, 0, tasks]
    for metric in ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer"):
        values = getattr(metrics, metric)(part)
        np.testing.assert_allclose(getattr(ewc, metric).mean, values.mean(), rtol=1e-12)
        np.testing.assert_allclose(getattr(ewc, metric).sem, values.std(ddof=1) / len(seeds) ** 0.5, rtol=1e-9)
    np.testing.assert_allclose(ewc.forward_transfer.mean, metrics.forward_transfer(part, initial).mean(), rtol=1e-12)
    # The baseline is measured on the same seeds and tasks.
    ends = np.array(CURVES[strength])[3, tasks].mean() - np.array(CURVES[None])[3, tasks].mean()
    assert ewc.difference.n == len(seeds)
    np.testing.assert_allclose(ewc.difference.mean, ends, rtol=1e-9)
    named = zip(*(table[column].to_pylist() for column in ("member", "seed", f"config.{STRENGTH}")), strict=True)
    assert set(ewc.members) == {m for m, s, value in named if value == strength and s in seeds}


def test_first_tasks_by_hand(make_table):
    row = rows_of(table_of(make_table, seeds=(0,)), "first:1")["ewc"]
    # Strength 1, tasks 2 and 3: rows (0.8, 0.2) and (0.3, 0.7).
    assert row.first_task == 2 and row.num_reported == 2
    np.testing.assert_allclose(row.average_accuracy.mean, 0.5)
    np.testing.assert_allclose(row.forgetting.mean, 0.5)
    np.testing.assert_allclose(row.learning_accuracy.mean, 0.75)
    np.testing.assert_allclose(row.average_incremental_accuracy.mean, (0.8 + 0.5) / 2)
    np.testing.assert_allclose(row.forward_transfer.mean, 0.2 - 0.1)


def test_per_task_takes_each_row_from_its_best(make_table):
    table = table_of(make_table)
    (stream,) = read(table, protocol=parse("per-task"))
    ewc = stream.chosen["ewc"]
    rows = np.array([CURVES[1.0][1], CURVES[10.0][2], CURVES[100.0][3]])
    np.testing.assert_allclose(ewc.matrix["test"], rows + 0.01 * np.arange(3)[:, None, None])
    np.testing.assert_allclose(ewc.initial["test"], np.full((3, 3), 0.1) + 0.01 * np.arange(3)[:, None])
    row = rows_of(table, "per-task")["ewc"]
    np.testing.assert_allclose(row.average_accuracy.mean, 0.6 + 0.01)
    np.testing.assert_allclose(row.learning_accuracy.mean, (0.9 + 0.8 + 0.6) / 3 + 0.01)
    assert row.num_seeds == row.num_complete == 3 and len(set(row.members)) == len(row.members) == 9
    assert row.chosen == {"strength": (1.0, 10.0, 100.0)} and row.at_edge == ["strength"]  # ends at 100
    text = render_table([row])
    assert "strength 1 to 100*" in text
    assert "chosen strength 1 after task 1, strength 10 after task 2, strength 100 after task 3" in " ".join(
        text.split()
    )
    # The figures: a point of its own that is on no front, a bar at each value that was chosen.
    points = [point for point in plane(stream) if point.method == "ewc"]
    assert [point.chosen for point in points] == [False, False, False, True] and points[-1].together
    assert len(front(points)) == 3 and not any(point.together for point in front(points))
    (panel,) = strength_panels(stream)
    assert panel.chosen == [0, 1, 2]


def test_per_task_is_one_configuration_where_it_is_the_same(make_table):
    table = make_table({"ewc": METHODS["ewc"][:1], "finetune": [{}]}, num_tasks=3, accuracy=curve)
    (stream,) = read(table, protocol=parse("per-task"))
    assert stream.chosen["ewc"] is stream.of("ewc")[0]


def test_per_task_chooses_for_each_seed(make_table):
    def accuracy(method, config, num_tasks, seed):
        return curve(method, config, num_tasks, 0) + (0.5 if config.get(STRENGTH) == 1.0 and seed == 2 else 0.0)

    table = table_of(make_table, accuracy=accuracy)
    (stream,) = read(table, protocol=parse("per-task"))
    assert stream.choices["ewc"].configuration.tolist() == [[0, 1, 2], [0, 1, 2], [0, 0, 0]]
    np.testing.assert_allclose(stream.chosen["ewc"].matrix["test"][2], np.array(CURVES[1.0])[1:] + 0.5)
    text = " ".join(render_table(summary(table, protocol=parse("per-task"))).split())
    assert "chosen strength 1 after task 1, strength 1 or 10 after task 2, strength 1 or 100 after task 3" in text


def test_per_task_of_seeds_that_not_every_configuration_has(make_table):
    table = table_of(make_table)
    kept = (np.asarray(table["seed"]) < 2) | (np.asarray(table[f"config.{STRENGTH}"].to_pylist(), float) != 10.0)
    (stream,) = read(table.filter(pa.array(kept)), protocol=parse("per-task"))
    assert stream.choices["ewc"].configuration.tolist() == [[0, 1, 2], [0, 1, 2], [0, 0, 2]]
    assert stream.chosen["ewc"].complete.all()


def stopped_by(ends):
    return lambda method, config, seed: ends.get(config.get(STRENGTH))


@pytest.mark.parametrize("name", ["all", "first:1", "seed:0", "per-task"])
def test_stopped_configurations_are_never_chosen_and_said_to_be(make_table, name):
    table = table_of(make_table, stopped=stopped_by({1.0: 1, 100.0: 2}))
    row = rows_of(table, name)["ewc"]
    assert row.chosen == {"strength": 10.0} and row.num_stopped == 2 and row.num_unfinished == 0
    assert row.tried == {"strength": [1.0, 10.0, 100.0]} and row.at_edge == []
    assert row.warnings == ["2 of 3 configurations stopped early (1 after task 1, 1 after task 2), never chosen"]
    for format in ("terminal", "markdown", "latex", "csv"):
        said = " ".join(render_table([row], format).replace("\\", "").split())
        assert "2 of 3 configurations stopped early (1 after task 1, 1 after task 2)" in said, format


def test_one_task_after_which_all_were_stopped_is_said_once(make_table):
    row = rows_of(table_of(make_table, stopped=stopped_by({1.0: 1, 10.0: 1})), "all")["ewc"]
    assert row.warnings == ["2 of 3 configurations stopped early (after task 1), never chosen"]


def test_a_stopped_member_enters_no_final_number(make_table):
    # One seed of the best configuration was stopped: its finished seeds are no way to be chosen.
    def stopped(method, config, seed):
        return 2 if config.get(STRENGTH) == 100.0 and seed == 0 else None

    table = table_of(make_table, stopped=stopped)
    row = rows_of(table, "all")["ewc"]
    assert row.chosen == {"strength": 10.0} and row.average_accuracy.n == 3
    (stream,) = read(table)
    best = stream.of("ewc")[2]
    assert best.stopped.tolist() == [True, False, False] and not best.unfinished.any()
    assert best.scores("average_accuracy").shape == (2,)


@pytest.mark.parametrize("name", ["all", "first:1", "seed:0", "per-task"])
def test_a_method_of_which_all_was_stopped_has_no_numbers(make_table, tmp_path, name):
    ends = {1.0: 1, 10.0: 2, 100.0: 2}
    table = table_of(make_table, stopped=stopped_by(ends))
    rows = rows_of(table, name)
    ewc = rows["ewc"]
    assert ewc.chosen == {} and ewc.members == [] and ewc.num_complete == ewc.num_seeds == 0
    assert np.isnan(ewc.average_accuracy.mean) and ewc.difference is None and ewc.at_edge == []
    assert "3 of 3 configurations stopped early (1 after task 1, 2 after task 2), never chosen" in ewc.warnings
    assert "none is left to report" in ewc.warnings
    text = render_table(list(rows.values()))
    assert re.search(r"ewc +0 +- ", text)
    own(write(table, name, tmp_path))
    assert compare(read(table, protocol=parse(name))[0]) is None


def test_stopped_and_unfinished_are_told_apart(make_table):
    table = table_of(
        make_table,
        stopped=stopped_by({1.0: 1}),
        unfinished=lambda method, config, seed: 2 if config.get(STRENGTH) == 10.0 and seed == 0 else None,
    )
    row = rows_of(table, "all")["ewc"]
    assert row.warnings == [
        "1 of 2 other configurations with an unfinished seed",
        "1 of 3 configurations stopped early (after task 1), never chosen",
    ]


def test_nothing_to_choose_by_is_said(make_table):
    # A penalty does nothing before its first boundary.
    def accuracy(method, config, num_tasks, seed):
        values = curve(method, config, num_tasks, seed)
        values[:2] = CURVES[1.0][:2]
        return values

    rows = rows_of(table_of(make_table, accuracy=accuracy), "first:1")
    assert rows["ewc"].warnings == [
        "all 3 finished configurations have the same validation accuracy, the first is shown"
    ]
    assert rows["ewc"].chosen == {"strength": 1.0} and rows["finetune"].warnings == []


@pytest.mark.parametrize("name", ["all", "first:2", "seed:1", "per-task"])
def test_tables_and_page_name_the_protocol(make_table, tmp_path, name):
    table, protocol = table_of(make_table), parse(name)
    rows = summary(table, protocol=protocol)
    for format in ("terminal", "markdown", "latex", "csv"):
        assert protocol.words in " ".join(render_table(rows, format).split()), format
    page = own(write(table, name, tmp_path))
    assert page.count(protocol.words) >= 2 and f"--select {name}" in page
    (line,) = [each for each in csv.DictReader(io.StringIO(render_table(rows, "csv"))) if each["method"] == "ewc"]
    assert line["first_task"] == {"first:2": "3"}.get(name, "1") and line["stopped_configurations"] == "0"


def write(table, name, folder):
    path = folder / "report.html"
    write_page(table, {"device": "cpu"}, {"name": "Name", "description": ""}, path, protocol=parse(name))
    return path


def own(path) -> str:
    """The page without its library; its data is JSON without NaN."""
    page = path.read_text(encoding="utf-8").replace(library(), "")
    (data,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    json.loads(data, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    return page


def test_what_is_not_reported_is_not_in_the_words(make_table):
    text = " ".join(render_table(summary(table_of(make_table), protocol=parse("first:1"))).split())
    assert "over tasks 2 to 3, at the end" in text and "accuracy over tasks 2 to 3 ends at 56.0 %" in text
    assert "all tasks" not in text and "Unlike in the paper, the runs have trained on task 1 too." in text
    text = " ".join(render_table(summary(table_of(make_table), protocol=parse("first:2"))).split())
    assert "91.0 % on task 3" in text and "forgetting" not in text
    assert "What is shown of each method was chosen by" in text


def test_figures_show_reported_seeds_and_leave_out_tasks_in_means_alone(make_table):
    (stream,) = read(table_of(make_table), protocol=parse("first:1"))
    np.testing.assert_allclose(seen(stream.chosen["ewc"]).mean, 100 * np.array([np.nan, 0.81, 0.51]))
    assert np.isfinite(matrix(stream.chosen["ewc"]).mean).all()
    (stream,) = read(table_of(make_table), protocol=parse("seed:1"))
    np.testing.assert_array_equal(matrix(stream.chosen["ewc"]).n, np.full((3, 3), 2))


def test_a_stream_that_does_not_allow_the_protocol_is_named(make_table):
    table = pa.concat_tables([table_of(make_table), make_table(METHODS, stream="short/domain", num_tasks=2)])
    assert [stream.num_tasks for stream in read(table, protocol=parse("first:1"))] == [3, 2]
    with pytest.raises(UserError, match=r"^short/domain: --select first:2: .* K may be 1 to 1$"):
        read(table, protocol=parse("first:2"))
    with pytest.raises(UserError, match="no run has seed 3; S may be one of 0, 1, 2"):
        read(table, protocol=parse("seed:3"))


def test_comparison_by_hand(make_table):
    def test(method, config, num_tasks, seed):
        # On test strength 10 ends 0.06 higher, at 0.56: still below strength 100. At task 3 strength 1 is best.
        return curve(method, config, num_tasks, seed) + (0.06 if config.get(STRENGTH) == 10.0 else 0.0)

    (stream,) = read(table_of(make_table, test=test))
    comparison = compare(stream)
    assert [protocol.name for protocol in comparison.protocols] == ["all", "first:1", "seed:0", "per-task"]
    assert comparison.measured_on == [
        "all tasks, 3 seeds", "tasks 2 to 3, 3 seeds", "all tasks, 2 seeds", "all tasks, 3 seeds",
    ]  # fmt: skip
    assert list(comparison.methods) == ["ewc"]  # there is nothing to choose in fine-tuning
    outcomes = comparison.methods["ewc"]
    assert [each.chosen for each in outcomes] == [f"strength {value}" for value in (100, 1, 100, 100, 100)]
    np.testing.assert_allclose([each.accuracy.mean for each in outcomes], [0.61, 0.51, 0.615, 0.61, 0.61])
    np.testing.assert_allclose([each.gap for each in outcomes], [0, 0.6 - 0.5, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(comparison.gaps, [0, 0.1, 0, 0], atol=1e-12)
    assert sentences(comparison) == [
        "The protocols choose differently for 1 of 1 methods with a choice: ewc.",
        "Choosing on the test split instead of validation would have shown no more.",
    ]


def test_comparison_leaves_out_what_was_stopped(make_table):
    (stream,) = read(table_of(make_table, stopped=stopped_by({100.0: 2})))
    comparison = compare(stream)
    assert [each.chosen for each in comparison.methods["ewc"]] == [f"strength {value}" for value in (10, 1, 10, 10, 10)]
    assert sentences(comparison)[-1] == "Configurations stopped early (1) are in no column, nor best on test."


def test_comparison_shows_what_choosing_on_test_overstates(make_table, tmp_path):
    def test(method, config, num_tasks, seed):
        return curve(method, config, num_tasks, seed) + (0.3 if config.get(STRENGTH) == 10.0 else 0.0)

    table = table_of(make_table, test=test)
    (stream,) = read(table)
    *_, best = compare(stream).methods["ewc"]
    assert best.chosen == "strength 10" and compare(stream).methods["ewc"][0].chosen == "strength 100"
    np.testing.assert_allclose(compare(stream).gaps[0], 0.8 - 0.6)
    assert "would have shown 20.0 points more on average, and 20.0 for ewc" in sentences(compare(stream))[1]
    page = own(write(table, "all", tmp_path))
    section = page.partition("What the choice of selection protocol changes")[2].partition("</table>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", section)
    assert cells[7:12] == [
        '61.0 ± 0.6<br><span class="soft">strength 100</span>', '51.0 ± 0.6<br><span class="flag">strength 1</span>',
        '61.5 ± 0.5<br><span class="soft">strength 100</span>', '61.0 ± 0.6<br><span class="soft">strength 100</span>',
        '81.0 ± 0.6<br><span class="flag">strength 10</span>',
    ]  # fmt: skip
    assert cells[13:] == ["20.0", "30.0", "20.0", "20.0", "-"]


def test_another_protocol_on_what_was_read_is_that_protocol(make_table):
    table = table_of(make_table)
    for first in ("seed:1", "first:2", "per-task"):
        (stream,) = read(table, protocol=parse(first))
        (wanted,) = read(table, protocol=parse("seed:0"))
        found = reselected(stream, parse("seed:0"))
        assert list(found.chosen) == list(wanted.chosen)
        for method, each in wanted.chosen.items():
            np.testing.assert_array_equal(found.chosen[method].scores("forgetting"), each.scores("forgetting"))

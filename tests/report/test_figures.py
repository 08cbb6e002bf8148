"""What the figures are drawn from, and that every format of every figure is written."""

import math

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from cl_jax.report import drawing, panels, styles, traces
from cl_jax.report.drawing import FORMATS
from cl_jax.report.figures import write_figures
from cl_jax.report.kinds import ACCURACY
from cl_jax.report.streams import read

FIRST_BYTES = {"svg": b"<?xml", "pdf": b"%PDF-", "png": b"\x89PNG"}


def test_spans_leave_out_what_is_missing():
    values = np.array([[0.1, np.nan, np.nan], [0.3, 0.5, np.nan]])
    mean, std, n = panels.spans(values)
    np.testing.assert_array_equal(n, [2, 1, 0])
    np.testing.assert_allclose(mean, [20, 50, np.nan])
    np.testing.assert_allclose(std, [100 * math.sqrt(0.02), np.nan, np.nan])


def test_axis_positions():
    position, logarithmic = panels.axis_positions([0.0, 0.1, 10.0])
    np.testing.assert_allclose(position, [-2, -1, 1])
    assert logarithmic
    assert panels.axis_positions([float(np.float32(3e-5)), float(np.float32(3e-4))])[1]  # a decade, rounded
    for values in ([1.0, 2.0, 5.0], [-1.0, 0.0, 100.0], [0.0, 0.0]):
        position, logarithmic = panels.axis_positions(values)
        np.testing.assert_array_equal(position, values)
        assert not logarithmic


def test_styles_are_distinct(make_table):
    (stream,) = read(make_table({f"m{i}": [{}] for i in range(30)} | {"finetune": [{}]}, num_tasks=2, seeds=(0,)))
    looks = styles.method_styles(stream)
    assert list(looks) == list(stream.chosen)
    assert len({(style.colour, style.marker, style.dash) for style in looks.values()}) == 31


def test_a_method_looks_the_same_in_every_stream(make_table):
    one = make_table({"finetune": [{}], "ewc": [{}], "si": [{}]}, stream="a/domain")
    other = make_table({"finetune": [{}], "si": [{}]}, stream="b/domain")
    first, second = map(styles.method_styles, read(pa.concat_tables([one, other])))
    assert first["si"] == second["si"]


def test_ticks_are_short():
    values = {1e4: "1e4", 1000.0: "1000", 3e-4: "3e-4", 0.001: "0.001", 12345.0: "12345", 0.0: "0", 200: "200"}
    assert {value: panels.tick(value) for value in values} == values
    assert panels.task_ticks(5) == [1, 2, 3, 4, 5] and panels.task_ticks(20) == [1, 4, 8, 12, 16, 20]
    assert panels.thinned(np.array([0.0, 1.0, 1.01, 2.0]), 3) == [0, 1, 3]


def test_hover_texts_give_error_and_seeds():
    spans = panels.spans(np.array([[0.5, 0.5], [0.6, np.nan]]))
    assert spans.texts() == ["55.0 ± 5.0 %, n = 2", "50.0 %, n = 1"]


def test_future_classes_are_not_shown(make_table):
    for label, known in (("digits/class", False), ("digits/domain", True)):
        (stream,) = read(make_table({"ewc": [{}]}, stream=label, num_tasks=3))
        mean = panels.matrix(stream.chosen["ewc"]).mean
        assert np.isfinite(mean[np.tri(3, dtype=bool)]).all()
        assert (np.isfinite(mean[~np.tri(3, dtype=bool)]) == known).all()
        before = panels.over_training(stream.chosen["ewc"]).mean
        np.testing.assert_array_equal(np.isfinite(before[0]), [known] * 3)


def test_panels_fill_their_rows():
    assert [panels.num_columns(count) for count in (1, 4, 6, 7, 10, 15)] == [4, 4, 3, 4, 5, 5]


def test_strength_panel_marks_the_chosen_value(table):
    (stream,) = read(table)
    ewc = next(panel for panel in panels.strength_panels(stream) if panel.method == "ewc")
    assert (
        ewc.ticks == ["0.1", "1", "10", "100", "1000"]
        and [ewc.ticks[i] for i in ewc.chosen] == ["10"]
        and ewc.logarithmic
    )
    chosen = stream.chosen["ewc"].scores("average_accuracy")
    np.testing.assert_allclose(ewc.metrics["average accuracy"].mean[2], 100 * chosen.mean())
    np.testing.assert_allclose(ewc.metrics["average accuracy"].std[2], 100 * chosen.std(ddof=1))


def test_strength_panel_takes_the_best_of_the_other_hyper_parameters(make_table):
    levels = {(1.0, "a"): 0.5, (1.0, "b"): 0.7, (2.0, "a"): 0.6, (2.0, "b"): 0.4}

    def accuracy(method, config, num_tasks, seed):
        return np.full((num_tasks + 1, num_tasks), levels[config["strength"], config["kind"]])

    grid = [{"strength": strength, "kind": kind} for strength, kind in levels]
    (stream,) = read(make_table({"ewc": grid}, accuracy=accuracy))
    (panel,) = panels.strength_panels(stream)  # words have no axis
    np.testing.assert_allclose(panel.metrics["average accuracy"].mean, [70, 60])


def test_every_configuration_is_in_the_plane(table):
    (stream,) = read(table)
    points = panels.plane(stream)
    assert len(points) == len(stream.configurations) and sum(point.chosen for point in points) == 4


def test_front_is_of_much_learning_and_little_forgetting():
    def point(name: str, learning: float, forgetting: float) -> panels.Point:
        spans = (panels.Spans(np.array(value), np.array(0.0), np.array(2)) for value in (learning, forgetting))
        return panels.Point(name, "", *spans, chosen=False, diverged=False)

    points = [point("learns", 90, 30), point("worse", 80, 30), point("keeps", 70, 5), point("between", 85, 10)]
    assert [each.method for each in panels.front(points)] == ["keeps", "between", "learns"]


@pytest.mark.parametrize("kind", ["single", "odd"])
def test_every_format_is_written(kind, make_table, tmp_path):
    odd = {"_$\\frac{$ <b> \u732b \U0001f600 %": [{"s": value} for value in (0.0, 1.0)], "finetune": [{}]}
    makers = {
        "single": lambda: make_table({"ewc": [{}]}, seeds=(0,), num_tasks=1),
        "odd": lambda: make_table(odd, num_tasks=2, unfinished=lambda method, *_: 1 if method == "finetune" else None),
    }
    (stream,) = read(makers[kind]())
    paths = write_figures(stream, tmp_path, "name")
    assert len(paths) == {"single": 6, "odd": 15}[kind]
    assert sorted(paths) == sorted(tmp_path.iterdir())
    for path in paths:
        assert path.suffix[1:] in FORMATS and path.read_bytes().startswith(FIRST_BYTES[path.suffix[1:]])


def test_figures_are_reproducible(make_table, tmp_path):
    (stream,) = read(make_table({"ewc": [{}]}, seeds=(0,), num_tasks=1))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_figures(stream, tmp_path / folder, "name")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("number", [3, 40, 200])
def test_long_lines_have_few_markers(number: int) -> None:
    spans = panels.Spans(np.arange(number, dtype=float), np.full(number, np.nan), np.ones(number, int))
    axis = Figure().add_subplot()
    drawing.line(axis, np.arange(number), spans, "#000000")
    shown = len(range(0, number, axis.lines[0].get_markevery()))
    assert shown == number if number <= panels.MOST_MARKERS else number / 10 < shown <= panels.MOST_MARKERS
    trace = traces.line(
        np.arange(number), spans, styles.Style("#000000", "circle", "solid"), "", ["x"] * number, ACCURACY
    )
    assert trace["mode"] == ("lines+markers" if number <= panels.MOST_MARKERS else "lines")

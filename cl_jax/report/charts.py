"""The figures of one stream as plotly.js traces: plain data that the page draws. Labels are escaped here."""

from typing import NamedTuple

import numpy as np

from cl_jax.report import panels, styles, traces
from cl_jax.report.cells import printable
from cl_jax.report.configurations import BASELINE, UPPER_BOUND
from cl_jax.report.streams import Stream
from cl_jax.report.styles import GREY, METRIC_COLOURS, Style
from cl_jax.report.traces import SHADE, Json, escape


class Chart(NamedTuple):
    """One drawing: a title (plain text), and what plotly.js needs."""

    title: str
    data: list[Json]
    layout: Json


class Figure(NamedTuple):
    """Charts under one heading, with the colours they share: (kind of mark, CSS colour, text)."""

    kind: str
    charts: list[Chart]
    legend: list[tuple[str, str, str]]


def figures(stream: Stream) -> list[Figure]:
    """The figures that the results allow, in reading order."""
    drawn = [_average_accuracy(stream), _plane(stream), _strength(stream), _matrices(stream), _over_training(stream)]
    return [figure for figure in drawn if figure.charts]


def _average_accuracy(stream: Stream) -> Figure:
    if stream.num_tasks == 1:
        return Figure("average-accuracy", [], [])
    x = list(range(1, stream.num_tasks + 1))
    data = []
    for method, style in styles.method_styles(stream).items():
        spans, name = panels.seen(stream.chosen[method]), escape(method)
        if len(stream.chosen) <= panels.MAX_BANDS:
            data += traces.band(x, spans, style, name)
        data.append(traces.line(x, spans, style, name, [f"after task {task}" for task in x]))
    layout = traces.layout("tasks trained", "accuracy on the tasks seen so far (%)", 400, _legend_rows(stream))
    layout["xaxis"] |= {"tickvals": panels.task_ticks(stream.num_tasks), "range": [0.8, stream.num_tasks + 0.2]}
    return Figure("average-accuracy", [Chart("", data, layout)], [])


def _plane(stream: Stream) -> Figure:
    points = panels.plane(stream)
    if not points:
        return Figure("plane", [], [])
    best = panels.front([point for point in points if point.method != UPPER_BOUND])
    data: list[Json] = []
    if len(best) > 1:
        data.append(traces.path(best) | {"line": {"color": SHADE, "width": 9}, "name": "Pareto front"})
    # The bounds come last: other points must not hide them.
    for method, style in sorted(styles.method_styles(stream).items(), key=lambda item: item[1].colour == GREY):
        mine, name = [point for point in points if point.method == method], escape(method)
        if mine:
            group = {"legendgroup": name, "showlegend": False}
            line = {"color": style.colour, "width": 1.2}
            data.append(traces.path(panels.front(mine)) | group | {"line": line})
            data.append(traces.points(mine, style) | group)
            data.append(traces.entry(name, style))
    if any(point.diverged for point in points):
        data.append(traces.entry("a seed diverged", Style(GREY, "circle-open", "solid"), {"line": {"width": 2}}))
    legend_rows = _legend_rows(stream)
    layout = traces.layout("learning accuracy (%): learns more →", "forgetting (%): forgets less →", 460, legend_rows)
    layout["yaxis"] |= {"autorange": "reversed"}
    return Figure("plane", [Chart("", data, layout)], [])


def _strength(stream: Stream) -> Figure:
    found = panels.strength_panels(stream)
    bounds = {name: dash for name, dash in ((BASELINE, "dot"), (UPPER_BOUND, "dash")) if name in stream.chosen}
    charts = []
    for panel in found:
        data = []
        for metric, spans in panel.metrics.items():
            style = Style(METRIC_COLOURS[metric], "circle", "solid")
            at = [f"at {escape(panel.name)} {tick}" for tick in panel.ticks]
            data += traces.band(panel.position, spans, style, metric)
            data.append(traces.line(panel.position, spans, style, metric, at))
        if panel.diverged.any():
            data.append(traces.crosses(panel.position[panel.diverged]))
        layout = traces.layout(escape(panel.axis_name), "percent", height=240)
        kept = panels.thinned(panel.position)
        ticks = {"tickvals": panel.position[kept].tolist(), "ticktext": [panel.ticks[index] for index in kept]}
        layout["xaxis"] |= ticks | {"tickangle": 0}
        layout["yaxis"] |= {"range": [panels.floor(panel), 102]}
        layout["shapes"] = [
            {**traces.rule("y", panels.reference(stream, name)), "line": {"color": GREY, "width": 1.3, "dash": dash}}
            for name, dash in bounds.items()
            if not np.isnan(panels.reference(stream, name))
        ]
        for chosen in panel.chosen:
            shape = traces.rule("x", float(panel.position[chosen]))
            layout["shapes"].append(shape | {"layer": "below", "line": {"color": SHADE, "width": 8}})
        charts.append(Chart(printable(panel.method), data, layout))
    legend = [("line", colour, metric) for metric, colour in METRIC_COLOURS.items()]
    legend += [(dash, GREY, f"average accuracy of {name}") for name, dash in bounds.items()]
    legend += [("bar", SHADE, "value chosen")]
    legend += [("cross", "", "a seed diverged")] * any(panel.diverged.any() for panel in found)
    return Figure("strength", charts, legend)


def _matrices(stream: Stream) -> Figure:
    tasks = list(range(1, stream.num_tasks + 1))
    charts = []
    for method, configuration in stream.chosen.items():
        spans = panels.matrix(configuration)
        texts = np.reshape(spans.texts(), spans.mean.shape)
        trace = {
            "type": "heatmap",
            "x": tasks,
            "y": tasks,
            "z": traces.nested(spans.mean),
            "zmin": 0,
            "zmax": 100,
            "colorscale": "Viridis",
            "showscale": False,
            "xgap": int(stream.num_tasks <= 10),
            "ygap": int(stream.num_tasks <= 10),
            "text": texts.tolist(),
            "hoverongaps": False,
            "hovertemplate": "after task %{y}, on task %{x}<br>%{text}<extra></extra>",
        }
        if stream.num_tasks <= panels.MAX_NUMBERED:
            trace |= {"texttemplate": "%{z:.0f}"}
        layout = traces.layout("accuracy on task", "after training on task", height=235)
        ticks = panels.task_ticks(stream.num_tasks)
        axis = {"tickvals": ticks, "showgrid": False, "zeroline": False, "constrain": "domain"}
        layout["xaxis"] |= axis
        layout["yaxis"] |= axis | {"autorange": "reversed", "scaleanchor": "x"}
        charts.append(Chart(printable(method), [trace], layout))
    return Figure("accuracy-matrix", charts, [("viridis", "", "0 to 100 %")])


def _over_training(stream: Stream) -> Figure:
    colours = styles.task_colours(stream.num_tasks)
    x = np.arange(stream.num_tasks + 1)
    at = [f"after task {after}" if after else "before training" for after in x]
    charts = []
    for method, configuration in stream.chosen.items():
        spans = panels.over_training(configuration)
        data = []
        for task, colour in enumerate(colours, start=1):
            style, name, of = Style(colour, "circle", "solid"), f"task {task}", (slice(None), task - 1)
            trained, before = spans.at(of).at(slice(task, None)), spans.at(of).at(slice(task + 1))
            data.append(traces.faint(traces.line(x[: task + 1], before, style, name, at[: task + 1])))
            if stream.num_tasks <= panels.MAX_BANDS:
                data += traces.band(x[task:], trained, style, name)
            data.append(traces.line(x[task:], trained, style, name, at[task:]))
        layout = traces.layout("tasks trained", "accuracy (%)", height=230)
        ticks = [0, *panels.task_ticks(stream.num_tasks)[stream.num_tasks > 6 :]]
        layout["xaxis"] |= {"tickvals": ticks, "range": [-0.2, stream.num_tasks + 0.2]}
        layout["yaxis"] |= {"range": [-2, 102]}
        charts.append(Chart(printable(method), data, layout))
    legend = [("line", colour, f"task {task}") for task, colour in enumerate(colours, start=1)]
    return Figure("accuracy-over-training", charts, [*legend, ("dot", GREY, "before it was trained")])


def _legend_rows(stream: Stream) -> int:
    # Around 1000 pixels: a mark and the text of every entry, all as wide as the longest.
    widest = 50 + 7.5 * max(len(method) for method in (*stream.chosen, "Pareto front"))
    return -(-(len(stream.chosen) + 2) // max(1, int(1000 / widest)))

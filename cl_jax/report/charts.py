"""The figures of one stream as plotly.js traces: plain data that the page draws. Labels are escaped here.

plotly.js reads a little HTML in names and texts, and `%{...}` in templates: user strings therefore go into `name` and
`text` only, escaped, and every template is a constant.
"""

import html
from typing import Any, NamedTuple

import numpy as np

from cl_jax.report import panels
from cl_jax.report.configurations import BASELINE, UPPER_BOUND, Stream
from cl_jax.report.panels import GREY, METRIC_COLOURS, Point, Spans, Style
from cl_jax.report.tables import printable

Json = dict[str, Any]


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
    band = len(stream.chosen) <= 6
    for method, style in panels.styles(stream).items():
        spans = panels.seen(stream.chosen[method])
        data += _line(x, spans, style.colour, _text(method), dash=style.dash, marker=style.marker, band=band)
    layout = _layout("tasks trained", "accuracy, tasks seen so far (%)", height=400 + _legend_height(stream))
    layout["xaxis"] |= _task_axis(stream.num_tasks)
    return Figure("average-accuracy", [Chart("", data, _with_legend(layout))], [])


def _plane(stream: Stream) -> Figure:
    points = panels.plane(stream)
    if not points:
        return Figure("plane", [], [])
    best = panels.front([point for point in points if point.method != UPPER_BOUND])
    halo = {"color": "rgba(138,143,152,0.35)", "width": 9}
    data: list[Json] = [_path(best) | {"line": halo, "name": "Pareto front"}]
    for method, style in panels.styles(stream).items():
        mine = [point for point in points if point.method == method]
        if mine:
            group = {"legendgroup": _text(method)}
            line = {"color": style.colour, "width": 1.2}
            data.append(_path(panels.front(mine)) | group | {"line": line, "showlegend": False})
            data.append(_points(mine, style) | group | {"name": _text(method)})
    height = 460 + _legend_height(stream)
    layout = _layout("learning accuracy (%): learns more →", "forgetting (%): forgets less →", height)
    layout["yaxis"] |= {"autorange": "reversed"}
    return Figure("plane", [Chart("", data, _with_legend(layout))], [])


def _strength(stream: Stream) -> Figure:
    found = panels.strength_panels(stream)
    bounds = {name: dash for name, dash in ((BASELINE, "dot"), (UPPER_BOUND, "dash")) if name in stream.chosen}
    charts = []
    for panel in found:
        data = []
        for metric, spans in panel.metrics.items():
            data += _line(panel.position, spans, METRIC_COLOURS[metric], metric, texts=panel.ticks)
        layout = _layout(_text(panel.name), "percent", height=230)
        layout["xaxis"] |= {"tickvals": panel.position.tolist(), "ticktext": [_text(tick) for tick in panel.ticks]}
        layout["yaxis"] |= {"range": [_floor(panel), 102]}
        layout["shapes"] = [
            {**_rule("y", panels.reference(stream, name)), "line": {"color": GREY, "width": 1.3, "dash": dash}}
            for name, dash in bounds.items()
            if not np.isnan(panels.reference(stream, name))
        ]
        if panel.chosen is not None:
            shape = _rule("x", float(panel.position[panel.chosen]))
            layout["shapes"].append(shape | {"layer": "below", "line": {"color": "rgba(138,143,152,0.3)", "width": 8}})
        if panel.diverged.any():
            data.append(_crosses(panel.position[panel.diverged]))
        charts.append(Chart(printable(panel.method), data, layout))
    legend = [("line", colour, metric) for metric, colour in METRIC_COLOURS.items()]
    legend += [(dash, GREY, f"{name}, average accuracy") for name, dash in bounds.items()]
    legend += [("bar", "rgba(138,143,152,0.35)", "chosen")]
    legend += [("cross", "", "a seed diverged")] * any(panel.diverged.any() for panel in found)
    return Figure("strength", charts, legend)


def _matrices(stream: Stream) -> Figure:
    tasks = list(range(1, stream.num_tasks + 1))
    charts = []
    for method, configuration in stream.chosen.items():
        trace = {
            "type": "heatmap",
            "x": tasks,
            "y": tasks,
            "z": _list(panels.matrix(configuration)),
            "zmin": 0,
            "zmax": 100,
            "colorscale": "Viridis",
            "showscale": False,
            "xgap": 1,
            "ygap": 1,
            "hovertemplate": "after task %{y}, on task %{x}: %{z:.1f} %<extra></extra>",
        }
        if stream.num_tasks <= 6:
            trace |= {"texttemplate": "%{z:.0f}"}
        layout = _layout("accuracy on task", "after training on task", height=270)
        axis = _task_axis(stream.num_tasks) | {"showgrid": False, "zeroline": False, "constrain": "domain"}
        layout["xaxis"] |= axis
        layout["yaxis"] |= axis | {"autorange": "reversed", "scaleanchor": "x"}
        charts.append(Chart(printable(method), [trace], layout))
    return Figure("accuracy-matrix", charts, [("viridis", "", "0 to 100 %")])


def _over_training(stream: Stream) -> Figure:
    colours = panels.task_colours(stream.num_tasks)
    x = list(range(stream.num_tasks + 1))
    charts = []
    for method, configuration in stream.chosen.items():
        mean, std = panels.over_training(configuration)
        data = []
        for task, colour in enumerate(colours):
            data += _line(x, Spans(mean[:, task], std[:, task]), colour, f"task {task + 1}")
        layout = _layout("tasks trained", "accuracy (%)", height=230)
        layout["xaxis"] |= _task_axis(stream.num_tasks) | {"tick0": 0, "range": [-0.2, stream.num_tasks + 0.2]}
        layout["yaxis"] |= {"range": [-2, 102]}
        charts.append(Chart(printable(method), data, layout))
    legend = [("line", colour, f"task {task}") for task, colour in enumerate(colours, start=1)]
    return Figure("accuracy-over-training", charts, legend)


def _line(
    x: Any,
    spans: Spans,
    colour: str,
    name: str,
    dash: str = "solid",
    marker: str = "circle",
    texts: list[str] | None = None,
    band: bool = True,
) -> list[Json]:
    """A mean with its band of +-1 standard deviation; `texts` replace x where hovered."""
    x = np.asarray(x, np.float64)
    known = np.isfinite(spans.mean) & np.isfinite(spans.std)
    low, high = (spans.mean - spans.std)[known], (spans.mean + spans.std)[known]
    shade = f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.15)"
    area = {
        "type": "scatter",
        "mode": "lines",
        "x": [*x[known].tolist(), *x[known][::-1].tolist()],
        "y": [*low.tolist(), *high[::-1].tolist()],
        "fill": "toself",
        "fillcolor": shade,
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": name,
    }
    hover = [f" ± {value:.1f}" if np.isfinite(value) else "" for value in spans.std]
    at = [_text(text) for text in texts] if texts else [f"{value:g}" for value in x]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x.tolist(),
        "y": _list(spans.mean),
        "name": name,
        "legendgroup": name,
        "line": {"color": colour, "width": 1.8, "dash": dash},
        "marker": {"color": colour, "size": 5, "symbol": marker},
        "text": [f"{name} at {where}: {y:.1f}{text} %" for where, y, text in zip(at, spans.mean, hover, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
    }
    return [area, line] if band and known.sum() > 1 else [line]


def _crosses(positions: np.ndarray) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": positions.tolist(),
        "y": [0] * len(positions),
        "marker": {"symbol": "x", "size": 10, "color": METRIC_COLOURS["forgetting"]},
        "cliponaxis": False,
        "hovertemplate": "a seed diverged<extra></extra>",
    }


def _path(points: list[Point]) -> Json:
    ends = [(float(point.learning.mean), float(point.forgetting.mean)) for point in points]
    path = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
    return path | {"x": [x for x, _ in ends], "y": [y for _, y in ends]}


def _points(points: list[Point], style: Style) -> Json:
    def bars(values: list[Spans]) -> Json:
        array = [value.std if point.chosen else np.nan for value, point in zip(values, points, strict=True)]
        return {"type": "data", "array": _list(np.array(array)), "thickness": 1.2, "width": 3, "color": style.colour}

    learning, forgetting = [point.learning for point in points], [point.forgetting for point in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [float(value.mean) for value in learning],
        "y": [float(value.mean) for value in forgetting],
        "error_x": bars(learning),
        "error_y": bars(forgetting),
        "marker": {
            "color": style.colour,
            "size": [13 if point.chosen else 7 for point in points],
            "opacity": [1.0 if point.chosen else 0.75 for point in points],
            "line": {"width": [2 if point.diverged else 0 for point in points], "color": style.colour},
            "symbol": [style.marker + "-open" * point.diverged for point in points],
        },
        "text": [_describe(point) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _describe(point: Point) -> str:
    status = " (chosen)" * point.chosen + " (a seed diverged)" * point.diverged
    head = ", ".join(part for part in (_text(point.method), _text(point.label)) if part)
    return f"{head}{status}<br>learning {point.learning.mean:.1f} %, forgetting {point.forgetting.mean:.1f} %"


def _layout(x: str, y: str, height: int) -> Json:
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    return {"height": height, "margin": {"l": 46, "r": 8, "t": 6, "b": 42}, "showlegend": False, **axes}


def _with_legend(layout: Json) -> Json:
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"}
    margin = layout["margin"] | {"t": 30, "b": 56}
    return layout | {"showlegend": True, "legend": legend, "margin": margin}


def _legend_height(stream: Stream) -> int:
    return 22 * (1 + len(stream.chosen) // 6)


def _task_axis(num_tasks: int) -> Json:
    step = -(-num_tasks // 6)
    return {"tick0": step, "dtick": step} if num_tasks > 6 else {"tick0": 1, "dtick": 1}


def _rule(axis: str, at: float) -> Json:
    other = "x" if axis == "y" else "y"
    ends = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
    return {"type": "line", **ends}


def _floor(panel: panels.StrengthPanel) -> float:
    lowest = [spans.mean - np.nan_to_num(spans.std) for spans in panel.metrics.values()]
    return float(min(-2.0, np.nanmin(lowest, initial=0.0) - 2))


def _text(text: str) -> str:
    return html.escape(printable(text))


def _list(values: np.ndarray) -> list:
    """Nested lists with None for NaN, which JSON lacks."""
    filled = values.astype(object)
    filled[np.isnan(values)] = None
    return filled.tolist()

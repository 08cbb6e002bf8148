"""The pieces that the interactive charts are put together from: lines, points and layouts for plotly.js.

plotly.js reads a little HTML in names and texts, and `%{...}` in templates: user strings therefore go into `name` and
`text` only, escaped, and every template is a constant.
"""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cl_jax.report.cells import printable
from cl_jax.report.measure import Measure, spoken
from cl_jax.report.panels import MOST_MARKERS, Point, Spans
from cl_jax.report.streams import Stream
from cl_jax.report.styles import RED, Style

Json = dict[str, Any]
SHADE = "rgba(138,143,152,0.35)"


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
    wide: bool = False  # one chart, as wide as the page


def escape(text: str) -> str:
    """A user's string for plotly.js and HTML."""
    return html.escape(printable(text))


def line(x: Any, spans: Spans, style: Style, name: str, at: Sequence[str], measure: Measure) -> Json:
    """A mean; where hovered: `name`, where it is (`at`, one text a point), and the numbers."""
    texts = [f"{name} {where}<br>{text}" for where, text in zip(at, spans.texts(measure), strict=True)]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(texts) <= MOST_MARKERS else "lines",
        "x": np.asarray(x, np.float64).tolist(),
        "y": nested(spans.mean),
        "name": name,
        "legendgroup": name,
        "line": {"color": style.colour, "width": 2, "dash": style.dash},
        "marker": {"color": style.colour, "size": 5, "symbol": style.marker},
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
    }


def faint(trace: Json) -> Json:
    """The same line, thin, dotted and without marks."""
    kept = {name: value for name, value in trace.items() if name != "marker"}
    return kept | {"mode": "lines", "opacity": 0.6, "line": trace["line"] | {"width": 1, "dash": "dot"}}


def band(x: Any, spans: Spans, style: Style, name: str) -> list[Json]:
    """The band of +-1 standard deviation, a list of none or one."""
    x = np.asarray(x, np.float64)
    known = np.isfinite(spans.mean) & np.isfinite(spans.std)
    if known.sum() < 2:
        return []
    low, high = (spans.mean - spans.std)[known], (spans.mean + spans.std)[known]
    red, green, blue = (int(style.colour[i : i + 2], 16) for i in (1, 3, 5))
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [*x[known].tolist(), *x[known][::-1].tolist()],
            "y": [*low.tolist(), *high[::-1].tolist()],
            "fill": "toself",
            "fillcolor": f"rgba({red},{green},{blue},0.15)",
            "line": {"width": 0},
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": name,
        }
    ]


def path(points: Sequence[Point]) -> Json:
    """A line through points of the plane."""
    ends = [(float(point.learning.mean), float(point.forgetting.mean)) for point in points]
    return {
        "type": "scatter",
        "mode": "lines",
        "hoverinfo": "skip",
        "x": [x for x, _ in ends],
        "y": [y for _, y in ends],
    }


def points(points: Sequence[Point], style: Style, measure: Measure, all_bars: bool = False) -> Json:
    """Points of the plane: the chosen one large, it or all of them with error bars; hollow where a seed diverged."""

    def bars(values: Sequence[Spans]) -> Json:
        shown = (point.chosen or all_bars for point in points)
        array = [value.std if bar else np.nan for value, bar in zip(values, shown, strict=True)]
        return {"type": "data", "array": nested(np.array(array)), "thickness": 1.2, "width": 3, "color": style.colour}

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
        "text": [_describe(point, measure) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
    }


def entry(name: str, style: Style, mark: Json | None = None) -> Json:
    """An entry of the legend whose size does not depend on what is drawn; hides what has the same name."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None],
        "y": [None],
        "name": name,
        "legendgroup": name,
        "showlegend": True,
        "hoverinfo": "skip",
        "marker": {"color": style.colour, "size": 10, "symbol": style.marker} | (mark or {}),
    }


def crosses(positions: np.ndarray) -> Json:
    """Marks at the foot of the values of which a seed diverged."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": positions.tolist(),
        "y": [0] * len(positions),
        "marker": {"symbol": "x", "size": 10, "color": RED},
        "cliponaxis": False,
        "hovertemplate": "a seed diverged<extra></extra>",
    }


def layout(x: str, y: str, height: int, legend_rows: int = 0) -> Json:
    """Axes and margins; with room for a legend of that many rows above the drawing."""
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    margin = {"l": 46, "r": 8, "t": 6, "b": 42}
    if not legend_rows:
        return {"height": height, "margin": margin, "showlegend": False, **axes}
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left", "font": {"size": 13}}
    room = 14 + 22 * legend_rows
    margin = margin | {"t": room}
    return {"height": height + room, "margin": margin, "showlegend": True, "legend": legend, **axes}


def rule(axis: str, at: float) -> Json:
    """A line across the whole drawing."""
    other = "x" if axis == "y" else "y"
    ends = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
    return {"type": "line", **ends}


def nested(values: np.ndarray) -> list:
    """Nested lists with None for NaN, which JSON lacks."""
    filled = values.astype(object)
    filled[np.isnan(values)] = None
    return filled.tolist()


def legend_rows(stream: Stream) -> int:
    """Of the legend of a figure with all methods."""
    # Around 1000 pixels: a mark and the text of every entry, all as wide as the longest.
    widest = 50 + 7.5 * max(len(method) for method in (*stream.chosen, "Pareto front"))
    return -(-(len(stream.chosen) + 2) // max(1, int(1000 / widest)))


def _describe(point: Point, measure: Measure) -> str:
    status = " (chosen)" * point.chosen + " (a seed diverged)" * point.diverged
    head = ", ".join(part for part in (escape(point.method), escape(point.label)) if part)
    (learning,), (forgetting,) = point.learning.texts(measure), point.forgetting.texts(measure)
    return f"{head}{status}<br>{spoken(measure.learning)} {learning}<br>forgetting {forgetting}"

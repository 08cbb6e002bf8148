"""The figure of learning against forgetting for plotly.js: a line a method through its configurations."""

import numpy as np

from cl_jax.report import styles, traces, trade
from cl_jax.report.streams import Stream
from cl_jax.report.styles import GREY, Style
from cl_jax.report.traces import SHADE, Chart, Figure, Json, escape, legend_rows

NOISE = "noise of seeds"


def figure(stream: Stream) -> Figure:
    """The figure, without a chart where nothing is defined."""
    found, measure = trade.drawn(stream), stream.measure
    if not found:
        return Figure("fronts", [], [], wide=True)
    data: list[Json] = []
    # The bounds come last: other points must not hide them.
    looks = sorted(styles.method_styles(stream).items(), key=lambda item: item[1].colour == GREY)
    for method, style in looks:
        if method in found:
            data += _method(found[method], style, escape(method), stream)
    layout = traces.layout(measure.learning_axis, measure.forgetting_axis, 460, legend_rows(stream))
    layout["yaxis"] |= {"autorange": "reversed"}
    floor = trade.noise(stream).forgetting * measure.format.scale
    if np.isfinite(floor):
        data.append(traces.entry(NOISE, Style(GREY, "square", "solid"), {"color": SHADE}))
        layout["shapes"] = [
            {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": -floor, "y1": floor, "layer": "below",
             "fillcolor": SHADE, "line": {"width": 0}},
        ]  # fmt: skip
    return Figure("fronts", [Chart("", data, layout)], [], wide=True)


def _method(drawn: trade.Drawn, style: Style, name: str, stream: Stream) -> list[Json]:
    group = {"legendgroup": name, "showlegend": False}
    x, y = drawn.line
    line = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "x": x.tolist(), "y": y.tolist()}
    return [
        line | group | {"line": {"color": style.colour, "width": 1.5, "dash": style.dash}},
        traces.points(drawn.points, style, stream.measure, all_bars=True) | group,
        traces.entry(name, style),
    ]

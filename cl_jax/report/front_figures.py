"""The figure of learning against forgetting with matplotlib: a line a method through its configurations."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cl_jax.report import drawing, styles, trade
from cl_jax.report.drawing import look, mark, sheet
from cl_jax.report.streams import Stream
from cl_jax.report.styles import GREY

_NOISE: dict[str, Any] = {"facecolor": GREY, "alpha": 0.25, "linewidth": 0}


def fronts(stream: Stream) -> Figure | None:
    """Forgetting (downwards) against learning, with the noise of seeds as a band; None where none is defined."""
    found = trade.drawn(stream)
    if not found:
        return None
    looks = {method: style for method, style in styles.method_styles(stream).items() if method in found}
    legend: list[tuple[Any, str]] = [(mark(style.colour, *look(style)), method) for method, style in looks.items()]
    floor = trade.noise(stream).forgetting * stream.measure.format.scale
    if np.isfinite(floor):
        legend.append((Patch(**_NOISE), "noise of seeds"))
    legend.append((mark(GREY, "o", markersize=8), "chosen"))
    names = (stream.measure.learning_axis, stream.measure.forgetting_axis)
    figure, (axis,) = sheet(1, 5.6, 3.3, *names, legend, titled=False)
    if np.isfinite(floor):
        axis.axhspan(-floor, floor, zorder=0, **_NOISE)
    # The bounds come last: other points must not hide them.
    for method, style in sorted(looks.items(), key=lambda item: item[1].colour == GREY):
        axis.plot(*found[method].line, color=style.colour, linestyle=look(style)[1], linewidth=1.2, zorder=2)
        for point in found[method].points:
            drawing.point(axis, point, style, bars=True)
    axis.invert_yaxis()
    return figure

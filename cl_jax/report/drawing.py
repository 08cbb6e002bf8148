"""How a paper figure is laid out and written with matplotlib. Sizes are in inches.

Places are computed from the sizes given here, not measured by drawing: that makes a figure several times faster.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from cl_jax.report.cells import cut
from cl_jax.report.panels import MOST_MARKERS, Point, Spans, num_columns
from cl_jax.report.styles import Style

FORMATS = ("svg", "pdf", "png")
PNG_DPI = 160
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a label is text, whatever characters are in it
    "svg.hashsalt": "cl_jax",  # the same figure, the same bytes
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlepad": 4,
    "axes.labelpad": 2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": "#6a7078",
    "xtick.color": "#3c4249",
    "ytick.color": "#3c4249",
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "star": "*"}
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_CHARACTER = 0.066  # width of one in a title
_LEFT, _RIGHT, _BOTTOM = 0.55, 0.15, 0.42
_TITLE, _TICKS, _NAME = 0.27, 0.17, 0.17  # what stands above and below a panel


def sheet(
    count: int,
    width: float,
    height: float,
    x: str | None,
    y: str,
    legend: Sequence[tuple[Any, str]],
    *,
    right: float = 0.0,
    titled: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of this size, with the legend below.

    Args:
        count: number of panels.
        width: of a panel.
        height: of a panel.
        x: name of the axis that all panels share; None: each brings its own.
        y: name of the axis that all panels share.
        legend: marks and their labels.
        right: room kept free at the right.
        titled: whether panels have titles.
    """
    columns = min(count, num_columns(count))
    rows = -(-count // columns)
    gap = 0.3 if x is None else 0.16, _TITLE + (_TICKS + _NAME if x is None else _TICKS if count % columns else 0.02)
    inner = columns * (width + gap[0]) - gap[0], rows * (height + gap[1]) - gap[1]
    total = max(_LEFT + inner[0] + _RIGHT + right, 4.6)
    labels = [visible(cut(label, 40)) for _, label in legend]
    beside = _side_by_side(labels, total)
    bottom = _BOTTOM + (0.08 + 0.165 * -(-len(labels) // beside) if labels else 0)
    size = total, (_TITLE if titled else 0.1) + inner[1] + bottom
    figure = Figure(figsize=size)
    place = {"left": _LEFT / total, "right": (_LEFT + inner[0]) / total}
    place |= {"bottom": bottom / size[1], "top": (bottom + inner[1]) / size[1]}
    spacing = {"wspace": gap[0] / width, "hspace": gap[1] / height}
    axes = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=place | spacing).flat)
    for spare in axes[count:]:
        spare.remove()
    for index, axis in enumerate(axes[:count]):
        axis.tick_params(labelleft=index % columns == 0, labelbottom=x is None or index + columns >= count)
    centre = (_LEFT + inner[0] / 2) / total, (bottom + inner[1] / 2) / size[1]
    figure.text(0.17 / total, centre[1], y, rotation="vertical", ha="center", va="center")
    if x is not None:
        figure.text(centre[0], (bottom - _TICKS - 0.11) / size[1], x, ha="center", va="center")
    if labels:
        style: dict[str, Any] = {"fontsize": 7.5, "columnspacing": 1.6, "handlelength": 2.2, "labelspacing": 0.4}
        handles = [handle for handle, _ in legend]
        figure.legend(handles, labels, loc="lower center", borderaxespad=0.2, ncols=beside, **style)
    return figure, axes[:count]


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes `<path>.<svg|pdf|png>`, each drawn once."""
    paths = [path.with_name(f"{path.name}.{suffix}") for suffix in FORMATS]
    for text in figure.findobj(Text):
        text.set_fontfeatures(["-liga"])  # ligatures are embedded as a second font, which takes its time
    # Figure.savefig would draw twice a format, once to lay out what is laid out already.
    FigureCanvasSVG(figure).print_svg(paths[0], metadata={"Date": None})
    FigureCanvasPdf(figure).print_pdf(paths[1], metadata={"CreationDate": None})
    figure.set_dpi(PNG_DPI)
    FigureCanvasAgg(figure).print_png(paths[2], pil_kwargs={"compress_level": 3})
    return paths


def line(
    axis: Axes, x: np.ndarray, spans: Spans, colour: str, dash: str = "-", marker: str = "o", band: bool = True
) -> None:
    """A mean with its band of +-1 standard deviation; of long streams a marker only now and then."""
    every = -(-len(x) // MOST_MARKERS)
    axis.plot(x, spans.mean, color=colour, linestyle=dash, marker=marker, markersize=3.5, markevery=every)
    if band and np.isfinite(spans.std).any():
        axis.fill_between(x, spans.mean - spans.std, spans.mean + spans.std, color=colour, alpha=0.15, linewidth=0)


def point(axis: Axes, point: Point, style: Style, *, bars: bool) -> None:
    """A configuration in the plane: the chosen one large, one with a diverged seed hollow; bars of +-1 std."""
    x, y = float(point.learning.mean), float(point.forgetting.mean)
    if bars and np.isfinite(point.learning.std):
        spread = (float(point.forgetting.std), float(point.learning.std))
        axis.errorbar(x, y, *spread, color=style.colour, linewidth=1, capsize=2, zorder=3)
    drawn: dict[str, Any] = {"marker": look(style)[0], "color": style.colour, "zorder": 4}
    size, alpha = (8, 1.0) if point.chosen else (4.5, 0.75)
    axis.plot(x, y, markersize=size, alpha=alpha, markerfacecolor="none" if point.diverged else style.colour, **drawn)


def mark(colour: str, marker: str = "", dash: Any = "", **style: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=colour, marker=marker, linestyle=dash, **style)


def look(style: Style) -> tuple[str, str]:
    """Marker and dash."""
    return _MARKERS[style.marker], _DASHES[style.dash]


def title(text: str, width: float) -> str:
    """A label cut to the width of its panel."""
    return cut(text, int((width + 0.16) / _CHARACTER))


def _side_by_side(labels: Sequence[str], width: float) -> int:
    """How many columns of a legend, filled one column after another, fit a width."""
    for columns in range(len(labels), 1, -1):
        lines = -(-len(labels) // columns)
        widest = (max(map(len, labels[first : first + lines])) for first in range(0, len(labels), lines))
        if sum(0.55 + 0.06 * length for length in widest) <= width and -(-len(labels) // lines) == columns:
            return columns
    return 1


def visible(label: str) -> str:
    # A leading "_" would hide an entry of the legend: a zero-width space before it keeps it.
    return "\u200b" + label if label.startswith("_") else label

"""The figures of the diagnostics with matplotlib, for papers: SVG, PDF and PNG."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cl_jax.report import drawing, panels, styles
from cl_jax.report.cells import cut
from cl_jax.report.diagnosis import Lines, Panel, Points, views
from cl_jax.report.drawing import look, mark, title
from cl_jax.report.measured import Measured
from cl_jax.report.styles import GREY, Style

_LETTERS = 36  # of names that have room below a panel
_HEIGHT, _ACROSS = 1.4, 4  # of a panel, and how many side by side
_LEFT, _BELOW, _ABOVE, _RIGHT = 0.6, 0.5, 0.27, 0.25  # what stands around a panel


def write_figures(measured: Measured | None, folder: Path, name: str) -> list[Path]:
    """Writes `<folder>/<name>-<diagnostic>.<svg|pdf|png>`, of what was measured; returns the paths."""
    if measured is None:
        return []
    paths = []
    with matplotlib.rc_context(drawing.STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a label in a script the font lacks
        for kind, found in views(measured).items():
            paths += drawing.save(_figure(measured, found), folder / f"{name}-{kind.replace('_', '-')}")
    return paths


def _figure(measured: Measured, found: list[Panel]) -> Figure:
    looks = {
        method: each
        for method, each in styles.method_styles(measured.stream).items()
        if any(method in panel.of for panel in found)
    }
    width = 2.4 if len(found) < 3 else 1.8
    handles = [mark(each.colour, *look(each)) for each in looks.values()]
    figure, axes = _sheet(len(found), width, list(looks), handles)
    for axis, panel in zip(axes, found, strict=True):
        if isinstance(panel, Lines):
            _lines(axis, panel, looks)
        else:
            _points(axis, panel, looks)
        axis.set_title(title(panel.title, width + 0.3))
        axis.set_xlabel(title(panel.x, width + 0.3))
        axis.set_ylabel(title(panel.y, _HEIGHT + 0.4))
    return figure


def _sheet(count: int, width: float, labels: list[str], handles: list[Line2D]) -> tuple[Figure, list[Axes]]:
    """Panels that each have axes of their own, with the legend below."""
    across = 3 if count in (5, 6) else min(count, _ACROSS)
    down, beside = -(-count // across), min(len(labels), 2 * across)
    legend = 0.1 + 0.165 * -(-len(labels) // beside)
    cell = _LEFT + width + _RIGHT, _ABOVE + _HEIGHT + _BELOW
    size = max(across * cell[0], 4.6), down * cell[1] + legend
    figure = Figure(figsize=size)
    place = {"left": _LEFT / size[0], "right": (across * cell[0] - _RIGHT) / size[0]}
    place |= {"bottom": (legend + _BELOW) / size[1], "top": 1 - _ABOVE / size[1]}
    spacing = {"wspace": (cell[0] - width) / width, "hspace": (cell[1] - _HEIGHT) / _HEIGHT}
    axes = list(figure.subplots(down, across, squeeze=False, gridspec_kw=place | spacing).flat)
    for spare in axes[count:]:
        spare.remove()
    names = [drawing.visible(cut(label, 40)) for label in labels]
    figure.legend(handles, names, loc="lower center", borderaxespad=0.2, ncols=beside, fontsize=7.5)
    return figure, axes[:count]


def _lines(axis: Axes, panel: Lines, looks: dict[str, Style]) -> None:
    for method, found in panel.of.items():
        marker, dash = look(looks[method])
        band = len(panel.of) <= panels.MAX_BANDS
        drawing.line(axis, panel.position, found, looks[method].colour, dash, marker, band)
    if panel.ticks is not None:
        names = [cut(name, 12) for name in panel.ticks]
        fit = max(2, _LETTERS // (max(map(len, names)) + 1))
        kept = panels.thinned(panel.position.astype(np.float64), min(fit, 8))
        axis.set_xticks(panel.position[kept], [names[index] for index in kept])
    elif np.all(panel.position == np.round(panel.position)):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _points(axis: Axes, panel: Points, looks: dict[str, Style]) -> None:
    axis.plot(*panel.curve, color=GREY, linewidth=5, alpha=0.3, zorder=1)
    for method, (x, y, _) in panel.of.items():
        marker, _ = look(looks[method])
        axis.plot(x, y, linestyle="", marker=marker, markersize=3.5, color=looks[method].colour, alpha=0.8, zorder=2)

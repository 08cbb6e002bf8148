"""The figures of one stream with matplotlib, for papers: SVG, PDF and PNG."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_jax.report import drawing, panels, styles
from cl_jax.report.configurations import BASELINE, UPPER_BOUND
from cl_jax.report.drawing import mark, sheet, title
from cl_jax.report.panels import Point
from cl_jax.report.streams import Stream
from cl_jax.report.styles import GREY, METRIC_COLOURS, Style

_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "star": "*"}
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_BAR: dict[str, Any] = {"color": "#b9bec6", "linestyle": "-", "linewidth": 4, "alpha": 0.5}
_FRONT: dict[str, Any] = {"color": "#6a7078", "linestyle": "-", "linewidth": 5, "alpha": 0.25}


def write_figures(stream: Stream, folder: Path, name: str) -> list[Path]:
    """Writes `<folder>/<name>-<figure>.<svg|pdf|png>`, those figures that the results allow; returns the paths."""
    drawings = {
        "accuracy-matrix": accuracy_matrices,
        "accuracy-over-training": accuracy_over_training,
        "average-accuracy": average_accuracy,
        "strength": strength_curves,
        "plane": stability_plasticity_plane,
    }
    paths = []
    with matplotlib.rc_context(drawing.STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a label in a script the font lacks
        for kind, draw in drawings.items():
            figure = draw(stream)
            if figure is not None:
                paths += drawing.save(figure, folder / f"{name}-{kind}")
    return paths


def accuracy_matrices(stream: Stream) -> Figure:
    """Small multiples: R of each method's chosen configuration, mean over seeds, in percent."""
    size, ticks = 1.3, panels.task_ticks(stream.num_tasks)
    figure, axes = sheet(len(stream.chosen), size, size, "accuracy on task", "after training on task", [], right=0.65)
    edges = np.arange(stream.num_tasks + 1) + 0.5
    image = None
    for axis, (method, configuration) in zip(axes, stream.chosen.items(), strict=True):
        matrix = panels.matrix(configuration).mean
        fine: dict[str, Any] = {"rasterized": True} if stream.num_tasks > 10 else {"edgecolor": "w", "linewidth": 0.4}
        image = axis.pcolormesh(edges, edges, matrix, cmap="viridis", vmin=0, vmax=100, **fine)
        axis.set(xticks=ticks, yticks=ticks, facecolor="#f0f1f3", ylim=(edges[-1], edges[0]))
        axis.set_title(title(method, size))
        axis.grid(False)
        axis.tick_params(length=0, pad=2)
        axis.spines[:].set_visible(False)
        for i, j in np.argwhere(~np.isnan(matrix)) if stream.num_tasks <= panels.MAX_NUMBERED else ():
            colour = "white" if matrix[i, j] < 60 else "black"
            axis.text(j + 1, i + 1, f"{matrix[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=6.5)
    if image is not None:
        width, height = figure.get_size_inches()
        last = axes[min(panels.num_columns(len(axes)), len(axes)) - 1].get_position()
        place = (last.x1 + 0.15 / width, last.y1 - size / height, 0.1 / width, size / height)
        figure.colorbar(image, cax=figure.add_axes(place), label="accuracy (%)")
    return figure


def accuracy_over_training(stream: Stream) -> Figure:
    """Small multiples: accuracy of every task after each task, one panel a method, band +-1 std over seeds."""
    colours, ticks = styles.task_colours(stream.num_tasks), panels.task_ticks(stream.num_tasks)
    few = stream.num_tasks <= panels.MAX_BANDS
    legend = [(mark(colours[task - 1], dash="-"), f"task {task}") for task in ticks]
    legend.append((mark(GREY, dash=":", linewidth=0.9), "before it was trained"))
    width = 1.35
    figure, axes = sheet(len(stream.chosen), width, 1.2, "tasks trained", "accuracy (%)", legend)
    x = np.arange(stream.num_tasks + 1)
    for axis, (method, configuration) in zip(axes, stream.chosen.items(), strict=True):
        spans = panels.over_training(configuration)
        for task, colour in enumerate(colours, start=1):
            own = spans.at((slice(None), task - 1))
            axis.plot(x[: task + 1], own.mean[: task + 1], color=colour, linestyle=":", linewidth=0.8, alpha=0.7)
            drawing.line(axis, x[task:], own.at(slice(task, None)), colour, marker="o" if few else "", band=few)
        axis.set(ylim=(-2, 102), xlim=(-0.15, stream.num_tasks + 0.15), yticks=range(0, 101, 25))
        axis.set_xticks([0, *ticks[stream.num_tasks > 6 :]])
        axis.set_title(title(method, width))
    return figure


def average_accuracy(stream: Stream) -> Figure | None:
    """Accuracy over the tasks seen so far, one line a method, band +-1 std over seeds; None for a single task."""
    if stream.num_tasks == 1:
        return None
    looks = styles.method_styles(stream)
    legend = [(mark(each.colour, *look(each)), method) for method, each in looks.items()]
    figure, (axis,) = sheet(1, 5.6, 2.6, "tasks trained", "accuracy on the tasks seen so far (%)", legend, titled=False)
    x, band = np.arange(1, stream.num_tasks + 1), len(stream.chosen) <= panels.MAX_BANDS
    for method, style in looks.items():
        marker, dash = look(style)
        drawing.line(axis, x, panels.seen(stream.chosen[method]), style.colour, dash, marker, band)
    axis.set_xticks(panels.task_ticks(stream.num_tasks))
    return figure


def strength_curves(stream: Stream) -> Figure | None:
    """Metrics against each swept numerical hyper-parameter; None where nothing numerical was swept."""
    found = panels.strength_panels(stream)
    if not found:
        return None
    legend = [(mark(colour, "o", "-"), metric) for metric, colour in METRIC_COLOURS.items()]
    bounds = {name: dash for name, dash in ((BASELINE, ":"), (UPPER_BOUND, "--")) if name in stream.chosen}
    legend += [(mark(GREY, dash=dash), f"average accuracy of {name}") for name, dash in bounds.items()]
    legend.append((Line2D([], [], **_BAR), "value chosen"))
    if any(panel.diverged.any() for panel in found):
        legend.append((mark(METRIC_COLOURS["forgetting"], "x", markeredgewidth=2), "a seed diverged"))
    width = 1.5 if len(found) > 1 else 2.6
    figure, axes = sheet(len(found), width, 1.3, None, "percent", legend)
    for axis, panel in zip(axes, found, strict=True):
        for metric, spans in panel.metrics.items():
            drawing.line(axis, panel.position, spans, METRIC_COLOURS[metric])
        for method, dash in bounds.items():
            axis.axhline(panels.reference(stream, method), color=GREY, linestyle=dash, linewidth=1.1)
        for chosen in panel.chosen:
            axis.axvline(panel.position[chosen], zorder=0, **_BAR)
        for position in panel.position[panel.diverged]:
            axis.plot(position, 0, marker="x", color=METRIC_COLOURS["forgetting"], markeredgewidth=2, zorder=5)
        kept = panels.thinned(panel.position, 5)
        axis.set_xticks(panel.position[kept], [panel.ticks[i] for i in kept])
        axis.set_ylim(min(map(panels.floor, found)), 102)
        axis.set_title(title(panel.method, width))
        axis.set_xlabel(title(panel.axis_name, width))
    return figure


def stability_plasticity_plane(stream: Stream) -> Figure | None:
    """Forgetting (downwards) against learning accuracy, every configuration a point; None where none is defined."""
    points = panels.plane(stream)
    if not points:
        return None
    best = panels.front([point for point in points if point.method != UPPER_BOUND])
    shown = {method: style for method, style in styles.method_styles(stream).items() if _of(points, method)}
    legend = [(mark(style.colour, look(style)[0]), method) for method, style in shown.items()]
    if len(best) > 1:
        legend.append((Line2D([], [], **_FRONT), "Pareto front"))
    legend.append((mark(GREY, "o", markersize=8), "chosen, ± 1 std"))
    if any(point.diverged for point in points):
        legend.append((mark(GREY, "o", markerfacecolor="none"), "a seed diverged"))
    names = ("learning accuracy (%): learns more →", "forgetting (%): forgets less →")
    figure, (axis,) = sheet(1, 5.6, 3.3, *names, legend, titled=False)
    axis.plot(*_coordinates(best), zorder=1, **_FRONT)
    # The bounds come last: other points must not hide them.
    for method, style in sorted(shown.items(), key=lambda item: item[1].colour == GREY):
        axis.plot(*_coordinates(panels.front(_of(points, method))), color=style.colour, linewidth=1, zorder=2)
        for point in _of(points, method):
            _point(axis, point, style)
    axis.invert_yaxis()
    return figure


def _point(axis: Axes, point: Point, style: Style) -> None:
    x, y = float(point.learning.mean), float(point.forgetting.mean)
    if point.chosen and np.isfinite(point.learning.std):
        spread = (float(point.forgetting.std), float(point.learning.std))
        axis.errorbar(x, y, *spread, color=style.colour, linewidth=1, capsize=2, zorder=3)
    drawn: dict[str, Any] = {"marker": look(style)[0], "color": style.colour, "zorder": 4}
    size, alpha = (8, 1.0) if point.chosen else (4.5, 0.75)
    axis.plot(x, y, markersize=size, alpha=alpha, markerfacecolor="none" if point.diverged else style.colour, **drawn)


def look(style: Style) -> tuple[str, str]:
    """Marker and dash."""
    return _MARKERS[style.marker], _DASHES[style.dash]


def _of(points: Sequence[Point], method: str) -> list[Point]:
    return [point for point in points if point.method == method]


def _coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [float(point.learning.mean) for point in points], [float(point.forgetting.mean) for point in points]

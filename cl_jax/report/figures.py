"""The figures of one stream with matplotlib, for papers: SVG, PDF and PNG."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_jax.report import panels
from cl_jax.report.configurations import BASELINE, UPPER_BOUND, Stream
from cl_jax.report.panels import METRIC_COLOURS, Point, Spans
from cl_jax.report.tables import printable

FORMATS = ("svg", "pdf", "png")
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "star": "*"}
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a label is text, whatever characters are in it
    "svg.hashsalt": "cl_jax",  # the same figure, the same bytes
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": "#6a7078",
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}
_METADATA = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


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
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a label in a script the font lacks
        for kind, draw in drawings.items():
            figure = draw(stream)
            if figure is None:
                continue
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, not again for each format
            for suffix in FORMATS:
                path = folder / f"{name}-{kind}.{suffix}"
                figure.savefig(path, dpi=160, metadata=_METADATA[suffix])
                paths.append(path)
    return paths


def accuracy_matrices(stream: Stream) -> Figure:
    """Small multiples: R of each method's chosen configuration, mean over seeds, in percent."""
    figure, axes = _grid(len(stream.chosen), 1.75, 1.75)
    fine = stream.num_tasks > 10
    ticks = _task_ticks(stream.num_tasks)
    image = None
    for axis, (method, configuration) in zip(axes, stream.chosen.items(), strict=True):
        matrix = panels.matrix(configuration)
        edges = np.arange(stream.num_tasks + 1) + 0.5
        image = axis.pcolormesh(edges, edges, matrix, cmap="viridis", vmin=0, vmax=100, rasterized=fine)
        if not fine:
            image.set(edgecolor="white", linewidth=0.4)
        axis.set(title=_title(method), aspect="equal", xticks=ticks, yticks=ticks, facecolor="#f0f1f3")
        axis.invert_yaxis()
        axis.grid(False)
        for i, j in np.argwhere(~np.isnan(matrix)) if stream.num_tasks <= 6 else ():
            colour = "white" if matrix[i, j] < 60 else "black"
            axis.text(j + 1, i + 1, f"{matrix[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=7)
    _outer_labels(axes, "accuracy on task", "after training on task")
    num_rows = math.ceil(len(axes) / _num_columns(len(axes)))
    if image is not None:
        figure.colorbar(image, ax=axes, label="accuracy (%)", shrink=0.8 / num_rows, aspect=18, pad=0.02)
    return figure


def accuracy_over_training(stream: Stream) -> Figure:
    """Small multiples: accuracy of every task after each task, one panel a method, band +-1 std over seeds."""
    figure, axes = _grid(len(stream.chosen), 2.2, 1.8)
    colours = panels.task_colours(stream.num_tasks)
    x = np.arange(stream.num_tasks + 1)
    for axis, (method, configuration) in zip(axes, stream.chosen.items(), strict=True):
        mean, std = panels.over_training(configuration)
        for task in range(stream.num_tasks):
            _band(axis, x, Spans(mean[:, task], std[:, task]), colours[task], "-", "o" if stream.num_tasks < 8 else "")
        axis.set(title=_title(method), ylim=(-2, 102), xlim=(-0.15, stream.num_tasks + 0.15))
        axis.set_xticks([0, *_task_ticks(stream.num_tasks)[stream.num_tasks > 6 :]])
    _outer_labels(axes, "tasks trained", "accuracy (%)")
    listed = _task_ticks(stream.num_tasks)
    handles = [Line2D([], [], color=colours[task - 1]) for task in listed]
    _legend(figure, handles, [f"task {task}" for task in listed])
    return figure


def average_accuracy(stream: Stream) -> Figure | None:
    """Accuracy over the tasks seen so far, one line a method, band +-1 std over seeds; None for a single task."""
    if stream.num_tasks == 1:
        return None
    figure = Figure(figsize=(6.4, 3.3), layout="constrained")
    axis = figure.subplots()
    x = np.arange(1, stream.num_tasks + 1)
    handles, labels = [], []
    crowded = len(stream.chosen) > 6
    for method, style in panels.styles(stream).items():
        spans = panels.seen(stream.chosen[method])
        line = _band(axis, x, spans, style.colour, _DASHES[style.dash], _MARKERS[style.marker], band=not crowded)
        handles.append(line)
        labels.append(_title(method))
    axis.set(xlabel="tasks trained", ylabel="accuracy, tasks seen so far (%)", xticks=_task_ticks(stream.num_tasks))
    _legend(figure, handles, labels)
    return figure


def strength_curves(stream: Stream) -> Figure | None:
    """Metrics against each swept numerical hyper-parameter; None where nothing numerical was swept."""
    found = panels.strength_panels(stream)
    if not found:
        return None
    figure, axes = _grid(len(found), 2.3, 1.9)
    bounds: dict[str, Any] = {BASELINE: ":", UPPER_BOUND: "--"}
    for axis, panel in zip(axes, found, strict=True):
        for metric, spans in panel.metrics.items():
            _band(axis, panel.position, spans, METRIC_COLOURS[metric], "-", "o")
        for method, dash in bounds.items():
            axis.axhline(panels.reference(stream, method), color=panels.GREY, linestyle=dash, linewidth=1.1)
        if panel.chosen is not None:
            axis.axvline(panel.position[panel.chosen], color="#b9bec6", linewidth=4, alpha=0.5, zorder=0)
        for position in panel.position[panel.diverged]:
            axis.plot(position, 0, marker="x", color=METRIC_COLOURS["forgetting"], markeredgewidth=2, zorder=5)
        kept = _thinned(panel.position)
        axis.set_xticks(panel.position[kept], [panel.ticks[i] for i in kept])
        axis.set(title=_title(panel.method), xlabel=_title(panel.name))
    lowest = min(-2, *(axis.get_ylim()[0] for axis in axes))
    for axis in axes:
        axis.set_ylim(lowest, 102)
    _outer_labels(axes, None, "percent")
    handles = [Line2D([], [], color=colour, marker="o") for colour in METRIC_COLOURS.values()]
    labels = list(METRIC_COLOURS)
    for method, dash in bounds.items():
        if method in stream.chosen:
            handles.append(Line2D([], [], color=panels.GREY, linestyle=dash))
            labels.append(f"{method}, average accuracy")
    handles.append(Line2D([], [], color="#b9bec6", linewidth=4, alpha=0.5))
    labels.append("chosen")
    if any(panel.diverged.any() for panel in found):
        handles.append(Line2D([], [], color=METRIC_COLOURS["forgetting"], marker="x", markeredgewidth=2, linestyle=""))
        labels.append("a seed diverged")
    _legend(figure, handles, labels)
    return figure


def stability_plasticity_plane(stream: Stream) -> Figure | None:
    """Forgetting (downwards) against learning accuracy, every configuration a point; None where none is defined."""
    points = panels.plane(stream)
    if not points:
        return None
    figure = Figure(figsize=(6.4, 4.1), layout="constrained")
    axis = figure.subplots()
    best = panels.front([point for point in points if point.method != UPPER_BOUND])
    axis.plot(*_coordinates(best), color="#6a7078", linewidth=5, alpha=0.25, solid_joinstyle="round", zorder=1)
    handles, labels = [Line2D([], [], color="#6a7078", linewidth=5, alpha=0.25)], ["Pareto front"]
    for method, style in panels.styles(stream).items():
        mine = [point for point in points if point.method == method]
        if not mine:
            continue
        axis.plot(*_coordinates(panels.front(mine)), color=style.colour, linewidth=1, zorder=2)
        marker: dict[str, Any] = {"marker": _MARKERS[style.marker], "color": style.colour, "linestyle": ""}
        for point in mine:
            x, y = float(point.learning.mean), float(point.forgetting.mean)
            if point.chosen:
                x_error, y_error = float(point.learning.std), float(point.forgetting.std)
                axis.errorbar(x, y, y_error, x_error, color=style.colour, linewidth=1, capsize=2, zorder=3)
            face = "none" if point.diverged else style.colour
            size, alpha = (8, 1.0) if point.chosen else (4.5, 0.75)
            axis.plot(x, y, **marker, markersize=size, markerfacecolor=face, alpha=alpha, zorder=4)
        handles.append(Line2D([], [], **marker))
        labels.append(_title(method))
    axis.invert_yaxis()
    axis.set(xlabel="learning accuracy (%): learns more →", ylabel="forgetting (%): forgets less →")
    if any(point.diverged for point in points):
        handles.append(Line2D([], [], marker="o", color="#6a7078", markerfacecolor="none", linestyle=""))
        labels.append("a seed diverged")
    _legend(figure, handles, labels)
    return figure


def _grid(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    num_columns = _num_columns(count)
    num_rows = math.ceil(count / num_columns)
    size = (max(num_columns * width + 0.7, 4.6), num_rows * height + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _num_columns(count: int) -> int:
    return min(count, 4) if count <= 12 else 5


def _outer_labels(axes: Sequence[Axes], x: str | None, y: str) -> None:
    """Labels and tick labels at the left and, if `x` is shared by all panels, at the lower edge of the grid only."""
    num_columns = _num_columns(len(axes))
    for index, axis in enumerate(axes):
        if index % num_columns:
            axis.tick_params(labelleft=False)
        else:
            axis.set_ylabel(y)
        if x is not None and index + num_columns < len(axes):
            axis.tick_params(labelbottom=False)
        elif x is not None:
            axis.set_xlabel(x)


def _band(axis: Axes, x: np.ndarray, spans: Spans, colour: str, dash: str, marker: str, band: bool = True) -> Line2D:
    (line,) = axis.plot(x, spans.mean, color=colour, linestyle=dash, marker=marker, markersize=3.5)
    if band:
        axis.fill_between(x, spans.mean - spans.std, spans.mean + spans.std, color=colour, alpha=0.15, linewidth=0)
    return line


def _coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [float(point.learning.mean) for point in points], [float(point.forgetting.mean) for point in points]


def _task_ticks(num_tasks: int) -> list[int]:
    step = max(1, math.ceil(num_tasks / 6))
    return sorted({1, *range(step, num_tasks + 1, step)} if step > 1 else range(1, num_tasks + 1))


def _thinned(position: np.ndarray, count: int = 6) -> list[int]:
    """Indices of ticks that leave each other room: at least 1 / count of the axis apart."""
    room, kept = (position[-1] - position[0]) / count, [0]
    for index in range(1, len(position)):
        if position[index] - position[kept[-1]] >= room:
            kept.append(index)
    return kept


def _title(text: str, width: int = 26) -> str:
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _legend(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    entry = 0.55 + 0.065 * max(map(len, labels))  # inches: the mark, and text of this size
    columns = max(1, min(len(labels), int(figure.get_figwidth() / entry)))
    # A leading "_" would hide an entry: a zero-width space before it keeps it.
    labels = ["\u200b" + label if label.startswith("_") else label for label in labels]
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.17 * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=7.5)

"""The figures of one stream with matplotlib, for papers: SVG, PDF and PNG."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_jax.report import drawing, extents, front_figures, panels, styles
from cl_jax.report.cells import cut
from cl_jax.report.configurations import BASELINE, UPPER_BOUND
from cl_jax.report.drawing import look, mark, sheet, title
from cl_jax.report.measure import spoken
from cl_jax.report.panels import Point
from cl_jax.report.streams import Stream
from cl_jax.report.styles import GREY, RED

_BAR: dict[str, Any] = {"color": "#b9bec6", "linestyle": "-", "linewidth": 4, "alpha": 0.5}
_LETTERS = 17  # of a name below an axis, to the inch
_FRONT: dict[str, Any] = {"color": "#6a7078", "linestyle": "-", "linewidth": 5, "alpha": 0.25}


def write_figures(stream: Stream, folder: Path, name: str) -> list[Path]:
    """Writes `<folder>/<name>-<figure>.<svg|pdf|png>`, those figures that the results allow; returns the paths."""
    kind = stream.measure.kind
    trade_off = ("fronts", front_figures.fronts) if stream.measure.one_unit else ("plane", stability_plasticity_plane)
    drawings = {
        f"{kind}-matrix": matrices,
        f"{kind}-over-training": over_training,
        f"average-{kind}": average,
        "strength": strength_curves,
        trade_off[0]: trade_off[1],
    }
    paths = []
    with matplotlib.rc_context(drawing.STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a label in a script the font lacks
        for kind, draw in drawings.items():
            figure = draw(stream)
            if figure is not None:
                paths += drawing.save(figure, folder / f"{name}-{kind}")
    return paths


def matrices(stream: Stream) -> Figure:
    """Small multiples: R of each method's chosen configuration, mean over seeds; bright is good."""
    size, ticks, measure, words = 1.3, panels.task_ticks(stream.num_tasks), stream.measure, stream.wording
    low, high = extents.shades(stream)
    colours = f"viridis{'_r' * (not measure.higher_is_better)}"
    on, after = (f"{text} on" + f" {words.task}" * (not words.names) for text in (measure.name, "after training"))
    figure, axes = sheet(len(stream.chosen), size, size, on, after, [], right=0.65)
    edges = np.arange(stream.num_tasks + 1) + 0.5
    image = None
    for axis, (method, configuration) in zip(axes, stream.chosen.items(), strict=True):
        matrix = panels.matrix(configuration).mean
        fine: dict[str, Any] = {"rasterized": True} if stream.num_tasks > 10 else {"edgecolor": "w", "linewidth": 0.4}
        image = axis.pcolormesh(edges, edges, matrix, cmap=colours, vmin=low, vmax=high, **fine)
        axis.set(xticks=ticks, yticks=ticks, facecolor="#f0f1f3", ylim=(edges[-1], edges[0]))
        if words.names:
            names = _names(stream, ticks, size)
            axis.set_xticks(ticks, names)
            axis.set_yticks(ticks, names, rotation=90, va="center")
        axis.set_title(title(method, size))
        axis.grid(False)
        axis.tick_params(length=0, pad=2)
        axis.spines[:].set_visible(False)
        for i, j in np.argwhere(~np.isnan(matrix)) if stream.num_tasks <= panels.MAX_NUMBERED else ():
            bright = (matrix[i, j] - low) / ((high - low) or 1)
            colour = "white" if (bright if measure.higher_is_better else 1 - bright) < 0.6 else "black"
            number = f"{matrix[i, j]:.{measure.cell_decimals}f}"
            axis.text(j + 1, i + 1, number, ha="center", va="center", color=colour, fontsize=6.5)
    if image is not None:
        width, height = figure.get_size_inches()
        last = axes[min(panels.num_columns(len(axes)), len(axes)) - 1].get_position()
        place = (last.x1 + 0.15 / width, last.y1 - size / height, 0.1 / width, size / height)
        bar = figure.colorbar(image, cax=figure.add_axes(place), label=f"{measure.name}{measure.axis}")
        if not measure.higher_is_better:
            bar.ax.invert_yaxis()  # bright above, as where more is better
    return figure


def over_training(stream: Stream) -> Figure:
    """Small multiples: the measure on every task after each task, one panel a method, band +-1 std over seeds."""
    colours, ticks = styles.task_colours(stream.num_tasks), panels.task_ticks(stream.num_tasks)
    measure, words, first = stream.measure, stream.wording, stream.measure.first_row
    few = stream.num_tasks <= panels.MAX_BANDS
    legend = [(mark(colours[task - 1], dash="-"), words.one(task)) for task in ticks]
    legend.append((mark(GREY, dash=":", linewidth=0.9), "before it was trained"))
    width = 1.35
    figure, axes = sheet(len(stream.chosen), width, 1.2, words.axis, f"{measure.name}{measure.axis}", legend)
    x = np.arange(stream.num_tasks + 1)
    for axis, (method, configuration) in zip(axes, stream.chosen.items(), strict=True):
        spans = panels.over_training(configuration)
        for task, colour in enumerate(colours, start=1):
            own = spans.at((slice(None), task - 1))
            before = slice(first, task + 1)
            axis.plot(x[before], own.mean[before], color=colour, linestyle=":", linewidth=0.8, alpha=0.7)
            drawing.line(axis, x[task:], own.at(slice(task, None)), colour, marker="o" if few else "", band=few)
        axis.set(ylim=extents.levels(stream), xlim=(first - 0.15, stream.num_tasks + 0.15))
        if measure.range is not None:
            axis.set(yticks=range(measure.range[0], measure.range[1] + 1, 25))
        shown = ticks[stream.num_tasks > 6 :]
        axis.set_xticks([*range(1 - first), *shown], [*map(str, range(1 - first)), *_names(stream, shown, width)])
        axis.set_title(title(method, width))
    return figure


def average(stream: Stream) -> Figure | None:
    """The mean over the tasks seen so far, one line a method, band +-1 std over seeds; None for a single task."""
    if stream.num_tasks == 1:
        return None
    looks = styles.method_styles(stream)
    legend = [(mark(each.colour, *look(each)), method) for method, each in looks.items()]
    measure, words, width = stream.measure, stream.wording, 5.6
    title = f"{measure.name} on the {words.tasks} seen so far{measure.axis}"
    figure, (axis,) = sheet(1, width, 2.6, words.axis, title, legend, titled=False)
    x, band = np.arange(1, stream.num_tasks + 1), len(stream.chosen) <= panels.MAX_BANDS
    for method, style in looks.items():
        marker, dash = look(style)
        drawing.line(axis, x, panels.seen(stream.chosen[method]), style.colour, dash, marker, band)
    ticks = panels.task_ticks(stream.num_tasks)
    axis.set_xticks(ticks, _names(stream, ticks, width))
    return figure


def _names(stream: Stream, ticks: Sequence[int], width: float) -> list[str]:
    """What stands at an axis of this width, cut where names would touch."""
    most = _LETTERS * width / max(len(ticks), 1)
    names = stream.wording.ticks(ticks)
    return [cut(name, max(3, int(most if len(name) <= most else 0.8 * most))) for name in names]


def strength_curves(stream: Stream) -> Figure | None:
    """Metrics against each swept numerical hyper-parameter; None where nothing numerical was swept."""
    found = panels.strength_panels(stream)
    if not found:
        return None
    measure, colours = stream.measure, styles.metric_colours(stream.measure)
    legend = [(mark(colour, "o", "-"), metric) for metric, colour in colours.items()]
    bounds = {name: dash for name, dash in ((BASELINE, ":"), (UPPER_BOUND, "--")) if name in stream.chosen}
    legend += [(mark(GREY, dash=dash), f"{spoken(measure.end)} of {name}") for name, dash in bounds.items()]
    legend.append((Line2D([], [], **_BAR), "value chosen"))
    if any(panel.diverged.any() for panel in found):
        legend.append((mark(RED, "x", markeredgewidth=2), "a seed diverged"))
    width = 1.5 if len(found) > 1 else 2.6
    figure, axes = sheet(len(found), width, 1.3, None, measure.words.numbers, legend)
    for axis, panel in zip(axes, found, strict=True):
        for metric, spans in panel.metrics.items():
            drawing.line(axis, panel.position, spans, colours[metric])
        for method, dash in bounds.items():
            axis.axhline(panels.reference(stream, method), color=GREY, linestyle=dash, linewidth=1.1)
        for chosen in panel.chosen:
            axis.axvline(panel.position[chosen], zorder=0, **_BAR)
        for position in panel.position[panel.diverged]:
            axis.plot(position, 0, marker="x", color=RED, markeredgewidth=2, zorder=5)
        kept = panels.thinned(panel.position, 5)
        axis.set_xticks(panel.position[kept], [panel.ticks[i] for i in kept])
        axis.set_ylim(extents.ends(found, stream))
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
    names = (stream.measure.learning_axis, stream.measure.forgetting_axis)
    figure, (axis,) = sheet(1, 5.6, 3.3, *names, legend, titled=False)
    axis.plot(*_coordinates(best), zorder=1, **_FRONT)
    # The bounds come last: other points must not hide them.
    for method, style in sorted(shown.items(), key=lambda item: item[1].colour == GREY):
        axis.plot(*_coordinates(panels.front(_of(points, method))), color=style.colour, linewidth=1, zorder=2)
        for point in _of(points, method):
            drawing.point(axis, point, style, bars=point.chosen)
    axis.invert_yaxis()
    return figure


def _of(points: Sequence[Point], method: str) -> list[Point]:
    return [point for point in points if point.method == method]


def _coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [float(point.learning.mean) for point in points], [float(point.forgetting.mean) for point in points]

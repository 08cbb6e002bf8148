"""What the figures show, free of any drawing library: means and spreads over seeds, in percent, and colours."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cl_jax import metrics
from cl_jax.report.configurations import BASELINE, UPPER_BOUND, Configuration, Stream, choose
from cl_jax.report.summary import is_number, short_names, tried_values
from cl_jax.report.tables import describe, format_value
from cl_jax.statistics import pareto_front

# Read on white and on near-black, and told apart by most colour-blind readers in this order.
COLOURS = ("#2f7fd1", "#e07b1a", "#1f9e77", "#d1495b", "#8e6bc9", "#a3762b", "#d268a8", "#7f9a1f", "#16a0b8")
GREY = "#8a8f98"
MARKERS = ("circle", "square", "diamond", "triangle-up")
DASHES = ("solid", "dash", "dot", "dashdot")
METRIC_COLOURS = {"average accuracy": COLOURS[0], "learning accuracy": COLOURS[2], "forgetting": COLOURS[3]}
_TASK_COLOURS = ("#4a58c8", "#1f86d1", "#17a39b", "#58ac4c", "#b5a42c", "#e0812a", "#d4504f")


class Style(NamedTuple):
    """How a method looks in every figure of a stream."""

    colour: str
    marker: str
    dash: str


class Spans(NamedTuple):
    """Mean and standard deviation over seeds, in percent; NaN where nothing was measured, or by one seed only."""

    mean: np.ndarray
    std: np.ndarray


class StrengthPanel(NamedTuple):
    """Metrics against one swept hyper-parameter of one method."""

    method: str
    name: str
    ticks: list[str]  # the values tried
    position: np.ndarray  # [V] where they stand on the axis: log10 where they span decades
    metrics: dict[str, Spans]  # metric -> [V]
    chosen: int | None  # index of the chosen value
    diverged: np.ndarray  # bool [V]
    logarithmic: bool


class Point(NamedTuple):
    """One configuration in the stability-plasticity plane, in percent."""

    method: str
    label: str
    learning: Spans
    forgetting: Spans
    chosen: bool
    diverged: bool


def spans(values: np.ndarray) -> Spans:
    """Mean and standard deviation (ddof 1) over the first axis, leaving NaN out."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0.0).sum(axis=0) / count
        variance = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0) / (count - 1)
        return Spans(100 * mean, 100 * np.where(count > 1, np.sqrt(variance), np.nan))


def styles(stream: Stream) -> dict[str, Style]:
    """Grey for the two bounds; the other methods get colours first, then the next marker and dash."""
    bounds = {BASELINE: Style(GREY, "x", "dot"), UPPER_BOUND: Style(GREY, "star", "dash")}
    others = [method for method in stream.chosen if method not in bounds]
    cycle = len(COLOURS)

    def style(method: str) -> Style:
        if method in bounds:
            return bounds[method]
        turn, colour = divmod(others.index(method), cycle)
        return Style(COLOURS[colour], MARKERS[turn % len(MARKERS)], DASHES[turn % len(DASHES)])

    return {method: style(method) for method in stream.chosen}


def task_colours(num_tasks: int) -> list[str]:
    """One colour a task, from early to late along a fixed ramp."""
    ramp = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in _TASK_COLOURS], np.float64)
    where = np.linspace(0, len(ramp) - 1, num_tasks) if num_tasks > 1 else np.zeros(1)
    channels = [np.interp(where, np.arange(len(ramp)), ramp[:, channel]) for channel in range(3)]
    return [f"#{int(r):02x}{int(g):02x}{int(b):02x}" for r, g, b in zip(*channels, strict=True)]


def shown(configuration: Configuration) -> np.ndarray:
    """bool [S]: the members a figure shows: the complete ones, or all while there is none."""
    return configuration.complete if configuration.complete.any() else np.ones_like(configuration.complete)


def matrix(configuration: Configuration) -> np.ndarray:
    """R [T, T] in percent, mean over seeds."""
    return spans(configuration.accuracy["test"][shown(configuration)]).mean


def over_training(configuration: Configuration) -> Spans:
    """[T + 1, T]: accuracy of each task after 0, 1, ..., T tasks."""
    members = shown(configuration)
    initial = configuration.initial["test"][members, None]
    return spans(np.concatenate([initial, configuration.accuracy["test"][members]], axis=1))


def seen(configuration: Configuration) -> Spans:
    """[T]: accuracy over the tasks seen so far, after each task."""
    return spans(metrics.seen_accuracy(configuration.accuracy["test"][shown(configuration)]))


def reference(stream: Stream, method: str) -> float:
    """Average accuracy of a bound, in percent; NaN where there is none."""
    if method not in stream.chosen:
        return np.nan
    return float(spans(stream.chosen[method].scores("average_accuracy")).mean)


def strength_panels(stream: Stream) -> list[StrengthPanel]:
    """One panel for each swept numerical hyper-parameter of each method.

    Where others are swept too, each value is shown by its best configuration by validation accuracy.
    """
    wanted = [
        _strength_panel(stream, method, name, label)
        for method, names in stream.swept.items()
        for name, label in short_names(names).items()
    ]
    return [panel for panel in wanted if panel is not None]


def axis_positions(values: Sequence[float]) -> tuple[np.ndarray, bool]:
    """Where sorted values stand on an axis, and whether it is logarithmic (base 10).

    Logarithmic if none is negative and the positive ones span a decade; 0 then stands one decade before the smallest.
    """
    positive = [value for value in values if value > 0]
    if values[0] < 0 or not positive or positive[-1] / positive[0] < 10:
        return np.array(values, np.float64), False
    zero = math.log10(positive[0]) - 1
    return np.array([math.log10(value) if value > 0 else zero for value in values]), True


def plane(stream: Stream) -> list[Point]:
    """Every configuration with a complete member; none for a stream of one task."""
    points = []
    for configuration in stream.configurations:
        learning = spans(configuration.scores("learning_accuracy"))
        forgetting = spans(configuration.scores("forgetting"))
        if np.isfinite(learning.mean) and np.isfinite(forgetting.mean):
            method = configuration.method
            short = short_names(stream.swept[method])
            label = ", ".join(describe({short[name]: configuration.hyper_parameters[name] for name in short}))
            chosen = stream.chosen[method] is configuration
            diverged = bool(configuration.diverged.any())
            points.append(Point(method, label, learning, forgetting, chosen, diverged))
    return points


def front(points: Sequence[Point]) -> list[Point]:
    """The points of the Pareto front (more learning, less forgetting), from little learning to much."""
    x = np.array([point.learning.mean for point in points])
    y = np.array([point.forgetting.mean for point in points])
    members = [point for point, best in zip(points, pareto_front(x, -y), strict=True) if best]
    return sorted(members, key=lambda point: (float(point.learning.mean), float(point.forgetting.mean)))


def _strength_panel(stream: Stream, method: str, name: str, label: str) -> StrengthPanel | None:
    candidates = [each for each in stream.of(method) if each.complete.any() and is_number(each.hyper_parameters[name])]
    values = tried_values(candidates, name)
    if len(values) < 2:
        return None
    best = [choose([each for each in candidates if each.hyper_parameters[name] == value]) for value in values]
    position, logarithmic = axis_positions(values)
    chosen = stream.chosen[method].hyper_parameters[name]
    measured = {}
    for metric in METRIC_COLOURS:
        series = [spans(each.scores(metric.replace(" ", "_"))) for each in best]
        measured[metric] = Spans(np.array([each.mean for each in series]), np.array([each.std for each in series]))
    return StrengthPanel(
        method,
        label,
        ticks=[format_value(value) for value in values],
        position=position,
        metrics=measured,
        chosen=values.index(chosen) if chosen in values else None,
        diverged=np.array([bool(each.diverged.any()) for each in best]),
        logarithmic=logarithmic,
    )

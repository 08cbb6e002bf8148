"""What the figures show, free of any drawing library: means and spreads over seeds, as they are shown."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cl_jax import metrics
from cl_jax.report.configurations import Configuration, Varied
from cl_jax.report.kinds import ACCURACY
from cl_jax.report.measure import Measure, spoken
from cl_jax.report.settings import describe, format_value, is_number, short_names, tried_values
from cl_jax.report.streams import Stream
from cl_jax.statistics import pareto_front

MAX_BANDS = 6  # more bands than that hide each other
MOST_MARKERS = 40  # on a line
MAX_NUMBERED = 6  # tasks up to which the cells of a matrix carry their number


class Spans(NamedTuple):
    """Mean and standard deviation over seeds, as shown (accuracy in percent); NaN where nothing was measured, or by one
    seed only.
    """

    mean: np.ndarray
    std: np.ndarray
    n: np.ndarray  # seeds

    def at(self, index: Any) -> "Spans":
        """Those of some entries."""
        return Spans(self.mean[index], self.std[index], self.n[index])

    def texts(self, measure: Measure = ACCURACY) -> list[str]:
        """`51.8 ± 2.2 %, n = 5` each: mean, standard error and seeds."""
        sem = self.std / np.sqrt(np.maximum(self.n, 1))
        digits, unit = measure.format.decimals, measure.words.unit
        return [
            f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if np.isfinite(error) else "") + f"{unit}, n = {n}"
            for mean, error, n in zip(np.ravel(self.mean), np.ravel(sem), np.ravel(self.n), strict=True)
        ]


class StrengthPanel(NamedTuple):
    """Metrics against one swept hyper-parameter of one method."""

    method: str
    name: str
    ticks: list[str]  # the values tried, as on the axis
    position: np.ndarray  # [V] where they stand on the axis: log10 where they span decades
    metrics: dict[str, Spans]  # metric -> [V]
    chosen: list[int]  # indices of the chosen values, more than one where it is chosen per task
    diverged: np.ndarray  # bool [V]
    logarithmic: bool

    @property
    def axis_name(self) -> str:
        """What stands at the axis."""
        return self.name + " (log scale)" * self.logarithmic


class Point(NamedTuple):
    """One configuration in the stability-plasticity plane, as shown."""

    method: str
    label: str
    learning: Spans
    forgetting: Spans
    chosen: bool
    diverged: bool
    together: bool = False  # put together of several configurations: no trade-off that one run reached


def spans(values: np.ndarray, scale: float = 100.0) -> Spans:
    """Mean and standard deviation (ddof 1) over the first axis, leaving NaN out.

    Args:
        scale: what 1 is shown as, 100 for percent.
    """
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0.0).sum(axis=0) / count
        variance = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0) / (count - 1)
        return Spans(scale * mean, scale * np.where(count > 1, np.sqrt(variance), np.nan), count)


def shown(configuration: Configuration) -> np.ndarray:
    """bool [S]: the members a figure shows: the complete ones that are reported, or all of these while none is."""
    return configuration.reported if configuration.reported.any() else configuration.counted


def matrix(configuration: Configuration) -> Spans:
    """R [T, T] as shown, over seeds; NaN on future tasks where those have no active outputs."""
    return _measured(configuration, configuration.matrix["test"][shown(configuration)], first=1)


def over_training(configuration: Configuration) -> Spans:
    """[T + 1, T]: the measure on each task after 0, 1, ..., T tasks; NaN as in `matrix`."""
    members = shown(configuration)
    initial = configuration.initial["test"][members, None]
    return _measured(configuration, np.concatenate([initial, configuration.matrix["test"][members]], axis=1), first=0)


def _measured(configuration: Configuration, values: np.ndarray, first: int) -> Spans:
    """Over seeds; rows of `values` [S, ., T] start after `first` tasks."""
    after, task = np.arange(values.shape[1])[:, None] + first, np.arange(1, values.shape[2] + 1)
    future = configuration.class_incremental & (task > after)
    return spans(np.where(future, np.nan, values), configuration.measure.format.scale)


def seen(configuration: Configuration) -> Spans:
    """[T]: the mean over the tasks seen so far, after each task; NaN, and left out, before the first reported one."""
    first = configuration.first_task - 1
    found = metrics.seen_accuracy(configuration.matrix["test"][shown(configuration)][:, first:, first:])
    return of_metric(configuration, np.pad(found, ((0, 0), (first, 0)), constant_values=np.nan))


def of_metric(configuration: Configuration, values: np.ndarray) -> Spans:
    """Of values in the measure of the runs."""
    return spans(values, configuration.measure.format.scale)


def reference(stream: Stream, method: str) -> float:
    """Where a bound ends, as shown; NaN where there is none."""
    if method not in stream.chosen:
        return np.nan
    bound = stream.chosen[method]
    return float(of_metric(bound, bound.scores(stream.measure.end)).mean)


def strength_panels(stream: Stream) -> list[StrengthPanel]:
    """One panel for each swept numerical hyper-parameter of each method.

    Where others are swept too, each value is shown by its best configuration on validation.
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
    if values[0] < 0 or not positive or positive[-1] / positive[0] < 9.99:  # float32 3e-4 / 3e-5
        return np.array(values, np.float64), False
    zero = math.log10(positive[0]) - 1
    return np.array([math.log10(value) if value > 0 else zero for value in values]), True


def tick(value: float) -> str:
    """A hyper-parameter as short as an axis wants it: 1000, 1e4, 0.001, 3e-4."""
    text = format_value(value)
    if value and (value >= 1e4 or 0 < value < 1e-3):
        digits, exponent = f"{value:.5e}".split("e")
        text = min(text, f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}", key=len)
    return text


def task_ticks(num_tasks: int) -> list[int]:
    """About six of the tasks."""
    step = -(-num_tasks // 6)
    return sorted({1, *range(step, num_tasks + 1, step)})


def num_columns(count: int) -> int:
    """Five, four or three panels side by side, whichever leaves the last row fullest."""
    return 4 if count <= 4 else min((5, 4, 3), key=lambda columns: -count % columns)


def thinned(position: np.ndarray, count: int = 6) -> list[int]:
    """Indices of ticks that leave each other room: at least 1 / count of the axis apart."""
    room, kept = (position[-1] - position[0]) / count, [0]
    for index in range(1, len(position)):
        if position[index] - position[kept[-1]] >= room:
            kept.append(index)
    return kept


def plane(stream: Stream) -> list[Point]:
    """Every configuration with a reported member, and what was put together of several; none for one task."""
    points = []
    together = [each for each in stream.chosen.values() if not any(each is other for other in stream.configurations)]
    for configuration in stream.configurations + together:
        learning = of_metric(configuration, configuration.scores(stream.measure.learning))
        forgetting = of_metric(configuration, configuration.scores("forgetting"))
        if np.isfinite(learning.mean) and np.isfinite(forgetting.mean):
            method = configuration.method
            short = short_names(stream.swept[method])
            label = ", ".join(describe({short[each]: configuration.hyper_parameters[each] for each in short}))
            chosen = stream.chosen[method] is configuration
            diverged, mixed = bool(configuration.diverged.any()), any(configuration is each for each in together)
            points.append(Point(method, label, learning, forgetting, chosen, diverged, mixed))
    return points


def front(points: Sequence[Point]) -> list[Point]:
    """The points of the Pareto front (more learning, less forgetting), from little learning to much."""
    points = [point for point in points if not point.together]
    x = np.array([point.learning.mean for point in points])
    y = np.array([point.forgetting.mean for point in points])
    members = [point for point, best in zip(points, pareto_front(x, -y), strict=True) if best]
    return sorted(members, key=lambda point: (float(point.learning.mean), float(point.forgetting.mean)))


def _strength_panel(stream: Stream, method: str, name: str, label: str) -> StrengthPanel | None:
    candidates = [each for each in stream.of(method) if each.reported.any() and is_number(each.hyper_parameters[name])]
    values = tried_values(candidates, name)
    if len(values) < 2:
        return None
    best = [
        min((each for each in candidates if each.hyper_parameters[name] == value), key=lambda each: each.place)
        for value in values
    ]
    position, logarithmic = axis_positions(values)
    chosen = stream.chosen[method].hyper_parameters[name]
    chosen = chosen if isinstance(chosen, Varied) else (chosen,)
    measured = {}
    for metric in stream.measure.curves:
        series = [of_metric(each, each.scores(metric)) for each in best]
        measured[spoken(metric)] = Spans(*(np.array(parts) for parts in zip(*series, strict=True)))
    return StrengthPanel(
        method,
        label,
        ticks=[tick(value) for value in values],
        position=position,
        metrics=measured,
        chosen=[index for index, value in enumerate(values) if value in chosen],
        diverged=np.array([bool(each.diverged.any()) for each in best]),
        logarithmic=logarithmic,
    )

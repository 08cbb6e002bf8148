"""Learning against forgetting where both are of one unit: every method's curve, and methods at equal learning."""

from typing import NamedTuple

import numpy as np

from cl_jax import fronts
from cl_jax.fronts import SHARES, Curve, Matched
from cl_jax.report.configurations import BASELINE, Configuration
from cl_jax.report.panels import Point, plane
from cl_jax.report.streams import Stream


class Drawn(NamedTuple):
    """What the figure shows of a method, as shown."""

    points: list[Point]
    line: tuple[np.ndarray, np.ndarray]  # x, y: what forgetting at equal learning is read off


class Noise(NamedTuple):
    """Standard deviation over seeds alone, of the runs of one configuration."""

    learning: float
    forgetting: float


class Compared(NamedTuple):
    """A method at the levels of learning [K]."""

    forgetting: Matched
    difference: Matched | None  # to fine-tuning; None: it is fine-tuning itself
    hypervolume: float
    num_points: int  # configurations on its curve


class Trade(NamedTuple):
    """The comparison of a stream's methods."""

    levels: np.ndarray  # float64 [K], learning; NaN where fine-tuning has no range
    methods: dict[str, Compared]
    worst: float  # the most forgetting of any configuration, the hypervolume's reference
    noise: Noise
    num_left_out: int  # configurations with a diverged seed


def drawn(stream: Stream) -> dict[str, Drawn]:
    """Of each method that has any points, in the order of the stream."""
    every, found = [point for point in plane(stream) if not point.diverged], {}
    for method in stream.chosen:
        mine = [point for point in every if point.method == method]
        own = [point for point in mine if not point.together]
        if mine:
            x, y = ([float(getattr(point, name).mean) for point in own] for name in ("learning", "forgetting"))
            found[method] = Drawn(mine, fronts.envelope(x, y))
    return found


def compare(stream: Stream) -> Trade | None:
    """Methods at a quarter, half and three quarters of the range in which fine-tuning learns; None: no points."""
    curves = {method: curve(stream, method) for method in stream.chosen}
    known = {method: each for method, each in curves.items() if _means(each)[0].size}
    if not known:
        return None
    worst = max(float(_means(each)[1].max()) for each in known.values())
    baseline = known.get(BASELINE)
    levels = np.full(len(SHARES), np.nan) if baseline is None else fronts.levels_within(baseline)
    methods = {}
    for method, each in known.items():
        learning, forgetting = _means(each)
        difference = None
        if baseline is not None and each is not baseline:
            difference = fronts.difference_at(each, baseline, levels)
        area = fronts.hypervolume(learning, forgetting, worst)
        methods[method] = Compared(fronts.forgetting_at(each, levels), difference, area, len(learning))
    left_out = sum(_diverged(each) for each in stream.configurations)
    return Trade(levels, methods, worst, noise(stream), left_out)


def curve(stream: Stream, method: str) -> Curve:
    """A method's configurations over the reported seeds, without those stopped or with a diverged seed."""
    kept = [each for each in stream.of(method) if _counts(each)]
    every = Curve(_scores(stream, kept, stream.measure.learning), _scores(stream, kept, "forgetting"), stream.seeds)
    return every.at_seeds(stream.seeds[np.isfinite(every.forgetting).any(axis=0)])


def noise(stream: Stream) -> Noise:
    """Over all configurations of all methods."""
    kept = [each for each in stream.configurations if _counts(each)]
    learning, forgetting = (_scores(stream, kept, metric) for metric in (stream.measure.learning, "forgetting"))
    return Noise(fronts.noise_floor(learning), fronts.noise_floor(forgetting))


def _scores(stream: Stream, configurations: list[Configuration], metric: str) -> np.ndarray:
    """float64 [C, S]."""
    found = np.full((len(configurations), len(stream.seeds)), np.nan)
    for row, each in zip(found, configurations, strict=True):
        row[np.searchsorted(stream.seeds, each.seeds[each.reported])] = each.scores(metric)
    return found


def _means(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Of the configurations that have a finished seed: learning and forgetting, over seeds."""
    known = np.isfinite(curve.learning) & np.isfinite(curve.forgetting)
    kept = known.any(axis=1)
    learning, forgetting = (
        np.where(known, each, 0.0)[kept].sum(axis=1) / known[kept].sum(axis=1)
        for each in (curve.learning, curve.forgetting)
    )
    return learning, forgetting


def _counts(configuration: Configuration) -> bool:
    return not configuration.stopped.any() and not _diverged(configuration)


def _diverged(configuration: Configuration) -> bool:
    return bool((configuration.diverged & configuration.counted).any())

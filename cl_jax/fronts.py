"""Methods compared where they learn the same: the curve of a method through its settings, and what can be had of both.

How much a method forgets says little beside how much it learned: a smaller learning rate does less of either. So a
method is a curve, a point for each of its C configurations (a swept learning rate, say) and S seeds, and curves are
compared at equal learning, or by all that lies behind their fronts. Pure numpy. More learning is better, less
forgetting is; both are in the same unit, such as bits per byte.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

SHARES = (0.25, 0.5, 0.75)
_ROUNDING = 1e-9  # a mean of equal numbers is not always that number: an end is still reached


class Curve(NamedTuple):
    """Where one method gets to. A pair with a NaN is no point."""

    learning: np.ndarray  # float64 [C, S]
    forgetting: np.ndarray  # float64 [C, S]
    seeds: np.ndarray  # int [S], distinct

    def at_seeds(self, seeds: np.ndarray) -> "Curve":
        """The same with these of its seeds alone, in their order."""
        kept = [int(np.flatnonzero(self.seeds == seed)[0]) for seed in seeds]
        return Curve(self.learning[:, kept], self.forgetting[:, kept], self.seeds[kept])


class Matched(NamedTuple):
    """Forgetting at given learning [K], with a percentile bootstrap interval over seeds."""

    value: np.ndarray  # float64 [K]; NaN where the curve does not reach
    low: np.ndarray  # NaN for fewer than two seeds, and where fewer than half of the resampled curves reach
    high: np.ndarray


def envelope(learning: ArrayLike, forgetting: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The curve that is interpolated along, from little learning to much: x [m] and y [m] of points [n].

    Those points that no other beats in both, so that y never falls: where a curve turns back (a learning rate so large
    that less is learned and more forgotten), the part that is worse in both counts for nothing. It still begins at the
    least learning of all points: as far as the first point of the front, y is that point's, which learns more and
    forgets no more. Points with NaN are left out.
    """
    x, y = (np.asarray(values, np.float64)[None] for values in (learning, forgetting))
    x, y = _envelope(x, y)
    known = np.isfinite(x[0])
    return x[0, known], y[0, known]


def forgetting_at(
    curve: Curve, levels: ArrayLike, *, coverage: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Matched:
    """Forgetting along a method's curve where it has learned so much.

    Of each configuration the means over its seeds make a point, and between the points of their `envelope` lines are
    drawn. Nothing is said beyond the curve's ends. For the interval, seeds are drawn with replacement, the same for
    every configuration, and the curve is made anew; with few seeds such an interval is too narrow.

    Args:
        levels: float [K], of learning.
        coverage: aimed at by the interval, between its (1 - coverage) / 2 and (1 + coverage) / 2 quantiles.
        num_resamples: of the bootstrap. seed: of its random numbers, so that a report is reproducible.
    """
    levels, number = _levels(levels), len(curve.seeds)
    whole = _at(curve, np.ones((1, number)), levels)[0]
    return _with_interval(whole, _at(curve, _draws(number, num_resamples, seed), levels), number, coverage)


def difference_at(
    curve: Curve,
    baseline: Curve,
    levels: ArrayLike,
    *,
    coverage: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Matched:
    """`forgetting_at` of a method minus that of a baseline, below 0 where it forgets less for the same learning.

    Paired where the two share seeds, at least two: only these count, and both curves are resampled with the same draws.
    Otherwise each is resampled on its own.
    """
    levels = _levels(levels)
    shared = np.intersect1d(curve.seeds, baseline.seeds)
    if len(shared) > 1:
        curve, baseline = curve.at_seeds(shared), baseline.at_seeds(shared)
    pair, counts = (curve, baseline), (len(curve.seeds), len(baseline.seeds))
    seeds = (seed, seed if len(shared) > 1 else seed + 1)
    whole, other = (_at(each, np.ones((1, number)), levels)[0] for each, number in zip(pair, counts, strict=True))
    drawn, others = (
        _at(each, _draws(number, num_resamples, at), levels)
        for each, number, at in zip(pair, counts, seeds, strict=True)
    )
    return _with_interval(whole - other, drawn - others, min(counts), coverage)


def levels_within(curve: Curve, shares: Sequence[float] = SHARES) -> np.ndarray:
    """float64 [K]: learning at these shares of the way from the least to the most that a curve reaches, of seed means.

    NaN where it has fewer than two points.
    """
    learning, _ = _means(curve, np.ones((1, len(curve.seeds))))
    known = learning[np.isfinite(learning)]
    if len(known) < 2:
        return np.full(len(shares), np.nan)
    return known.min() + np.asarray(shares, np.float64) * (known.max() - known.min())


def hypervolume(learning: ArrayLike, forgetting: ArrayLike, worst: float) -> float:
    """The area of all (learning, forgetting) that some of the points [n] is at least as good as, within a reference.

    The reference point is no learning, with `worst` forgetting: a point (l, f) covers the rectangle from it, l wide and
    worst - f high; the area is that of all rectangles together, so that beaten points add nothing. What learns less
    than nothing or forgets more than `worst` covers nothing. In squared units; more is better; more points never make
    it less, so that methods compare only where as many settings were tried.

    Source: Zitzler and Thiele 1998, Multiobjective optimization using evolutionary algorithms, PPSN V.
    """
    x, y = (np.asarray(values, np.float64) for values in (learning, forgetting))
    known = np.isfinite(x) & np.isfinite(y)
    wide, high = np.maximum(x[known], 0.0), np.maximum(worst - y[known], 0.0)
    order = np.argsort(wide)
    wide, high = wide[order], high[order]
    highest = np.maximum.accumulate(high[::-1])[::-1]  # of the points at least as wide
    return float(np.sum(np.diff(wide, prepend=0.0) * highest))


def noise_floor(values: ArrayLike) -> float:
    """The standard deviation over seeds of one and the same configuration, pooled over configurations [C, S].

    sqrt(sum_c sum_s (v[c, s] - mean_s v[c, s])^2 / sum_c (S_c - 1)), NaN left out: what a difference must exceed to be
    more than chance. NaN where no configuration has two seeds.
    """
    values = np.atleast_2d(np.asarray(values, np.float64))
    known = np.isfinite(values)
    counts = known.sum(axis=1)
    free = int(np.sum(np.maximum(counts - 1, 0)))
    if not free:
        return float("nan")
    means = np.where(known, values, 0.0).sum(axis=1) / np.maximum(counts, 1)
    squares = np.where(known, values - means[:, None], 0.0) ** 2
    return float(np.sqrt(squares.sum() / free))


def _levels(levels: ArrayLike) -> np.ndarray:
    return np.atleast_1d(np.asarray(levels, np.float64))


def _draws(number: int, num_resamples: int, seed: int) -> np.ndarray:
    """float64 [R, S]: how often each seed is drawn."""
    drawn = np.random.default_rng(seed).integers(max(number, 1), size=(num_resamples, number))
    return (drawn[:, :, None] == np.arange(number)).sum(axis=1).astype(np.float64)


def _means(curve: Curve, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Learning and forgetting [R, C] of each configuration, means over the seeds as drawn; NaN where none was."""
    known = np.isfinite(curve.learning) & np.isfinite(curve.forgetting)
    count = draws @ known.T.astype(np.float64)
    learning, forgetting = (
        draws @ np.where(known, values, 0.0).T / np.where(count > 0, count, np.nan)
        for values in (curve.learning, curve.forgetting)
    )
    return learning, forgetting


def _envelope(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`envelope` of rows [R, C]; what is left out stands at the end, with infinite x and y."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(known, x, np.inf), np.where(known, y, np.inf)
    order = np.lexsort((-y, x), axis=-1)  # of equal learning, the least forgetting last
    x, y = np.take_along_axis(x, order, axis=-1), np.take_along_axis(y, order, axis=-1)
    least = np.minimum.accumulate(y[:, ::-1], axis=-1)[:, ::-1]  # of all that learn as much or more
    kept = (y <= least) | (np.arange(x.shape[-1]) == 0)
    x, y = np.where(kept, x, np.inf), np.where(kept, least, np.inf)
    order = np.argsort(x, axis=-1, kind="stable")
    return np.take_along_axis(x, order, axis=-1), np.take_along_axis(y, order, axis=-1)


def _at(curve: Curve, draws: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Forgetting [R, K] at levels [K] along the curves of resampled seeds; NaN beyond their ends."""
    found = np.full((len(draws), len(levels)), np.nan)
    if not len(curve.learning):
        return found
    x, y = _envelope(*_means(curve, draws))
    for k, level in enumerate(levels):
        below = np.sum(x <= level + _ROUNDING, axis=-1)  # points that learn no more
        rows = np.flatnonzero(below > 0)
        left = below[rows] - 1
        right = np.minimum(left + 1, x.shape[-1] - 1)
        x0, x1, y0, y1 = x[rows, left], x[rows, right], y[rows, left], y[rows, right]
        between, exact = np.isfinite(x1) & (x1 > x0), abs(x0 - level) <= _ROUNDING
        share = (level - x0[between]) / (x1 - x0)[between]
        found[rows[between], k] = y0[between] + share * (y1[between] - y0[between])
        found[rows[exact], k] = y0[exact]
    return found


def _with_interval(whole: np.ndarray, resampled: np.ndarray, number: int, coverage: float) -> Matched:
    """`whole` [K] with quantiles of the curves [R, K] that reach."""
    low, high = np.full(whole.shape, np.nan), np.full(whole.shape, np.nan)
    for k, column in enumerate(resampled.T):
        reached = column[np.isfinite(column)]
        if number > 1 and np.isfinite(whole[k]) and 2 * len(reached) >= len(column):
            low[k], high[k] = np.quantile(reached, [(1 - coverage) / 2, (1 + coverage) / 2])
    return Matched(whole, low, high)

"""What a handful of seeds can say: spread, paired differences with an interval, Pareto fronts. Pure numpy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Spread(NamedTuple):
    """A mean over seeds and how sure it is."""

    mean: float
    std: float  # with ddof = 1; NaN for fewer than two seeds
    sem: float  # std / sqrt(n), the standard error of the mean
    n: int


class Difference(NamedTuple):
    """A mean paired difference and its percentile bootstrap interval."""

    mean: float
    low: float  # NaN for fewer than two pairs
    high: float
    n: int


def spread(values: ArrayLike) -> Spread:
    """Mean, standard deviation (ddof 1) and standard error over the values [n]; NaN where n is too small."""
    values = np.asarray(values, np.float64)
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    std = float(values.std(ddof=1)) if n > 1 else np.nan
    return Spread(mean, std, std / n**0.5 if n > 1 else np.nan, n)


def paired_difference(
    values: ArrayLike, baseline: ArrayLike, *, level: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> Difference:
    """mean_s (values[s] - baseline[s]) with a percentile bootstrap interval over the pairs.

    Seeds are resampled with replacement `num_resamples` times; the interval runs between the (1 - level) / 2 and
    (1 + level) / 2 quantiles of the resampled means. With few seeds such an interval is too narrow: below about ten,
    read it as a lower bound on the doubt.

    Args:
        values: float [n], one value a seed.
        baseline: float [n], the baseline's value of the same seeds in the same order.
        level: coverage aimed at.
        num_resamples: bootstrap resamples.
        seed: of the resampling, so that a report is reproducible.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    difference = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    if difference.ndim != 1 or np.shape(values) != np.shape(baseline):
        raise ValueError(f"pairs are two arrays [n], got {np.shape(values)} and {np.shape(baseline)}.")
    n = len(difference)
    mean = float(difference.mean()) if n else np.nan
    if n < 2:
        return Difference(mean, np.nan, np.nan, n)
    resamples = np.random.default_rng(seed).integers(n, size=(num_resamples, n))
    low, high = np.quantile(difference[resamples].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Difference(mean, float(low), float(high), n)


def pareto_front(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """bool [n]: points that no other point beats, larger being better in both; points with NaN are never in it.

    One point beats another if it is at least as good in both and better in one; equal points do not beat each other.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    no_worse = (x[:, None] >= x) & (y[:, None] >= y)
    better = (x[:, None] > x) | (y[:, None] > y)
    return ~(no_worse & better).any(axis=0) & ~np.isnan(x) & ~np.isnan(y)


def r_squared(x: ArrayLike, y: ArrayLike, degree: int = 1) -> float:
    """1 - sum (y - p(x))^2 / sum (y - mean y)^2 for the polynomial p of that degree with least squares.

    NaN where there are no more points than coefficients, or y is constant.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    spread_y = float(np.sum((y - y.mean()) ** 2)) if len(y) else 0.0
    if len(np.unique(x)) <= degree + 1 or spread_y == 0:
        return float("nan")
    return 1 - float(np.sum((y - np.polyval(np.polyfit(x, y, degree), x)) ** 2)) / spread_y

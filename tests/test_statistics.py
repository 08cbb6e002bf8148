"""Statistics over seeds against closed forms."""

import numpy as np
import pytest

from cl_jax.statistics import paired_difference, pareto_front, r_squared, spread


def test_spread_by_hand():
    mean, std, sem, n = spread([1.0, 2.0, 3.0, 6.0])
    assert (mean, n) == (3.0, 4)
    np.testing.assert_allclose([std, sem], [np.sqrt(14 / 3), np.sqrt(14 / 12)])


def test_spread_of_too_few():
    one = spread([0.5])
    assert one.mean == 0.5 and np.isnan([one.std, one.sem]).all() and one.n == 1
    none = spread([])
    assert np.isnan([none.mean, none.std, none.sem]).all() and none.n == 0


def test_interval_of_two_pairs_is_known():
    # The resampled mean is 0, 1/2, 1 with probability 1/4, 1/2, 1/4: both 2.5 % tails lie within the outer atoms.
    difference = paired_difference([1.0, 3.0], [1.0, 2.0])
    assert difference == (0.5, 0.0, 1.0, 2)
    # At a level below one half the quantiles fall into the middle atom.
    assert paired_difference([1.0, 3.0], [1.0, 2.0], level=0.3) == (0.5, 0.5, 0.5, 2)


def test_pairing_removes_what_seeds_share():
    seeds = np.random.default_rng(0).normal(size=8)
    difference = paired_difference(seeds + 0.25, seeds)
    np.testing.assert_allclose(difference[:3], 0.25, rtol=1e-12)


def test_interval_approaches_the_normal_one():
    values = np.random.default_rng(1).normal(0.3, 2.0, size=400)
    mean, low, high, n = paired_difference(values, np.zeros(400))
    sem = values.std(ddof=1) / 20
    # 10 000 resamples place a 2.5 % quantile within about 0.03 standard errors; 0.1 leaves room for skewness.
    np.testing.assert_allclose([low, high], [mean - 1.96 * sem, mean + 1.96 * sem], atol=0.1 * sem)
    assert n == 400


def test_interval_is_reproducible():
    values, baseline = np.random.default_rng(2).normal(size=(2, 6))
    assert paired_difference(values, baseline) == paired_difference(values, baseline)
    assert paired_difference(values, baseline) != paired_difference(values, baseline, seed=1)


def test_one_pair_has_no_interval():
    difference = paired_difference([0.75], [0.5])
    assert difference.mean == 0.25 and np.isnan([difference.low, difference.high]).all()


def test_pairs_must_match():
    with pytest.raises(ValueError, match="pairs"):
        paired_difference([1.0, 2.0], [1.0])


def test_pareto_front():
    x = [1.0, 2.0, 3.0, 2.0, 1.0, np.nan, 3.0]
    y = [3.0, 2.0, 1.0, 1.0, 1.0, 9.0, 1.0]
    np.testing.assert_array_equal(pareto_front(x, y), [True, True, True, False, False, False, True])
    assert pareto_front([], []).shape == (0,)


def test_r_squared():
    x = np.arange(6.0)
    noise = np.random.default_rng(0).normal(size=6)
    assert r_squared(x, 3 - 2 * x) == pytest.approx(1) and r_squared(x, x**2, 2) == pytest.approx(1)
    assert r_squared(x, x**2) == pytest.approx(np.corrcoef(x, x**2)[0, 1] ** 2)  # of a line, the squared correlation
    assert r_squared(x, noise) == pytest.approx(np.corrcoef(x, noise)[0, 1] ** 2)
    assert np.isnan([r_squared(x, np.ones(6)), r_squared([0.0, 1.0], [0.0, 1.0]), r_squared([], [])]).all()

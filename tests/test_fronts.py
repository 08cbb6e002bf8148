"""Curves compared at equal learning, fronts and their area, the noise of seeds: known answers."""

import numpy as np
import pytest

from cl_jax.fronts import Curve, difference_at, envelope, forgetting_at, hypervolume, levels_within, noise_floor

SEEDS = np.array([0, 1, 2])


def curve(learning: list, forgetting: list, noise: float = 0.0, seeds: np.ndarray = SEEDS) -> Curve:
    """The same points for every seed, a multiple of `noise` apart in forgetting, 0 on average."""
    x, y = (np.repeat(np.array(each, np.float64)[:, None], len(seeds), axis=1) for each in (learning, forgetting))
    return Curve(x, y + noise * (np.arange(len(seeds)) - (len(seeds) - 1) / 2), seeds)


def test_interpolates_between_neighbours_in_whatever_order() -> None:
    found = forgetting_at(curve([0.6, 0.2, 0.4], [0.9, 0.1, 0.3]), [0.2, 0.3, 0.4, 0.55, 0.6])
    np.testing.assert_allclose(found.value, [0.1, 0.2, 0.3, 0.75, 0.9])


def test_nothing_is_said_beyond_the_ends() -> None:
    found = forgetting_at(curve([0.2, 0.4], [0.1, 0.3]), [0.1999, 0.4001])
    assert np.isnan(np.concatenate(found)).all()
    assert np.isnan(forgetting_at(curve([], []), [0.3]).value).all()
    np.testing.assert_allclose(forgetting_at(curve([0.3], [0.5]), [0.3, 0.4]).value, [0.5, np.nan])


def test_the_part_of_a_curve_that_turns_back_counts_for_nothing() -> None:
    # Learning rates 1 to 4: the third learns most, the fourth less and forgets most.
    x, y = envelope([0.1, 0.3, 0.5, 0.4], [0.0, 0.1, 0.4, 2.0])
    np.testing.assert_allclose(x, [0.1, 0.3, 0.5])
    np.testing.assert_allclose(y, [0.0, 0.1, 0.4])
    found = forgetting_at(curve([0.1, 0.3, 0.5, 0.4], [0.0, 0.1, 0.4, 2.0]), [0.2, 0.4, 0.5])
    np.testing.assert_allclose(found.value, [0.05, 0.25, 0.4])


def test_a_beaten_start_takes_nothing_from_the_range() -> None:
    points = [0.1, 0.2, 0.3, 0.6], [0.2, 0.7, -0.1, 0.5]
    np.testing.assert_allclose(envelope(*points), [[0.1, 0.3, 0.6], [-0.1, -0.1, 0.5]])
    found = forgetting_at(curve(*points), [0.05, 0.1, 0.2, 0.45])
    np.testing.assert_allclose(found.value, [np.nan, -0.1, -0.1, 0.2])


def test_equal_learning_counts_by_its_least_forgetting() -> None:
    for order in ([0, 1, 2, 3], [3, 1, 2, 0], [2, 3, 0, 1]):
        x, y = np.array([0.2, 0.4, 0.4, 0.6])[order], np.array([0.1, 0.5, 0.3, 0.7])[order]
        found = forgetting_at(curve(list(x), list(y)), [0.3, 0.4, 0.5])
        np.testing.assert_allclose(found.value, [0.2, 0.3, 0.5])


def test_points_are_means_over_the_seeds_that_there_are() -> None:
    learning = np.array([[0.2, 0.4, np.nan], [0.6, 0.6, 0.6], [np.nan, np.nan, np.nan]])
    forgetting = np.array([[0.1, 0.3, 9.0], [0.6, 0.6, 0.6], [1.0, 1.0, 1.0]])
    found = forgetting_at(Curve(learning, forgetting, SEEDS), [0.3, 0.45])
    np.testing.assert_allclose(found.value, [0.2, 0.4])


def test_interval_is_that_of_the_mean_where_seeds_shift_the_whole_curve() -> None:
    seeds = np.arange(12)
    draw = np.random.default_rng(5).normal(size=12)
    base = curve([0.2, 0.4, 0.6], [0.1, 0.3, 0.9], seeds=seeds)
    shifted = base._replace(forgetting=base.forgetting + draw)
    found = forgetting_at(shifted, [0.5], num_resamples=4000)
    drawn = np.random.default_rng(1).integers(12, size=(20000, 12))
    np.testing.assert_allclose(found.value, 0.6 + draw.mean())
    expected = 0.6 + np.quantile(draw[drawn].mean(axis=1), [0.025, 0.975])
    np.testing.assert_allclose([found.low[0], found.high[0]], expected, atol=0.05)


def test_intervals_are_reproducible_and_wider_with_more_noise() -> None:
    one, other = (forgetting_at(curve([0.2, 0.6], [0.1, 0.5], noise=n), [0.4]) for n in (0.1, 0.1))
    np.testing.assert_array_equal(np.concatenate(one), np.concatenate(other))
    wide = forgetting_at(curve([0.2, 0.6], [0.1, 0.5], noise=0.3), [0.4])
    assert wide.high - wide.low == pytest.approx(3 * (one.high - one.low))
    assert one.low < one.value < one.high


def test_one_seed_has_no_interval() -> None:
    found = forgetting_at(curve([0.2, 0.6], [0.1, 0.5], seeds=np.array([7])), [0.4])
    np.testing.assert_allclose(found.value, 0.3)
    assert np.isnan(found.low).all() and np.isnan(found.high).all()


def test_no_interval_where_few_resamples_reach() -> None:
    # Only the mean of all three seeds learns 0.5 at all, and of resamples those that have little of the third.
    learning = np.array([[0.1, 0.1, 0.1], [0.9, 0.9, -0.3]])
    found = forgetting_at(Curve(learning, np.zeros((2, 3)), SEEDS), [0.89])
    assert np.isnan(found.value).all() and np.isnan(found.low).all()
    reached = forgetting_at(Curve(learning, np.zeros((2, 3)), SEEDS), [0.3])
    np.testing.assert_array_equal(np.concatenate(reached), 0)


def test_differences_are_paired_by_seed() -> None:
    noisy = curve([0.2, 0.6], [0.1, 0.5], noise=5.0)
    better = noisy._replace(forgetting=noisy.forgetting - 0.2)
    found = difference_at(better, noisy, [0.4])
    np.testing.assert_allclose(np.concatenate(found), -0.2, atol=1e-9)  # what seeds share falls out
    backwards = better.at_seeds(SEEDS[::-1])
    np.testing.assert_allclose(np.concatenate(difference_at(backwards, noisy, [0.4])), -0.2, atol=1e-9)
    apart = difference_at(better._replace(seeds=SEEDS + 10), noisy, [0.4])
    np.testing.assert_allclose(apart.value, -0.2, atol=1e-9)
    assert apart.low < -2 and apart.high > 2


def test_only_shared_seeds_count_in_a_pair() -> None:
    noisy = curve([0.2, 0.6], [0.1, 0.5], noise=1.0)
    fewer = noisy.at_seeds(np.array([0, 2]))
    np.testing.assert_allclose(np.concatenate(difference_at(fewer, noisy, [0.3])), 0, atol=1e-9)


def test_levels_are_shares_of_the_range() -> None:
    np.testing.assert_allclose(levels_within(curve([0.9, 0.1, 0.5], [0, 0, 0])), [0.3, 0.5, 0.7])
    assert np.isnan(levels_within(curve([0.4], [0.1]))).all() and len(levels_within(curve([], []))) == 3


def area_by_counting(x: np.ndarray, y: np.ndarray, worst: float, steps: int = 400) -> float:
    """Of the cells of a fine grid, those that a point covers."""
    wide, high = np.meshgrid((np.arange(steps) + 0.5) / steps, (np.arange(steps) + 0.5) / steps)
    covered = np.zeros((steps, steps), bool)
    for one, other in zip(x, y, strict=True):
        covered |= (wide <= one) & (high <= worst - other)
    return covered.mean()


def test_hypervolume_by_hand_and_by_counting() -> None:
    assert hypervolume([0.5], [0.4], 1.0) == pytest.approx(0.3)
    assert hypervolume([0.5, 0.2], [0.4, 0.1], 1.0) == pytest.approx(0.5 * 0.6 + 0.2 * 0.3)
    draw = np.random.default_rng(0)
    x, y = draw.uniform(size=(2, 15))
    assert hypervolume(x, y, 1.0) == pytest.approx(area_by_counting(x, y, 1.0), abs=0.01)


def test_beaten_and_worthless_points_add_no_area() -> None:
    front = hypervolume([0.5, 0.2], [0.4, 0.1], 1.0)
    more = [(0.4, 0.5), (0.5, 0.4), (-0.3, 0.0), (0.9, 1.0), (0.9, 7.0), (np.nan, 0.0), (0.3, np.nan)]
    x, y = zip(*more, strict=True)
    assert hypervolume([0.5, 0.2, *x], [0.4, 0.1, *y], 1.0) == pytest.approx(front)
    assert hypervolume([], [], 1.0) == hypervolume([-1.0], [0.0], 1.0) == hypervolume([0.9], [7.0], 1.0) == 0
    assert hypervolume([0.5], [-0.2], 1.0) == pytest.approx(0.6)  # to forget less than nothing is worth more


def test_noise_floor_is_of_seeds_alone() -> None:
    values = np.array([[1.0, 3.0], [10.0, 10.0], [np.nan, 5.0]])
    assert noise_floor(values) == pytest.approx(np.sqrt(2 / 2))  # 2 from the first, 0 from the second, the third none
    draw = np.random.default_rng(0)
    many = draw.normal(size=(500, 4)) * 0.3 + draw.normal(size=(500, 1)) * 100
    assert noise_floor(many) == pytest.approx(0.3, rel=0.05)
    assert np.isnan(noise_floor([[1.0], [2.0]])) and np.isnan(noise_floor(np.zeros((0, 3))))
    assert noise_floor(np.array([1.0, 3.0])) == pytest.approx(np.sqrt(2))

"""Distances between weights, plain and weighed by a Fisher written out by hand."""

import numpy as np

from cl_jax.diagnostics import parameter_drift
from tests.diagnostics.by_hand import ALL_WEIGHTS, NAMES, examples, expected, fisher, measured


def test_distances_since_each_task_was_learned() -> None:
    found = measured(parameter_drift, 3)
    plain, layers = found["distance"]
    weighted, _ = found["fisher_distance"]
    assert layers == ("", *NAMES) and plain.shape == weighted.shape == (4, 3, 1)
    now = ALL_WEIGHTS[3]
    for task in (0, 1):
        learned = ALL_WEIGHTS[task + 1]
        hand = expected(layers, lambda a, b: np.linalg.norm(a - b), now, learned)
        np.testing.assert_allclose(plain[:, task, 0], hand, rtol=1e-5)
        own = fisher(learned, examples(task)[0])
        hand = expected(layers, lambda a, b, f: np.sqrt(np.sum(f * (a - b) ** 2)), now, learned, own)
        np.testing.assert_allclose(weighted[:, task, 0], hand, rtol=1e-4)
    assert np.isnan(plain[:, 2]).all() and np.isnan(weighted[:, 2]).all()
    from_start, _ = found["distance_from_start"]
    hand = expected(layers, lambda a, b: np.linalg.norm(a - b), now, ALL_WEIGHTS[0])
    np.testing.assert_allclose(from_start[:, 0, 0], hand, rtol=1e-5)


def test_the_start_is_at_its_own_place_and_unknown_ones_are_left_out() -> None:
    assert (measured(parameter_drift, 0)["distance_from_start"][0] == 0).all()
    found = measured(parameter_drift, 3, since=2)
    assert np.isnan(found["distance_from_start"][0]).all() and np.isnan(found["distance"][0][:, 0]).all()
    assert np.isfinite(found["distance"][0][:, 1]).all()

"""What was learned and forgotten of text, in bits per byte: functions of one matrix alone, in float64.

Convention everywhere: B[r, j] is the bits per byte on domain j after r tasks, shape [..., T + 1, T]; r from 0, which is
the random weights, j from 1 in the text below, so that domain j is trained between rows j - 1 and j. Row 1 is the base:
what stands for the first task, or that task trained as the others. Leading axes (seeds, members) are kept.

Less is better: a model that predicts a text well writes it in few bits. Learning is a fall and forgetting a rise, both
positive where they take place.

NaN marks what was not measured. An entry that a number does not use may be NaN; one that it uses makes it NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cl_jax import metrics

if TYPE_CHECKING:
    import pyarrow

PER_NAT = 1 / np.log(2)  # bits


def final(matrix: ArrayLike, first: int = 1) -> np.ndarray:
    """mean_{j >= first} B[T, j]: bits per byte over the domains at the end. [..., T + 1, T] -> [...].

    Args:
        first: the first domain that counts, from 1; here and in all means below.
    """
    return _checked(matrix)[..., -1, first - 1 :].mean(axis=-1)


def learning_by_domain(matrix: ArrayLike) -> np.ndarray:
    """l[j] = B[j - 1, j] - B[j, j]: what its own training gained on each domain. [..., T + 1, T] -> [..., T].

    Of the first domain it is the gain of the base over random weights.
    """
    matrix = _checked(matrix)
    with np.errstate(invalid="ignore"):  # of a run that diverged: infinity less infinity is not known
        return np.diagonal(matrix, axis1=-2, axis2=-1) - _learned(matrix)


def learning(matrix: ArrayLike, first: int = 1) -> np.ndarray:
    """mean_{j >= max(2, first)} l[j]: what was gained on each domain after the base. NaN if there is none."""
    return _mean(learning_by_domain(matrix)[..., max(2, first) - 1 :])


def forgetting_by_domain(matrix: ArrayLike) -> np.ndarray:
    """f[j] = B[T, j] - B[j, j]: how much worse each domain is at the end than just after it was trained; [..., T].

    Below 0 where later training helped. NaN of the last domain, which nothing was trained after.
    """
    matrix = _checked(matrix)
    with np.errstate(invalid="ignore"):
        rise = matrix[..., -1, :] - _learned(matrix)
    rise[..., -1] = np.nan
    return rise


def forgetting(matrix: ArrayLike, first: int = 1) -> np.ndarray:
    """mean_{first <= j < T} f[j]: what every domain before the last lost, the base's included. NaN if there is none."""
    return _mean(forgetting_by_domain(matrix)[..., first - 1 : -1])


def retention_by_domain(matrix: ArrayLike) -> np.ndarray:
    """1 - f[j] / (B[0, j] - B[j, j]): the share kept of all that the model knew of each domain. [..., T].

    Measured from the random weights: 1 is nothing forgotten, 0 is as bad as if it had never been trained at all. It may
    leave that range. NaN of the last domain, and where nothing had been learned.
    """
    matrix = _checked(matrix)
    with np.errstate(invalid="ignore"):
        known = matrix[..., 0, :] - _learned(matrix)
        return 1 - forgetting_by_domain(matrix) / np.where(known != 0, known, np.nan)


def retention(matrix: ArrayLike, first: int = 1) -> np.ndarray:
    """The mean of `retention_by_domain` over first <= j < T. NaN if there is none."""
    return _mean(retention_by_domain(matrix)[..., first - 1 : -1])


def bits_matrices(
    table: pyarrow.Table, members: Sequence[str], split: str = "test", num_tasks: int | None = None
) -> np.ndarray:
    """B [M, T + 1, T] of the members named, in their order, NaN where the results table has no row.

    The table's losses of text are nats per byte: one bit is ln 2 of them.

    Args:
        table: the tidy results table. members, split, num_tasks: as `cl_jax.metrics.accuracy_matrices` takes them.
    """
    after, before = metrics.accuracy_matrices(table, members, split, num_tasks, metric="loss")
    return PER_NAT * np.concatenate([before[:, None], after], axis=1)


def _learned(matrix: np.ndarray) -> np.ndarray:
    """B[j, j], [..., T]: each domain just after it was trained."""
    return np.diagonal(matrix[..., 1:, :], axis1=-2, axis2=-1)


def _mean(values: np.ndarray) -> np.ndarray:
    if not values.shape[-1]:
        return np.full(values.shape[:-1], np.nan)[()]
    return values.mean(axis=-1)


def _checked(matrix: ArrayLike) -> np.ndarray:
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim < 2 or matrix.shape[-2] != matrix.shape[-1] + 1 or matrix.shape[-1] == 0:
        raise ValueError(f"a matrix of bits per byte has shape [..., T + 1, T] with T >= 1, got {matrix.shape}.")
    return matrix

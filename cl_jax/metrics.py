"""Continual-learning metrics: functions of the accuracy matrix alone, in float64.

Convention everywhere: R[i, j] is the accuracy on task j after training on task i, both from 0, shape [..., T, T];
`initial` [..., T] is the accuracy before any training. Leading axes (seeds, members) are kept. Accuracies are
fractions, so are all results.

NaN marks what was not measured. An entry that a metric does not use may be NaN; one that it uses makes it NaN, so
an unfinished run never passes for a finished one. A metric undefined for one task (T = 1) is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cl_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow


def average_accuracy(matrix: ArrayLike) -> np.ndarray:
    """mean_j R[T-1, j]: accuracy over all tasks at the end. [..., T, T] -> [...]."""
    return _checked(matrix)[..., -1, :].mean(axis=-1)


def average_incremental_accuracy(matrix: ArrayLike) -> np.ndarray:
    """mean_i mean_{j <= i} R[i, j]: accuracy over the tasks seen so far, averaged over training. [..., T, T] -> [...].

    Source: Rebuffi et al. 2017 (iCaRL), arXiv 1611.07725.
    """
    return seen_accuracy(matrix).mean(axis=-1)


def seen_accuracy(matrix: ArrayLike) -> np.ndarray:
    """a[i] = mean_{j <= i} R[i, j]: accuracy over the tasks seen so far, after each task. [..., T, T] -> [..., T]."""
    matrix = _checked(matrix)
    count = np.arange(1, matrix.shape[-1] + 1)
    return np.where(np.tri(matrix.shape[-1], dtype=bool), matrix, 0.0).sum(axis=-1) / count


def learning_accuracy(matrix: ArrayLike) -> np.ndarray:
    """mean_j R[j, j]: accuracy on each task just after it was learned (plasticity). [..., T, T] -> [...].

    Source: Riemer et al. 2019, arXiv 1810.11910.
    """
    return np.diagonal(_checked(matrix), axis1=-2, axis2=-1).mean(axis=-1)


def forgetting(matrix: ArrayLike) -> np.ndarray:
    """1/(T-1) sum_{j < T-1} (max_{l < T-1} R[l, j] - R[T-1, j]): loss from the best to the end. [..., T, T] -> [...].

    The last row is not in the maximum, so forgetting is negative where the end is the best. Rows before task j was
    trained are in it where measured, as published; NaN there (no active outputs yet) is passed over. NaN if T = 1.

    Source: Chaudhry et al. 2018, arXiv 1801.10112.
    """
    matrix = _checked(matrix)
    num_tasks = matrix.shape[-1]
    if num_tasks == 1:
        return np.full(matrix.shape[:-2], np.nan)[()]
    earlier = matrix[..., :-1, :-1]
    trained = np.tri(num_tasks - 1, dtype=bool)
    best = np.where(np.isnan(earlier) & ~trained, -np.inf, earlier).max(axis=-2)
    return (best - matrix[..., -1, :-1]).mean(axis=-1)


def backward_transfer(matrix: ArrayLike) -> np.ndarray:
    """1/(T-1) sum_{j < T-1} (R[T-1, j] - R[j, j]): change since just after learning; below 0 is loss. NaN if T = 1.

    Source: Lopez-Paz and Ranzato 2017, arXiv 1706.08840.
    """
    matrix = _checked(matrix)
    if matrix.shape[-1] == 1:
        return np.full(matrix.shape[:-2], np.nan)[()]
    return (matrix[..., -1, :-1] - np.diagonal(matrix, axis1=-2, axis2=-1)[..., :-1]).mean(axis=-1)


def forward_transfer(matrix: ArrayLike, initial: ArrayLike | None) -> np.ndarray:
    """1/(T-1) sum_{j >= 1} (R[j-1, j] - initial[j]): what earlier tasks gave a task before it was trained.

    Args:
        matrix: float [..., T, T].
        initial: float [..., T], accuracy before any training; None where forward transfer is undefined, as in
            class-incremental streams, whose future classes have no active outputs.

    Returns:
        float64 [...]; NaN if T = 1 or `initial` is None.

    Source: Lopez-Paz and Ranzato 2017, arXiv 1706.08840.
    """
    matrix = _checked(matrix)
    if matrix.shape[-1] == 1 or initial is None:
        return np.full(matrix.shape[:-2], np.nan)[()]
    before = np.diagonal(matrix, offset=1, axis1=-2, axis2=-1)
    return (before - np.asarray(initial, np.float64)[..., 1:]).mean(axis=-1)


def accuracy_matrix(
    table: pyarrow.Table, split: str = "test", num_tasks: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """R [T, T] and initial [T] of one member, NaN where the results table has no row.

    Args:
        table: the tidy results table, rows of one member only.
        split: "test" or "validation".
        num_tasks: T; None: the largest task number in the table.

    Raises:
        UserError: the table holds several members, or two different values for one evaluation.
    """
    members = table.column("member").unique().to_pylist()
    if len(members) != 1:
        raise UserError(f"an accuracy matrix is of one member, the table has {len(members)}; filter it by `member`.")
    matrices, initial = accuracy_matrices(table, members, split, num_tasks)
    return matrices[0], initial[0]


def accuracy_matrices(
    table: pyarrow.Table,
    members: Sequence[str],
    split: str = "test",
    num_tasks: int | None = None,
    *,
    metric: str = "accuracy",
) -> tuple[np.ndarray, np.ndarray]:
    """R [M, T, T] and initial [M, T] of the members named, in their order; as `accuracy_matrix`.

    Args:
        metric: "accuracy", or "loss" for that in its place.
    """
    from pyarrow import compute

    wanted = (compute.field("split") == split) & (compute.field("metric") == metric)
    num_tasks = num_tasks or max(int(table[name].to_numpy().max(initial=1)) for name in ("task", "after_task"))
    rows = table.select(["member", "split", "metric", "after_task", "task", "value"]).filter(wanted)
    encoded = rows["member"].cast("string").combine_chunks().dictionary_encode()
    index = {member: position for position, member in enumerate(members)}
    positions = np.array([index.get(member, -1) for member in encoded.dictionary.to_pylist()], np.int64)
    member = positions[encoded.indices.to_numpy()]
    rows, member = rows.filter(member >= 0), member[member >= 0]
    after, task, value = (rows[name].to_numpy() for name in ("after_task", "task", "value"))
    if len(task) and (task.max() > num_tasks or after.max() > num_tasks or task.min() < 1 or after.min() < 0):
        raise UserError(
            f"tasks {task.min()} to {task.max()} after {after.min()} to {after.max()} tasks do not fit a stream of "
            f"{num_tasks} tasks, which are counted from 1; give the number of tasks that the run has."
        )
    accuracy = np.full((len(members), num_tasks + 1, num_tasks), np.nan)
    accuracy[member, after, task - 1] = value
    different = ~np.isclose(accuracy[member, after, task - 1], value, rtol=0, atol=0, equal_nan=True)
    if different.any():
        where, several = int(np.argmax(different)), {"accuracy": "accuracies", "loss": "losses"}[metric]
        raise UserError(
            f"member {members[member[where]]!r} has two {split} {several} on task {task[where]} after task "
            f"{after[where]}; keep the rows of one run."
        )
    return accuracy[:, 1:], accuracy[:, 0]


def _checked(matrix: ArrayLike) -> np.ndarray:
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(f"an accuracy matrix has shape [..., T, T] with T >= 1, got {matrix.shape}.")
    return matrix

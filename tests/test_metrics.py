"""Metrics against numbers worked out by hand and against explicit loops over tasks."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from cl_jax import metrics
from cl_jax.errors import UserError

HAND = np.array([[0.9, 0.1, 0.2], [0.7, 0.8, 0.3], [0.5, 0.6, 0.95]])
INITIAL = np.array([0.1, 0.15, 0.1])
OF_MATRIX = (
    metrics.average_accuracy,
    metrics.average_incremental_accuracy,
    metrics.learning_accuracy,
    metrics.forgetting,
    metrics.backward_transfer,
)


def loops(matrix: np.ndarray, initial: np.ndarray) -> dict[str, float]:
    """Every metric of one matrix, by the sums of its definition."""
    last = len(matrix) - 1
    incremental = [sum(matrix[i, j] for j in range(i + 1)) / (i + 1) for i in range(last + 1)]
    return {
        "average_accuracy": sum(matrix[last, j] for j in range(last + 1)) / (last + 1),
        "average_incremental_accuracy": sum(incremental) / (last + 1),
        "learning_accuracy": sum(matrix[j, j] for j in range(last + 1)) / (last + 1),
        "forgetting": sum(max(matrix[i, j] for i in range(last)) - matrix[last, j] for j in range(last)) / last,
        "backward_transfer": sum(matrix[last, j] - matrix[j, j] for j in range(last)) / last,
        "forward_transfer": sum(matrix[j - 1, j] - initial[j] for j in range(1, last + 1)) / last,
    }


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.average_accuracy, 2.05 / 3),
        (metrics.average_incremental_accuracy, (0.9 + 0.75 + 2.05 / 3) / 3),
        (metrics.learning_accuracy, 2.65 / 3),
        (metrics.forgetting, 0.3),
        (metrics.backward_transfer, -0.3),
    ],
)
def test_by_hand(metric, expected):
    np.testing.assert_allclose(metric(HAND), expected, rtol=1e-14)


def test_forward_transfer_by_hand():
    np.testing.assert_allclose(metrics.forward_transfer(HAND, INITIAL), 0.075, rtol=1e-14)


def test_forgetting_is_from_the_best_row_but_the_last():
    better_later = np.array([[0.8, 0.1, 0.1], [0.9, 0.7, 0.1], [0.6, 0.7, 0.9]])  # task 0 peaks after task 1
    np.testing.assert_allclose(metrics.forgetting(better_later), (0.3 + 0.0) / 2, rtol=1e-14)
    np.testing.assert_allclose(metrics.backward_transfer(better_later), (-0.2 + 0.0) / 2, rtol=1e-14)
    best_last = np.array([[0.5, 0.1], [0.8, 0.9]])
    np.testing.assert_allclose(metrics.forgetting(best_last), -0.3, rtol=1e-14)
    best_before_training = np.array([[0.9, 0.7, 0.0], [0.9, 0.4, 0.0], [0.9, 0.4, 0.9]])
    np.testing.assert_allclose(metrics.forgetting(best_before_training), (0.0 + 0.3) / 2, rtol=1e-14)


@pytest.mark.parametrize("num_tasks", [2, 3, 7])
def test_equal_to_loops_with_leading_axes(num_tasks):
    rng = np.random.default_rng(num_tasks)
    matrix, initial = rng.uniform(size=(2, 3, num_tasks, num_tasks)), rng.uniform(size=(2, 3, num_tasks))
    expected = [[loops(matrix[a, b], initial[a, b]) for b in range(3)] for a in range(2)]
    for metric in (*OF_MATRIX, metrics.forward_transfer):
        name = metric.__name__
        got = metric(matrix, initial) if metric is metrics.forward_transfer else metric(matrix)
        assert got.shape == (2, 3) and got.dtype == np.float64
        np.testing.assert_allclose(got, [[each[name] for each in row] for row in expected], rtol=1e-13, err_msg=name)


def test_no_change_is_exactly_no_forgetting():
    frozen = np.broadcast_to(np.random.default_rng(0).uniform(size=5), (5, 5))
    assert metrics.forgetting(frozen) == 0 and metrics.backward_transfer(frozen) == 0
    assert metrics.forward_transfer(frozen, frozen[0]) == 0


def test_one_task():
    matrix = np.full((2, 1, 1), 0.7)
    np.testing.assert_array_equal(metrics.average_accuracy(matrix), 0.7)
    for undefined in (metrics.forgetting(matrix), metrics.backward_transfer(matrix)):
        np.testing.assert_array_equal(undefined, [np.nan, np.nan])
    assert np.isnan(metrics.forward_transfer(matrix, np.zeros((2, 1)))).all()


def test_unused_entries_may_be_missing_and_used_ones_show():
    no_future = np.where(np.tri(3, dtype=bool), HAND, np.nan)  # class-incremental
    for metric in OF_MATRIX:
        np.testing.assert_array_equal(metric(no_future), metric(HAND), err_msg=metric.__name__)
    assert np.isnan(metrics.forward_transfer(no_future, INITIAL))
    assert np.isnan(metrics.forward_transfer(HAND, None))
    unfinished = HAND.copy()
    unfinished[2] = np.nan
    for metric in OF_MATRIX:
        assert np.isnan(metric(unfinished)), metric.__name__
    hole = HAND.copy()
    hole[1, 0] = np.nan  # task 0 was trained by then: its best is not known
    assert np.isnan(metrics.forgetting(hole)) and not np.isnan(metrics.backward_transfer(hole))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0)])
def test_refuses_what_is_no_matrix(shape):
    with pytest.raises(ValueError, match=r"\[\.\.\., T, T\]"):
        metrics.average_accuracy(np.zeros(shape))


def rows_of(matrix: np.ndarray, initial: np.ndarray, member: str = "a") -> pa.Table:
    """Results rows in a shuffled order, with rows of other kinds among them."""
    full = np.concatenate([initial[None], matrix])
    rows = [
        {"member": member, "after_task": i, "task": j + 1, "split": split, "metric": metric, "value": value + shift}
        for (i, j), value in np.ndenumerate(full)
        for split, metric, shift in (("test", "accuracy", 0.0), ("validation", "accuracy", 0.01), ("test", "loss", 5.0))
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    return pa.Table.from_pylist([rows[index] for index in order])


def test_accuracy_matrix_of_a_table():
    table = rows_of(HAND, INITIAL)
    matrix, initial = metrics.accuracy_matrix(table)
    np.testing.assert_array_equal(matrix, HAND)
    np.testing.assert_array_equal(initial, INITIAL)
    np.testing.assert_allclose(metrics.accuracy_matrix(table, "validation")[0], HAND + 0.01)
    longer, _ = metrics.accuracy_matrix(table, num_tasks=4)
    np.testing.assert_array_equal(longer[:3, :3], HAND)
    assert np.isnan(longer[3]).all() and np.isnan(longer[:, 3]).all()


def test_matrices_follow_the_order_asked_for():
    table = pa.concat_tables(
        [rows_of(HAND, INITIAL, "a"), rows_of(HAND / 2, INITIAL, "b"), rows_of(HAND, INITIAL, "c")]
    )
    matrices, _ = metrics.accuracy_matrices(table, ["b", "absent", "a"])
    np.testing.assert_array_equal(matrices[[0, 2]], [HAND / 2, HAND])
    assert np.isnan(matrices[1]).all()


def test_accuracy_matrix_refuses_what_has_no_answer():
    table = rows_of(HAND, INITIAL)
    with pytest.raises(UserError, match="one member, the table has 2"):
        metrics.accuracy_matrix(pa.concat_tables([table, rows_of(HAND, INITIAL, "b")]))
    with pytest.raises(UserError, match="two test accuracies"):
        metrics.accuracy_matrix(pa.concat_tables([table, rows_of(HAND + 0.5, INITIAL)]))
    with pytest.raises(UserError, match="stream of 2 tasks"):
        metrics.accuracy_matrix(table, num_tasks=2)
    twice, _ = metrics.accuracy_matrix(pa.concat_tables([table, table]))  # the same rows twice are no conflict
    np.testing.assert_array_equal(twice, HAND)


def test_import_is_light():
    heavy = ("jax", "matplotlib", "plotly", "pyarrow", "rich")
    ours = ", ".join(f"cl_jax.{name}" for name in ("metrics", "statistics", "bits", "fronts"))
    code = f"import sys, {ours}; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

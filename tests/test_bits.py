"""Bits per byte learned, forgotten and kept: against numbers worked out by hand and explicit loops over domains."""

import numpy as np
import pyarrow as pa
import pytest

from cl_jax import bits
from cl_jax.errors import UserError

# Rows: random weights, the base (on code), after support, after prose. Columns: code, support, prose.
HAND = np.array([[8.0, 8.0, 8.0], [2.0, 4.0, 5.0], [3.0, 2.5, 4.5], [3.5, 3.0, 2.0]])


def loops(matrix: np.ndarray) -> dict[str, float]:
    """By the sums of the definitions; domains and rows from 1 and 0, as they are written."""
    last = matrix.shape[1]

    def b(row: int, domain: int) -> float:
        return matrix[row, domain - 1]

    return {
        "final": sum(b(last, j) for j in range(1, last + 1)) / last,
        "learning": sum(b(j - 1, j) - b(j, j) for j in range(2, last + 1)) / (last - 1),
        "forgetting": sum(b(last, j) - b(j, j) for j in range(1, last)) / (last - 1),
        "retention": sum(1 - (b(last, j) - b(j, j)) / (b(0, j) - b(j, j)) for j in range(1, last)) / (last - 1),
    }


def test_by_hand() -> None:
    np.testing.assert_allclose(bits.final(HAND), 8.5 / 3)
    np.testing.assert_allclose(bits.learning_by_domain(HAND), [6.0, 1.5, 2.5])  # the first: of the base, over random
    np.testing.assert_allclose(bits.learning(HAND), (1.5 + 2.5) / 2)
    np.testing.assert_allclose(bits.forgetting_by_domain(HAND), [1.5, 0.5, np.nan])
    np.testing.assert_allclose(bits.forgetting(HAND), 1.0)  # above 0: it forgot
    np.testing.assert_allclose(bits.retention_by_domain(HAND), [1 - 1.5 / 6, 1 - 0.5 / 5.5, np.nan])
    np.testing.assert_allclose(bits.retention(HAND), (0.75 + 1 - 0.5 / 5.5) / 2)


@pytest.mark.parametrize("num_tasks", [2, 3, 6])
def test_equal_to_loops_with_leading_axes(num_tasks: int) -> None:
    matrix = np.random.default_rng(num_tasks).uniform(1, 5, size=(2, 3, num_tasks + 1, num_tasks))
    for name in ("final", "learning", "forgetting", "retention"):
        found = getattr(bits, name)(matrix)
        expected = [[loops(each)[name] for each in row] for row in matrix]
        assert found.shape == (2, 3) and found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=name)


def test_from_a_later_domain_on() -> None:
    np.testing.assert_allclose(bits.final(HAND, 2), 2.5)
    np.testing.assert_allclose(bits.learning(HAND, 3), 2.5)  # measured against the row before, wherever that is
    np.testing.assert_allclose(bits.learning(HAND, 1), bits.learning(HAND, 2))  # the base is not among what is learned
    np.testing.assert_allclose(bits.forgetting(HAND, 2), 0.5)
    np.testing.assert_allclose(bits.retention(HAND, 2), 1 - 0.5 / 5.5)
    assert np.isnan(bits.forgetting(HAND, 3)) and np.isnan(bits.retention(HAND, 3))


def test_no_change_is_no_forgetting_and_random_again_is_all() -> None:
    frozen = np.concatenate([[[8.0, 8.0, 8.0]], np.broadcast_to([2.0, 4.0, 5.0], (3, 3))])
    assert bits.forgetting(frozen) == 0 and bits.retention(frozen) == 1 and bits.learning(frozen) == 0
    lost = HAND.copy()
    lost[-1, :2] = lost[0, :2]
    assert bits.retention(lost) == 0


def test_one_domain_has_nothing_to_forget_and_nothing_after_the_base() -> None:
    matrix = np.array([[8.0], [2.0]])
    assert bits.final(matrix) == 2
    assert all(np.isnan(number(matrix)) for number in (bits.learning, bits.forgetting, bits.retention))


def test_unused_entries_may_be_missing_and_used_ones_show() -> None:
    holes = HAND.copy()
    holes[0, 2] = holes[1, 2] = holes[2, 0] = np.nan  # random and base on prose; code after support
    np.testing.assert_allclose(bits.final(holes), bits.final(HAND))
    np.testing.assert_allclose(bits.forgetting(holes), bits.forgetting(HAND))
    np.testing.assert_allclose(bits.retention(holes), bits.retention(HAND))
    np.testing.assert_allclose(bits.learning(holes), bits.learning(HAND))
    holes[2, 2] = np.nan  # prose just before it was trained
    assert np.isnan(bits.learning(holes))
    unfinished = HAND.copy()
    unfinished[-1] = np.nan
    assert all(np.isnan(number(unfinished)) for number in (bits.final, bits.forgetting, bits.retention))


def test_infinite_losses_are_no_crash() -> None:
    blown = HAND.copy()
    blown[2:, :] = np.inf
    assert bits.final(blown) == np.inf and np.isnan(bits.learning(blown))
    nothing_learned = np.array([[3.0, 3.0], [3.0, 3.0], [4.0, 3.0]])
    assert np.isnan(bits.retention_by_domain(nothing_learned)).all()


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 3), (1, 0)])
def test_refuses_what_is_no_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., T \+ 1, T\]"):
        bits.final(np.zeros(shape))


def test_of_a_table() -> None:
    rows = [
        {"member": "a", "after_task": row, "task": column + 1, "split": split, "metric": metric, "value": value}
        for (row, column), nats in np.ndenumerate(HAND * np.log(2))
        for split, metric, value in (
            ("test", "loss", nats),
            ("validation", "loss", 2 * nats),
            ("test", "accuracy", 9.0),
        )
    ]
    table = pa.Table.from_pylist(rows)
    np.testing.assert_allclose(bits.bits_matrices(table, ["absent", "a"])[1], HAND)
    np.testing.assert_allclose(bits.bits_matrices(table, ["a"], "validation")[0], 2 * HAND)
    assert np.isnan(bits.bits_matrices(table, ["absent"])).all()
    with pytest.raises(UserError, match="two test losses on task 1"):
        bits.bits_matrices(pa.concat_tables([table, table.slice(0, 1).set_column(5, "value", [[1.0]])]), ["a"])

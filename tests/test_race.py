"""What runs in turns is compared at the same moment."""

import numpy as np
import pytest

from cl_jax.race import MOST_ROUNDS, race, rounds_in


class Machine:
    """Whose speed drifts: each call finds it a little slower, and one in a while very slow."""

    def __init__(self) -> None:
        self.calls = 0

    def program(self, milliseconds: float):
        def call() -> float:
            self.calls += 1
            return milliseconds * 1.1**self.calls * (5.0 if self.calls % 7 == 0 else 1.0)

        return call


def test_a_drifting_machine_changes_no_order() -> None:
    times = [1.0, 0.9, 1.2]
    machine = Machine()
    alone = [min(machine.program(each)() for _ in range(3)) for each in times]
    assert np.argmin(alone) == 0  # one after another, the first looks best
    machine = Machine()
    raced = race([machine.program(each) for each in times], rounds=9)
    assert np.argsort(raced).tolist() == [1, 0, 2]
    np.testing.assert_allclose(np.array(raced) / raced[0], [1.0, 0.9 * 1.1, 1.2 * 1.1**2], rtol=1e-6)


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 0), (2.9, 0), (3.0, 3), (5.5, 5), (np.inf, MOST_ROUNDS)])
def test_rounds_are_as_many_as_the_time_allows(seconds: float, expected: int) -> None:
    assert rounds_in(seconds, 1.0) == expected

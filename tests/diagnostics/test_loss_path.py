"""Loss along the line against losses of interpolated weights."""

import jax
import numpy as np

from cl_jax.diagnostics import loss_path
from tests.diagnostics.by_hand import ALL_WEIGHTS, examples, mean_loss, measured


def test_from_each_tasks_weights_to_those_now() -> None:
    array, _ = measured(loss_path, 3)["path_loss"]
    assert array.shape == (1, 3, 11) and loss_path.PLACES[0] == 0 and loss_path.PLACES[-1] == 1
    for task in (0, 1):
        one, other = ALL_WEIGHTS[task + 1], ALL_WEIGHTS[3]
        hand = [
            mean_loss(jax.tree.map(lambda a, b, t=t: (1 - t) * a + t * b, one, other), *examples(task))
            for t in loss_path.PLACES
        ]
        np.testing.assert_allclose(array[0, task], hand, rtol=1e-4)
    assert np.isnan(array[0, 2]).all()

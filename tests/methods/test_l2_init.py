"""Without a task the weights come home at a known rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.batch import Batch, Task
from cl_jax.errors import UserError
from cl_jax.methods.l2_init import TOWARDS, l2_init
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
# Examples of weight 0: the penalty is all there is.
BATCH = Batch(jnp.ones((4, 3)), jnp.zeros((4,), jnp.int32), weight=jnp.zeros((4,)))


@pytest.mark.parametrize("towards", TOWARDS)
def test_gradient_descent_on_it_is_a_geometric_series(towards):
    """theta_t - home = (1 - learning_rate * strength)^t (theta_0 - home), across a boundary too."""
    learner = train.Learner(mlp((5,), 2), optax.scale(-1.0), l2_init(jnp.float32(0.5), towards=towards))
    state = train.init(learner, KEY, BATCH)
    home = jax.tree.map(lambda leaf: leaf if towards == "initial" else jnp.zeros_like(leaf), state.trainable)
    moved = jax.tree.map(lambda leaf: leaf + 0.7, state.trainable)
    state, penalties = state._replace(trainable=moved), []
    step = jax.jit(lambda state: train.train_step(learner, KEY, state, BATCH, 0.2))
    for t in range(6):
        state, metrics = step(state)
        penalties.append(float(metrics.penalty))
        if t == 2:
            state = train.end_task(learner, KEY, state, Task(jnp.int32(0), BATCH, jnp.ones(4, bool)))
    size = 0.0
    for found, begun, at in zip(*map(jax.tree.leaves, (state.trainable, moved, home)), strict=True):
        np.testing.assert_allclose(found - at, (1 - 0.2 * 0.5) ** 6 * (begun - at), rtol=1e-4, atol=1e-6)
        size += np.sum(np.asarray(begun - at, np.float64) ** 2)
    np.testing.assert_allclose(penalties, 0.25 * size * 0.9 ** (2 * np.arange(6)), rtol=1e-4)  # strength / 2


def test_an_unknown_home_is_told():
    with pytest.raises(UserError, match=r"unknown l2_init towards 'zeros'; known: initial, zero\. Did you mean 'zero'"):
        l2_init(1.0, towards="zeros")

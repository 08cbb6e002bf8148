"""L2 to the anchor: stay near the last task's weights, all weights alike (the control of Kirkpatrick et al. 2017)."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch, Task
from cl_jax.config import config, traced
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.model import Params


class L2State(NamedTuple):
    """The point to stay near."""

    anchor: Params  # weights at the last boundary, like params
    present: jax.Array  # float32 (), 0 before the first boundary, 1 after


def l2(strength: jax.Array | float) -> Method:
    """penalty = strength / 2 * sum_i (theta_i - anchor_i)^2, from the first boundary on; anchor = theta there."""

    def init(key: jax.Array, params: Params, batch: Batch) -> L2State:
        return L2State(params, jnp.zeros((), jnp.float32))

    def penalty(state: L2State, params: Params, batch: Batch) -> jax.Array:
        squares = jax.tree.map(lambda p, a: jnp.sum((p - a) ** 2), params, state.anchor)
        return 0.5 * strength * state.present * sum(jax.tree.leaves(squares), jnp.zeros(()))

    def end_task(key: jax.Array, state: L2State, params: Params, task: Task) -> L2State:
        return L2State(params, jnp.ones((), jnp.float32))

    return Method(init=init, penalty=penalty, end_task=end_task)


@config
class L2:
    """See `l2`."""

    waits_for_boundary: ClassVar[bool] = True  # no anchor before it

    strength: float = traced(1.0)

    def build(self, context: Context) -> Method:
        return l2(self.strength)

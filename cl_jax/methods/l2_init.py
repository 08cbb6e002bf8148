"""L2 to the initial weights: what recent tasks do not need drifts back to where it could still learn anything."""

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.config import config, static, traced
from cl_jax.errors import unknown
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.model import Params

TOWARDS = ("initial", "zero")


def l2_init(strength: jax.Array | float, *, towards: str = "initial") -> Method:
    """penalty = strength / 2 * sum_i (theta_i - theta_0,i)^2, from the first step on; theta_0 = the initial weights.

    The paper's lambda * sum_i (theta_i - theta_0,i)^2 has no 1/2: strength = 2 lambda. All parameters alike, biases
    too.

    Args:
        strength: may be traced.
        towards: "initial", L2 Init; "zero", the paper's L2, which is weight decay in the gradient (PyTorch's
            `weight_decay` = strength; under Adam not the same as `AdamW`).

    The state is theta_0, like params; nothing for "zero".

    Raises:
        UserError: unknown `towards`.

    Source: Kumar, Marklund and Van Roy 2023, arXiv 2308.11958.
    """
    if towards not in TOWARDS:
        raise unknown("l2_init towards", towards, TOWARDS)

    def init(key: jax.Array, params: Params, batch: Batch) -> Params:
        return params if towards == "initial" else ()

    def penalty(state: Params, params: Params, batch: Batch) -> jax.Array:
        away = params if towards == "zero" else jax.tree.map(jnp.subtract, params, state)
        return 0.5 * strength * sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(away)), jnp.zeros(()))

    return Method(init=init, penalty=penalty)


@config
class L2Init:
    """See `l2_init`."""

    strength: float = traced(1e-3)
    towards: str = static("initial", choices=TOWARDS)

    def build(self, context: Context) -> Method:
        return l2_init(self.strength, towards=self.towards)

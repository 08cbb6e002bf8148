"""The quadratic penalty that all importance methods share."""

import jax
import jax.numpy as jnp

from cl_jax.model import Params


def weighted_distance(weights: Params, params: Params, anchor: Params) -> jax.Array:
    """sum_i weights_i (params_i - anchor_i)^2 over all parameters, a scalar; no 1/2."""

    def one(weight: jax.Array, p: jax.Array, a: jax.Array) -> jax.Array:
        return jnp.sum(weight * (p - a) ** 2)

    return sum(jax.tree.leaves(jax.tree.map(one, weights, params, anchor)), jnp.zeros(()))

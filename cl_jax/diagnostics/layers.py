"""A network layer by layer: its parameters, and the features in between."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.model import Model, Params


def layer_names(model: Model, params: Params, x: Any) -> tuple[str, ...]:
    """The names of a network's layers, its top-level parameters: from input to output as far as `tap` tells.

    None where the parameters are not by name.
    """
    if not isinstance(params, Mapping):
        return ()
    order: list[str] = []

    def pass_through(params: Params, x: Any) -> tuple[()]:
        if model.tap is not None:
            order.extend(model.tap(params, {}, x)[1])  # in the order of the calls, which a returned dict would lose
        return ()

    jax.eval_shape(pass_through, params, x)
    return (*order, *(name for name in params if name not in order))


def per_layer(names: Sequence[str], function: Callable[..., jax.Array], *trees: Params) -> jax.Array:
    """float32 [1 + L]: a number of the whole trees, then of each layer's parts of them."""
    return jnp.stack([function(*trees), *(function(*(tree[name] for tree in trees)) for name in names)])


def inner(one: Params, other: Params) -> jax.Array:
    """sum_i one_i other_i, float32."""
    products = jax.tree.map(lambda a, b: jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32)), one, other)
    return total(products)


def difference(one: Params, other: Params) -> Params:
    """one - other, float32."""
    return jax.tree.map(lambda a, b: a.astype(jnp.float32) - b.astype(jnp.float32), one, other)


def total(numbers: Any) -> jax.Array:
    """The sum of a tree's numbers."""
    return jnp.sum(jnp.stack(jax.tree.leaves(numbers)))


def features(model: Model, params: Params, x: Any) -> dict[str, jax.Array]:
    """What every matrix of the network but the first layer's receives: float32 [B, d] by the layer that receives it.

    A convolution's are its patches; where a matrix serves several positions, their mean. The first layer receives the
    input, which no training changes.

    Args:
        model: with a `tap`.
    """
    assert model.tap is not None
    _, inputs = model.tap(params, {}, x)
    found = {}
    for name in list(inputs)[1:]:
        if "kernel" in params[name]:
            received = inputs[name].astype(jnp.float32)
            found[name] = jnp.mean(received, axis=tuple(range(1, received.ndim - 1)))
    return found

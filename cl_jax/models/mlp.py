"""Multi-layer perceptron: dense layers with ReLU between them."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cl_jax.model import Model, Params


def mlp(hidden: Sequence[int], num_outputs: int) -> Model:
    """h_0 = flatten(x); h_{l+1} = relu(h_l W_l + b_l); logits = h_L W_L + b_L.

    Kernels and biases start uniform in +-1 / sqrt(d_in) (the default of the linear layers that the published
    protocols used), float32.

    Args:
        hidden: widths of the hidden layers.
        num_outputs: width of the head.

    Returns:
        A model with parameters `{"dense_0": {"kernel": [d_in, d_out], "bias": [d_out]}, ...}`.
    """
    widths = (*hidden, num_outputs)
    names = [f"dense_{i}" for i in range(len(widths))]

    def init(key: jax.Array, x: jax.Array) -> Params:
        fan_in = x.reshape(x.shape[0], -1).shape[1]
        keys = jax.random.split(key, 2 * len(widths))
        params = {}
        for i, (d_in, d_out) in enumerate(itertools.pairwise((fan_in, *widths))):
            bound = d_in**-0.5
            params[names[i]] = {
                "kernel": jax.random.uniform(keys[2 * i], (d_in, d_out), jnp.float32, -bound, bound),
                "bias": jax.random.uniform(keys[2 * i + 1], (d_out,), jnp.float32, -bound, bound),
            }
        return params

    def tap(params: Params, probes: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        h = x.reshape(x.shape[0], -1)
        inputs = {}
        for i, name in enumerate(names):
            inputs[name] = h
            h = h @ params[name]["kernel"] + params[name]["bias"][None, :]
            if probes:
                h = h + probes[name]
            if i < len(names) - 1:
                h = jax.nn.relu(h)
        return h, inputs

    return Model(init=init, apply=lambda params, x: tap(params, {}, x)[0], tap=tap)

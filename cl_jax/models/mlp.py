"""Multi-layer perceptron: dense layers with ReLU between them."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cl_jax.errors import unknown
from cl_jax.model import Model, Params

INITIALIZATIONS = ("uniform", "he")


def mlp(hidden: Sequence[int], num_outputs: int, initialization: str = "uniform") -> Model:
    """h_0 = flatten(x); h_{l+1} = relu(h_l W_l + b_l); logits = h_L W_L + b_L, all float32.

    Args:
        hidden: widths of the hidden layers.
        num_outputs: width of the head.
        initialization: "uniform": kernels and biases uniform in +-1 / sqrt(d_in), the default of PyTorch's linear
            layers, which most published protocols used; "he": kernels N(0, 2 / d_in), biases 0 (He et al. 2015,
            arXiv 1502.01852), under which EWC forgot less on permuted digits.

    Returns:
        A model with parameters `{"dense_0": {"kernel": [d_in, d_out], "bias": [d_out]}, ...}`.
    """
    if initialization not in INITIALIZATIONS:
        raise unknown("initialization", initialization, INITIALIZATIONS)
    widths = (*hidden, num_outputs)
    names = [f"dense_{i}" for i in range(len(widths))]

    def layer(key_kernel: jax.Array, key_bias: jax.Array, d_in: int, d_out: int) -> Params:
        if initialization == "he":
            kernel = (2.0 / d_in) ** 0.5 * jax.random.normal(key_kernel, (d_in, d_out), jnp.float32)
            return {"kernel": kernel, "bias": jnp.zeros((d_out,), jnp.float32)}
        bound = d_in**-0.5
        return {
            "kernel": jax.random.uniform(key_kernel, (d_in, d_out), jnp.float32, -bound, bound),
            "bias": jax.random.uniform(key_bias, (d_out,), jnp.float32, -bound, bound),
        }

    def init(key: jax.Array, x: jax.Array) -> Params:
        fan_in = x.reshape(x.shape[0], -1).shape[1]
        keys = jax.random.split(key, 2 * len(widths))
        params = {}
        for i, (d_in, d_out) in enumerate(itertools.pairwise((fan_in, *widths))):
            params[names[i]] = layer(keys[2 * i], keys[2 * i + 1], d_in, d_out)
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

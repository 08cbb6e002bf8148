"""Multi-layer perceptron: dense layers with ReLU between them."""

import itertools
from collections.abc import Sequence

import jax

from cl_jax.config import config, static
from cl_jax.errors import unknown
from cl_jax.model import Model, Params
from cl_jax.models.layers import INITIALIZATIONS, Layers, dense_layer


def mlp(hidden: Sequence[int], num_outputs: int, initialization: str = "uniform") -> Model:
    """h_0 = flatten(x); h_{l+1} = relu(h_l W_l + b_l); logits = h_L W_L + b_L, all float32.

    Args:
        hidden: widths of the hidden layers.
        num_outputs: width of the head.
        initialization: "uniform" or "he", see `cl_jax.models.layers.dense_layer`.

    Returns:
        A model with parameters `{"dense_0": {"kernel": [d_in, d_out], "bias": [d_out]}, ...}`.
    """
    if initialization not in INITIALIZATIONS:
        raise unknown("initialization", initialization, INITIALIZATIONS)
    widths = (*hidden, num_outputs)
    names = [f"dense_{i}" for i in range(len(widths))]

    def init(key: jax.Array, x: jax.Array) -> Params:
        fan_in = x.reshape(x.shape[0], -1).shape[1]
        keys = jax.random.split(key, 2 * len(widths))
        params = {}
        for i, (d_in, d_out) in enumerate(itertools.pairwise((fan_in, *widths))):
            params[names[i]] = dense_layer(keys[2 * i : 2 * i + 2], d_in, d_out, initialization)
        return params

    def tap(params: Params, probes: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        layers = Layers(params, probes)
        h = x.reshape(x.shape[0], -1)
        for name in names[:-1]:
            h = jax.nn.relu(layers.dense(name, h))
        return layers.dense(names[-1], h), layers.inputs

    return Model(init=init, apply=lambda params, x: tap(params, {}, x)[0], tap=tap)


@config
class Mlp:
    """Multi-layer perceptron: dense layers of these widths with ReLU between them; see `cl_jax.models.mlp`."""

    hidden: tuple[int, ...] = static((100, 100), low=1)
    initialization: str = static("uniform", choices=INITIALIZATIONS)

    def build(self, num_outputs: int) -> Model:
        return mlp(self.hidden, num_outputs, self.initialization)

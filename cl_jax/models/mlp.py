"""Multi-layer perceptron: dense layers with ReLU between them, with layer normalisation and dropout if asked."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from cl_jax.config import child, config, static, traced
from cl_jax.errors import unknown
from cl_jax.model import Model, Params
from cl_jax.models.layers import INITIALIZATIONS, Layers, dense_layer, dropped

Drop = Callable[[int, jax.Array], jax.Array]  # from the number of a layer, 0 for the input, and what it computed


def mlp(
    hidden: Sequence[int],
    num_outputs: int,
    initialization: str = "uniform",
    *,
    layer_norm: bool = False,
    dropout: jax.Array | float | None = None,
    input_dropout: jax.Array | float | None = None,
) -> Model:
    """h_0 = drop(flatten(x)); h_{l+1} = drop(relu(norm(h_l W_l + b_l))); logits = h_L W_L + b_L, all float32.

    norm and drop are nothing unless asked for. Training steps alone drop: `train`, not `apply` and `tap`.

    Args:
        hidden: widths of the hidden layers.
        num_outputs: width of the head.
        initialization: "uniform" or "he", see `cl_jax.models.layers.dense_layer`.
        layer_norm: normalise what each ReLU receives over the layer's units, see `cl_jax.models.layers.Layers`. The
            dense layers' weights stay those of a model without it.
        dropout: rate of dropout of the hidden units, in [0, 1), may be traced; None: none.
        input_dropout: the same of the input.

    Returns:
        A model with parameters `{"dense_0": {"kernel": [d_in, d_out], "bias": [d_out]}, ...}`, and with layer_norm
        `{"norm_0": {"scale": [d_out], "bias": [d_out]}, ...}`, which begin as ones and zeros.
    """
    if initialization not in INITIALIZATIONS:
        raise unknown("initialization", initialization, INITIALIZATIONS)
    widths = (*hidden, num_outputs)
    names = [f"dense_{i}" for i in range(len(widths))]
    norms = [f"norm_{i}" for i in range(len(hidden))] if layer_norm else []

    def init(key: jax.Array, x: jax.Array) -> Params:
        fan_in = x.reshape(x.shape[0], -1).shape[1]
        keys = jax.random.split(key, 2 * len(widths))
        params = {}
        for i, (d_in, d_out) in enumerate(itertools.pairwise((fan_in, *widths))):
            params[names[i]] = dense_layer(keys[2 * i : 2 * i + 2], d_in, d_out, initialization)
        for name, width in zip(norms, hidden, strict=False):
            params[name] = {"scale": jnp.ones((width,), jnp.float32), "bias": jnp.zeros((width,), jnp.float32)}
        return params

    def passed(layers: Layers, x: jax.Array, drop: Drop) -> jax.Array:
        h = drop(0, x.reshape(x.shape[0], -1))
        for i, name in enumerate(names[:-1]):
            h = layers.dense(name, h)
            h = layers.layer_norm(norms[i], h) if layer_norm else h
            h = drop(i + 1, jax.nn.relu(h))
        return layers.dense(names[-1], h)

    def tap(params: Params, probes: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        layers = Layers(params, probes)
        return passed(layers, x, lambda number, h: h), layers.inputs

    def train(key: jax.Array, params: Params, x: jax.Array) -> jax.Array:
        def drop(number: int, h: jax.Array) -> jax.Array:
            rate = dropout if number else input_dropout
            return h if rate is None else dropped(jax.random.fold_in(key, number), h, rate)

        return passed(Layers(params, {}), x, drop)

    return Model(
        init=init,
        apply=lambda params, x: tap(params, {}, x)[0],
        tap=tap,
        train=None if dropout is None and input_dropout is None else train,
        fresh=lambda key, d_in, d_out: dense_layer(jax.random.split(key), d_in, d_out, initialization),
        gates=True,
    )


@config
class Dropout:
    """In training steps each number is 0 with probability `rate`; see `cl_jax.models.layers.dropped`."""

    rate: float = traced(0.5, high=0.99)


@config
class Mlp:
    """Multi-layer perceptron: dense layers of these widths with ReLU between them; see `cl_jax.models.mlp`."""

    hidden: tuple[int, ...] = static((100, 100), low=1)
    initialization: str = static("uniform", choices=INITIALIZATIONS)
    layer_norm: bool = static(False, later=True)
    dropout: Dropout | None = child(optional=Dropout, later=True)  # of the hidden units
    input_dropout: Dropout | None = child(optional=Dropout, later=True)

    def build(self, num_outputs: int) -> Model:
        return mlp(
            self.hidden, num_outputs, self.initialization, layer_norm=self.layer_norm,
            dropout=self.dropout and self.dropout.rate, input_dropout=self.input_dropout and self.input_dropout.rate,
        )  # fmt: skip

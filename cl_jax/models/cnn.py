"""A small convolutional network: 3 x 3 convolutions with pooling, then dense layers."""

from collections.abc import Sequence

import jax

from cl_jax.config import config, static
from cl_jax.errors import unknown
from cl_jax.method import stream_key
from cl_jax.model import Model, Params
from cl_jax.models.conv import CONVOLUTIONS, max_pool
from cl_jax.models.layers import INITIALIZATIONS, Layers, check_images, dense_layer


def cnn(
    channels: Sequence[int],
    hidden: Sequence[int],
    num_outputs: int,
    initialization: str = "uniform",
    convolution: str = "patches",
) -> Model:
    """h_{l+1} = relu(max_pool(conv(h_l) + b_l)), then flatten, then as `mlp`; float32 throughout.

    Pooling is 2 x 2 and comes before the ReLU: the same numbers as after it, and a quarter of the work.

    Args:
        channels: of the 3 x 3 convolutions, stride 1, SAME padding, each followed by pooling.
        hidden: widths of the dense layers before the head.
        num_outputs: width of the head.
        initialization: "uniform" or "he", see `cl_jax.models.layers.dense_layer`.
        convolution: "patches" or "library", see `cl_jax.models.conv.convolution`.

    Returns:
        A model of images [B, H, W, C] with parameters `{"conv_0": {"kernel": [9 C, channels[0]], "bias": ...}, ...,
        "dense_0": ..., ...}`, the last of them the head.
    """
    for kind, given, known in (
        ("initialization", initialization, INITIALIZATIONS),
        ("convolution", convolution, CONVOLUTIONS),
    ):
        if given not in known:
            raise unknown(kind, given, known)
    convs = [f"conv_{i}" for i in range(len(channels))]
    denses = [f"dense_{i}" for i in range(len(hidden) + 1)]

    def init(key: jax.Array, x: jax.Array) -> Params:
        check_images(x, 2 ** len(channels), "cnn")
        _, height, width, d_in = x.shape
        sizes = []
        for name, d_out in zip(convs, channels, strict=True):
            sizes.append((name, 9 * d_in, d_out))
            height, width, d_in = height // 2, width // 2, d_out
        d_in *= height * width
        for name, d_out in zip(denses, (*hidden, num_outputs), strict=True):
            sizes.append((name, d_in, d_out))
            d_in = d_out

        def layer(name: str, d_in: int, d_out: int) -> Params:
            return dense_layer(jax.random.split(stream_key(key, name)), d_in, d_out, initialization)

        return {name: layer(name, d_in, d_out) for name, d_in, d_out in sizes}

    def tap(params: Params, probes: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        layers = Layers(params, probes)
        h = x
        for name in convs:
            h = jax.nn.relu(max_pool(layers.conv(name, h, 3, 1, convolution)))
        h = h.reshape(h.shape[0], -1)
        for name in denses[:-1]:
            h = jax.nn.relu(layers.dense(name, h))
        return layers.dense(denses[-1], h), layers.inputs

    return Model(init=init, apply=lambda params, x: tap(params, {}, x)[0], tap=tap, gates=True)


@config
class Cnn:
    """3 x 3 convolutions with 2 x 2 max-pooling and ReLU, then dense layers; see `cl_jax.models.cnn`."""

    channels: tuple[int, ...] = static((32, 64), low=1)
    hidden: tuple[int, ...] = static((128,), low=1)
    initialization: str = static("uniform", choices=INITIALIZATIONS)
    convolution: str = static("patches", choices=CONVOLUTIONS)

    def build(self, num_outputs: int) -> Model:
        return cnn(self.channels, self.hidden, num_outputs, self.initialization, self.convolution)

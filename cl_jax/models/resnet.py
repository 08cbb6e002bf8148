"""The reduced ResNet-18 of the continual-learning literature: 3 x 3 stem, four stages of two basic blocks.

He et al. 2016, arXiv 1512.03385; reduced to base width 20 for split CIFAR by GEM (Lopez-Paz and Ranzato 2017, arXiv
1706.08840), A-GEM (Chaudhry et al. 2019, arXiv 1812.00420), and in this form in Mammoth (Buzzega et al. 2020, arXiv
2004.07211).
"""

import jax
import jax.numpy as jnp

from cl_jax.config import config, static
from cl_jax.errors import UserError, unknown
from cl_jax.method import stream_key
from cl_jax.model import Model, Params
from cl_jax.models.conv import CONVOLUTIONS, global_average_pool
from cl_jax.models.layers import INITIALIZATIONS, Layers, check_images, dense_layer

NORMALIZATIONS = ("group", "none")
STRIDES = (1, 2, 2, 2)
BLOCKS = 2  # per stage


def resnet18(
    width: int,
    num_outputs: int,
    normalization: str = "group",
    groups: int = 4,
    initialization: str = "he",
    convolution: str = "patches",
) -> Model:
    """conv-norm-relu; stages of width (1, 2, 4, 8) * width, of which all but the first halve the image; mean over
    positions; head. A block: h -> relu(shortcut(h) + norm(conv(relu(norm(conv(h)))))), 3 x 3 convolutions, the shortcut
    a 1 x 1 convolution and norm where the shape changes. With width 20 and 3 x 32 x 32 images, 1.1 million parameters.

    Published runs normalise with batch statistics. Here an example's output depends on that example alone: per-example
    gradients (the Fisher) are only then defined, no running averages drift from task to task, and no state but the
    parameters has to be kept. Group normalisation needs no more than that and trains as well at small batches.

    Args:
        width: channels of the stem and the first stage.
        num_outputs: width of the head.
        normalization: "group", then convolutions have no biases; "none", then they do and each block's last
            convolution starts at zero, so that the blocks start as their shortcuts (after Zhang et al. 2019, arXiv
            1901.09321).
        groups: of adjacent channels that are normalised together; must divide `width`.
        initialization: "uniform" or "he", see `cl_jax.models.layers.dense_layer`.
        convolution: "patches" or "library", see `cl_jax.models.conv.convolution`.

    Returns:
        A model of images [B, H, W, C] with parameters by layer: `stem_conv`, `stem_norm`, `stage_0_block_0_conv_0`,
        `..._norm_0`, `..._conv_1`, `..._norm_1`, `..._shortcut_conv`, `..._shortcut_norm`, ..., `head`.

    Raises:
        UserError: an unknown name; `groups` that do not divide `width`.
    """
    for kind, given, known in (
        ("normalization", normalization, NORMALIZATIONS),
        ("initialization", initialization, INITIALIZATIONS),
        ("convolution", convolution, CONVOLUTIONS),
    ):
        if given not in known:
            raise unknown(kind, given, known)
    normalized = normalization == "group"
    if normalized and width % groups:
        raise UserError(
            f"resnet18 width {width} cannot be split into {groups} groups of channels: choose a width that is a "
            f"multiple of groups, or another number of groups"
        )

    def init(key: jax.Array, x: jax.Array) -> Params:
        check_images(x, 1, "resnet18")
        params = {}
        for name, d_in, d_out in _sizes(x.shape[3], width, num_outputs):
            layer = dense_layer(jax.random.split(stream_key(key, name)), d_in, d_out, initialization)
            if not normalized and name.endswith("conv_1"):
                layer = jax.tree.map(jnp.zeros_like, layer)
            if normalized and name != "head":
                params[name] = {"kernel": layer["kernel"]}
                ones, zeros = jnp.ones((d_out,), jnp.float32), jnp.zeros((d_out,), jnp.float32)
                params[name.replace("conv", "norm")] = {"scale": ones, "bias": zeros}
            else:
                params[name] = layer
        return params

    def tap(params: Params, probes: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        layers = Layers(params, probes)

        def conv_norm(name: str, h: jax.Array, window: int, stride: int) -> jax.Array:
            h = layers.conv(name, h, window, stride, convolution)
            return layers.group_norm(name.replace("conv", "norm"), h, groups) if normalized else h

        h = jax.nn.relu(conv_norm("stem_conv", x, 3, 1))
        for name, stride in _blocks():
            inner = jax.nn.relu(conv_norm(f"{name}_conv_0", h, 3, stride))
            inner = conv_norm(f"{name}_conv_1", inner, 3, 1)
            shortcut = f"{name}_shortcut_conv"
            h = jax.nn.relu(inner + (conv_norm(shortcut, h, 1, stride) if shortcut in params else h))
        return layers.dense("head", global_average_pool(h)), layers.inputs

    return Model(init=init, apply=lambda params, x: tap(params, {}, x)[0], tap=tap, gates=True)


def _blocks() -> list[tuple[str, int]]:
    """Every block's name and stride."""
    return [
        (f"stage_{stage}_block_{block}", stride if block == 0 else 1)
        for stage, stride in enumerate(STRIDES)
        for block in range(BLOCKS)
    ]


def _sizes(channels: int, width: int, num_outputs: int) -> list[tuple[str, int, int]]:
    """Name, d_in and d_out of every kernel."""
    sizes = [("stem_conv", 9 * channels, width)]
    d_in = width
    for number, (name, stride) in enumerate(_blocks()):
        d_out = width * 2 ** (number // BLOCKS)
        sizes += [(f"{name}_conv_0", 9 * d_in, d_out), (f"{name}_conv_1", 9 * d_out, d_out)]
        if stride != 1 or d_in != d_out:
            sizes.append((f"{name}_shortcut_conv", d_in, d_out))
        d_in = d_out
    return [*sizes, ("head", d_in, num_outputs)]


@config
class Resnet18:
    """Reduced ResNet-18 of split CIFAR, base width 20, with group normalisation; see `cl_jax.models.resnet`."""

    width: int = static(20, low=1)
    normalization: str = static("group", choices=NORMALIZATIONS)
    groups: int = static(4, low=1)
    initialization: str = static("he", choices=INITIALIZATIONS)
    convolution: str = static("patches", choices=CONVOLUTIONS)

    def build(self, num_outputs: int) -> Model:
        return resnet18(self.width, num_outputs, self.normalization, self.groups, self.initialization, self.convolution)

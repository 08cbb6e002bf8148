"""The layers that models here are made of, each telling `Model.tap` what it received."""

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.errors import UserError
from cl_jax.model import Params
from cl_jax.models.conv import convolution, patches

INITIALIZATIONS = ("uniform", "he")
EPSILON = 1e-5  # added to the variance, as in PyTorch


def dense_layer(keys: jax.Array, d_in: int, d_out: int, initialization: str) -> dict[str, jax.Array]:
    """A kernel [d_in, d_out] and a bias [d_out], float32. A convolution's d_in counts window * window * channels.

    Args:
        keys: [2], for the kernel and for the bias.
        initialization: "uniform": kernels and biases uniform in +-1 / sqrt(d_in), the default of PyTorch's linear and
            convolutional layers, which most published protocols used; "he": kernels N(0, 2 / d_in), biases 0 (He et
            al. 2015, arXiv 1502.01852), under which EWC forgot less on permuted digits.
    """
    if initialization == "he":
        kernel = (2.0 / d_in) ** 0.5 * jax.random.normal(keys[0], (d_in, d_out), jnp.float32)
        return {"kernel": kernel, "bias": jnp.zeros((d_out,), jnp.float32)}
    bound = d_in**-0.5
    return {
        "kernel": jax.random.uniform(keys[0], (d_in, d_out), jnp.float32, -bound, bound),
        "bias": jax.random.uniform(keys[1], (d_out,), jnp.float32, -bound, bound),
    }


def check_images(x: jax.Array, smallest: int, model: str) -> None:
    """Raises UserError unless x is [B, H, W, C] with H and W at least `smallest`."""
    if len(x.shape) != 4 or min(x.shape[1:3]) < smallest:
        raise UserError(
            f"model {model} expects images [H, W, C] of at least {smallest} x {smallest} pixels, was given examples of "
            f"shape {list(x.shape[1:])}: use another data set, or model mlp, which takes any shape"
        )


def dropped(key: jax.Array, h: jax.Array, rate: jax.Array | float) -> jax.Array:
    """h / (1 - rate) with probability 1 - rate, else 0, each number by itself: the expectation is h.

    Args:
        rate: in [0, 1), may be traced.

    Source: Srivastava et al. 2014, JMLR 15; scaled in training, as PyTorch does.
    """
    keep = 1.0 - rate
    return jnp.where(jax.random.bernoulli(key, keep, h.shape), h / keep, jnp.zeros_like(h))


class Layers:
    """One pass through a model: computes its layers and records in `inputs` what each received.

    A layer's output is that of its formula plus `probes[name]`, where there are probes, times its `gate`, where it has
    one; see `Model.tap`.
    """

    def __init__(self, params: Params, probes: dict[str, jax.Array]):
        self.params, self.probes = params, probes
        self.inputs: dict[str, jax.Array] = {}

    def dense(self, name: str, h: jax.Array) -> jax.Array:
        """h W + b, [..., d_out] from [..., d_in]."""
        self.inputs[name] = h
        return self._finish(name, h @ self.params[name]["kernel"])

    def conv(self, name: str, h: jax.Array, window: int, stride: int, implementation: str) -> jax.Array:
        """`convolution` with SAME padding, plus b: [B, H', W', d_out] from [B, H, W, C]."""
        self.inputs[name] = patches(h, window, stride)  # dropped by the compiler where nobody reads it
        return self._finish(name, convolution(h, self.params[name]["kernel"], window, stride, "SAME", implementation))

    def group_norm(self, name: str, h: jax.Array, groups: int) -> jax.Array:
        """scale * (h - mean) / sqrt(variance + 1e-5) + bias, mean and (biased) variance of an example's group of
        adjacent channels over all positions (Wu and He 2018, arXiv 1803.08494): [B, H, W, C] from [B, H, W, C].
        """
        # Means per channel first: sums over leading axes are fast, and a group then takes few of them.
        mean_BxC = jnp.mean(h, axis=(1, 2))
        mean = _per_group(mean_BxC, groups)
        variance = _per_group(jnp.mean(jnp.square(h - mean), axis=(1, 2)), groups)
        normal = (h - mean) * lax.rsqrt(variance + EPSILON)
        self.inputs[name] = normal
        return self._finish(name, normal * self.params[name]["scale"][None, None, None, :])

    def layer_norm(self, name: str, h: jax.Array) -> jax.Array:
        """scale * (h - mean) / sqrt(variance + 1e-5) + bias, mean and (biased) variance over an example's features
        (Ba et al. 2016, arXiv 1607.06450): [..., D] from [..., D].
        """
        centred = h - jnp.mean(h, axis=-1, keepdims=True)
        normal = centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + EPSILON)
        self.inputs[name] = normal
        scale = self.params[name]["scale"]
        return self._finish(name, normal * scale.reshape((1,) * (h.ndim - 1) + scale.shape))

    def _finish(self, name: str, y: jax.Array) -> jax.Array:
        if "bias" in self.params[name]:
            bias = self.params[name]["bias"]
            y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        y = y + self.probes[name] if self.probes else y
        if "gate" in self.params[name]:
            gate = lax.stop_gradient(self.params[name]["gate"])
            y = y * gate.reshape((1,) * (y.ndim - 1) + gate.shape)
        return y


def _per_group(means_BxC: jax.Array, groups: int) -> jax.Array:
    """Averages each group's channels, and gives every channel its group's: [B, 1, 1, C]."""
    num, channels = means_BxC.shape
    grouped = jnp.mean(means_BxC.reshape(num, groups, channels // groups), axis=2)
    return jnp.repeat(grouped, channels // groups, axis=1)[:, None, None, :]

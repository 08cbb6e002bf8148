"""Corrupted images: every task has a fault of its own (Hendrycks and Dietterich 2019, arXiv 1903.12261).

The strengths are those of the authors' code for images of 32 x 32 (CIFAR-10-C, hendrycks/robustness), severity 1 to 5.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.config import config, static
from cl_jax.data import Data
from cl_jax.errors import UserError, unknown
from cl_jax.tasks.stream import Stream, Tables

KINDS = ("none", "noise", "blur", "contrast")
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation, where the largest value of a pixel is 1
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)  # standard deviation in pixels
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # what is left of the distance to the image's mean
SEVERITIES = 5


@config
class Corrupted:
    """Task t shows all classes through the t-th of some faults of a camera.

    "noise" adds a Gaussian of its own to every pixel of every image, the same whenever an image is shown in a task;
    "blur" is Gaussian, beyond the edge are the pixels at it; "contrast" draws each channel to its mean over the image;
    "none" leaves images as they are. Values are cut to the range of a pixel, and not rounded.

    Attributes:
        kinds: of each task, one of "none", "noise", "blur", "contrast".
        severity: 1 to 5.
    """

    kinds: tuple[str, ...] = static(KINDS)
    severity: int = static(5, low=1)

    @property
    def num_tasks(self) -> int:
        return len(self.kinds) if isinstance(self.kinds, tuple) else 0

    def build(self, data: Data) -> Stream:
        if not isinstance(self.kinds, tuple) or not self.kinds:
            raise UserError(f"stream.kinds: expected a tuple such as {KINDS}, was given {self.kinds!r}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise unknown("corruption in stream.kinds", kind, KINDS)
        if self.severity > SEVERITIES:
            raise UserError(f"stream.severity: was given {self.severity}; the most allowed is {SEVERITIES}")
        at, most = self.severity - 1, float(data.pixel_max)

        def transform(tables: Tables, task: jax.Array, images: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.wrap_key_data(tables), task)
            faults = {
                "none": lambda x: x,
                "noise": lambda x: x + most * NOISE[at] * own_noise(key, images),
                "blur": lambda x: blurred(x, BLUR[at]),
                "contrast": lambda x: contrasted(x, CONTRAST[at]),
            }
            x = images.astype(jnp.float32)
            if len(set(self.kinds)) == 1:
                changed = faults[self.kinds[0]](x)
            else:
                changed = jax.lax.switch(task, [faults[kind] for kind in self.kinds], x)
            return jnp.clip(changed, 0.0, most)

        return Stream(
            num_tasks=len(self.kinds),
            classes_per_task=data.num_classes,
            tables=lambda key, data: jax.random.key_data(key),
            transform=transform,
        )


def own_noise(key: jax.Array, images: jax.Array) -> jax.Array:
    """Standard normal numbers that depend on the key and the image alone: uint8 [B, H, W, C] -> float32 the same."""
    key_digest, key_noise = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    flat = images.reshape(images.shape[0], -1).astype(jnp.uint32)
    weights = jax.random.bits(key_digest, (1, flat.shape[1]), jnp.uint32)
    digest = jnp.sum(flat * weights, axis=1, dtype=jnp.uint32)
    each = jax.vmap(lambda one: jax.random.normal(jax.random.fold_in(key_noise, one), images.shape[1:], jnp.float32))
    return each(digest)


def blurred(images: jax.Array, deviation: float) -> jax.Array:
    """A Gaussian blur with the kernel cut at four deviations, as two matrix products: float32 [B, H, W, C]."""
    rows, columns = (jnp.asarray(blur_matrix(size, deviation)) for size in images.shape[1:3])
    once = jnp.einsum("ij,bjkc->bikc", rows, images, precision="highest")
    return jnp.einsum("kl,bilc->bikc", columns, once, precision="highest")


def blur_matrix(size: int, deviation: float) -> np.ndarray:
    """float32 [size, size], each row the weights of one blurred pixel, summing to 1."""
    reach = int(4 * deviation + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)
    matrix = np.zeros((size, size))
    for row in range(size):
        np.add.at(matrix[row], np.clip(row + offsets, 0, size - 1), weights / weights.sum())
    return matrix.astype(np.float32)


def contrasted(images: jax.Array, factor: float) -> jax.Array:
    """mean + factor (image - mean), the mean over the pixels of each channel: float32 [B, H, W, C]."""
    mean = jnp.mean(images, axis=(1, 2), keepdims=True)
    return mean + factor * (images - mean)

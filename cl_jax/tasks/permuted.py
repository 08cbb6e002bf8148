"""Permuted images: every task shuffles the pixels in its own fixed way (Goodfellow et al. 2013, arXiv 1312.6211)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.config import config, static
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.shuffle import shuffled_index
from cl_jax.tasks.pixels import move_pixels
from cl_jax.tasks.stream import Stream, Tables

PERMUTATIONS = ("stored", "derived")


@config
class Permuted:
    """Task t shows all classes with pixels reordered by a uniformly random permutation of the seed.

    Attributes:
        num_tasks: T.
        first_identity: leave the first task's images as they are (Zenke et al. 2017).
        permutations: "stored" draws all T at the start, 4 bytes a pixel, task and run. "derived" keeps the seed's key
            and reckons a task's permutation (another one, of `cl_jax.shuffle`) wherever its images are shown: memory
            hardly grows with T, for long streams (800 tasks of Dohare et al. 2024, Nature 632).
        square: permute only the pixels of a square of this side in the middle (Kirkpatrick et al. 2017, figure 2C: 8
            and 26 of 28). None: all.
    """

    needs_images: ClassVar[bool] = True

    num_tasks: int = static(5, low=1)
    first_identity: bool = static(False)
    permutations: str = static("stored", choices=PERMUTATIONS, later=True)
    square: int | None = static(None, low=2, later=True)

    def build(self, data: Data) -> Stream:
        pixels = jnp.arange(data.images.shape[1] * data.images.shape[2], dtype=jnp.int32)
        moving = jnp.asarray(middle(data.images.shape[1], data.images.shape[2], self.square))
        places = jnp.arange(moving.size, dtype=jnp.int32)

        def tables(key: jax.Array, data: Data) -> Tables:
            if self.permutations == "derived":
                return jax.random.key_data(key)
            keys = jax.vmap(lambda task: jax.random.fold_in(key, task))(jnp.arange(self.num_tasks))
            drawn = jax.vmap(lambda one: pixels.at[moving].set(jax.random.permutation(one, moving)))(keys)
            return drawn.at[0].set(pixels) if self.first_identity else drawn  # int32 [T, H * W]

        def source(tables: Tables, task: jax.Array) -> jax.Array:
            if self.permutations == "stored":
                return tables[task]
            key = jax.random.fold_in(jax.random.wrap_key_data(tables), task)
            order = shuffled_index(key, jnp.zeros_like(places), places, jnp.int32(places.size))
            drawn = pixels.at[moving].set(moving[order])
            return jnp.where(task > 0, drawn, pixels) if self.first_identity else drawn

        return Stream(
            num_tasks=self.num_tasks,
            classes_per_task=data.num_classes,
            tables=tables,
            transform=lambda tables, task, images: move_pixels(source(tables, task), images),
        )


def middle(height: int, width: int, side: int | None) -> np.ndarray:
    """The pixels of the square in the middle: int32, of an image read row by row. Raises UserError: it is too large."""
    pixels = np.arange(height * width, dtype=np.int32).reshape(height, width)
    if side is None:
        return pixels.reshape(-1)
    if side > min(height, width):
        raise UserError(f"stream.square: was given {side}; the most allowed is the smaller side of {height} x {width}")
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side].reshape(-1)

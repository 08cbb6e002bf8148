"""Permuted images: every task shuffles the pixels in its own fixed way (Goodfellow et al. 2013, arXiv 1312.6211)."""

import jax
import jax.numpy as jnp

from cl_jax.config import config, static
from cl_jax.data import Data
from cl_jax.tasks.stream import Stream, Tables, move_pixels


@config
class Permuted:
    """Task t shows all classes with pixels reordered by a uniformly random permutation of the seed.

    Attributes:
        num_tasks: T.
        first_identity: leave the first task's images as they are (Zenke et al. 2017).
    """

    num_tasks: int = static(5, low=1)
    first_identity: bool = static(False)

    def build(self, data: Data) -> Stream:
        def tables(key: jax.Array, data: Data) -> Tables:
            pixels = jnp.arange(data.images.shape[1] * data.images.shape[2], dtype=jnp.int32)
            keys = jax.vmap(lambda task: jax.random.fold_in(key, task))(jnp.arange(self.num_tasks))
            drawn = jax.vmap(lambda one: jax.random.permutation(one, pixels))(keys)
            return drawn.at[0].set(pixels) if self.first_identity else drawn  # int32 [T, H * W]

        return Stream(
            num_tasks=self.num_tasks,
            classes_per_task=data.num_classes,
            tables=tables,
            transform=lambda tables, task, images: move_pixels(tables[task], images),
        )

"""Rotated images: every task turns the images by its own angle (Lopez-Paz and Ranzato 2017, arXiv 1706.08840)."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from cl_jax.config import config, static
from cl_jax.data import Data
from cl_jax.tasks.pixels import move_pixels
from cl_jax.tasks.stream import Stream, Tables


@config
class Rotated:
    """Task t shows all classes rotated counter-clockwise about the centre, by nearest neighbour, blank outside.

    Attributes:
        num_tasks: T.
        max_degrees: the range of angles.
        angles: "random" draws each task's angle uniformly from [0, max_degrees) by the seed; "even" takes
            t * max_degrees / T.
    """

    needs_images: ClassVar[bool] = True

    num_tasks: int = static(5, low=1)
    max_degrees: int = static(180, low=1)
    angles: str = static("random", choices=("random", "even"))

    def build(self, data: Data) -> Stream:
        def tables(key: jax.Array, data: Data) -> Tables:
            if self.angles == "random":
                degrees = jax.random.uniform(key, (self.num_tasks,), jnp.float32, 0.0, self.max_degrees)
            else:
                degrees = jnp.arange(self.num_tasks, dtype=jnp.float32) * (self.max_degrees / self.num_tasks)
            return jax.vmap(lambda angle: rotation(angle, *data.images.shape[1:3]))(degrees)  # int32 [T, H * W]

        return Stream(
            num_tasks=self.num_tasks,
            classes_per_task=data.num_classes,
            tables=tables,
            transform=lambda tables, task, images: move_pixels(tables[task], images),
        )


def rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """For each pixel of the rotated image, the pixel of the original it shows, H * W where that lies outside.

    Rows count downwards, so counter-clockwise as seen means: source = centre + [[cos, sin], [-sin, cos]] (x, y offset).

    Returns:
        int32 [H * W].
    """
    radians = jnp.deg2rad(degrees)
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    y = rows.astype(jnp.float32) - (height - 1) / 2
    x = columns.astype(jnp.float32) - (width - 1) / 2
    source_x = jnp.round(jnp.cos(radians) * x - jnp.sin(radians) * y + (width - 1) / 2).astype(jnp.int32)
    source_y = jnp.round(jnp.sin(radians) * x + jnp.cos(radians) * y + (height - 1) / 2).astype(jnp.int32)
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    return jnp.where(inside, source_y * width + source_x, height * width).reshape(-1)

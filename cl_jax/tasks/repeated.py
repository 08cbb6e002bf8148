"""Repeated tasks: some tasks come again, A B A (the repetition of Hemati et al. 2023, arXiv 2301.11396)."""

from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.config import child, config, static
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.tasks.permuted import Permuted
from cl_jax.tasks.stream import Stream, Tables, _same_images


@config
class Repeated:
    """The tasks of another stream in an order given, some of them more than once.

    T is the length of the order. Column j of R is of the task at place j, so that a task that comes twice has two equal
    columns: one says how it was learned first, the other again. A visit shows the same rows and, in the task- and
    class-incremental scenarios, trains the same outputs as the first one.

    Attributes:
        stream: the other stream.
        order: numbers of its tasks from 0; A B A is (0, 1, 0). It may leave tasks out.
    """

    stream: Any = child(Permuted)
    order: tuple[int, ...] = static((0, 1, 0), low=0)

    @property
    def num_tasks(self) -> int:
        return len(self.order) if isinstance(self.order, tuple) else 0

    def build(self, data: Data) -> Stream:
        stream: Stream = self.stream.build(data)
        if not self.order or max(self.order) >= stream.num_tasks:
            raise UserError(
                f"stream.order: was given {self.order}; expected at least one number of a task, from 0 to "
                f"{stream.num_tasks - 1}: the stream it repeats has {stream.num_tasks}"
            )
        numbers = stream.schedule or tuple(range(stream.num_tasks))
        transform, share = stream.transform, stream.share

        def shown(tables: Tables, task: jax.Array, images: jax.Array) -> jax.Array:
            return transform(tables, jnp.asarray(self.order, jnp.int32)[task], images)

        def shares(tables: Tables) -> jax.Array:
            assert share is not None
            return share(tables)[jnp.asarray(self.order, jnp.int32)]

        return stream._replace(
            num_tasks=len(self.order),
            schedule=tuple(numbers[task] for task in self.order),
            transform=transform if transform is _same_images else shown,
            share=None if share is None else shares,
        )

"""Split classes: every task holds some of the classes (Zenke et al. 2017; van de Ven and Tolias 2019)."""

import jax
import jax.numpy as jnp

from cl_jax.config import config, static
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.method import stream_key
from cl_jax.tasks.stream import Stream, Tables


@config
class Split:
    """The classes, in an order of the seed, cut into T tasks of floor(classes / T); left-over classes are not used.

    Attributes:
        num_tasks: T.
        class_order: "random" by the seed (its own random stream), or "natural".
        class_seed: of a random order that is the same whatever the run's seed; None: each run's seed has its own.
    """

    num_tasks: int = static(5, low=1)
    class_order: str = static("random", choices=("random", "natural"))
    class_seed: int | None = static(None, low=0, later=True)

    def build(self, data: Data) -> Stream:
        per_task = data.num_classes // self.num_tasks
        if per_task < 1:
            raise UserError(
                f"stream.num_tasks: was given {self.num_tasks} split tasks, but the data has {data.num_classes} "
                f"classes, which is the most allowed"
            )
        if self.class_seed is not None and self.class_order == "natural":
            raise UserError(
                f"stream.class_seed: was given {self.class_seed} for class_order 'natural', which is not random; leave "
                f"one of the two out"
            )

        def tables(key: jax.Array, data: Data) -> Tables:
            if self.class_seed is not None:
                key = stream_key(jax.random.key(self.class_seed), "class order")
            classes = jnp.arange(data.num_classes, dtype=jnp.int32)
            return jax.random.permutation(key, classes) if self.class_order == "random" else classes  # class -> place

        return Stream(
            num_tasks=self.num_tasks,
            classes_per_task=per_task,
            tables=tables,
            task_of=lambda place, label: place[label] // per_task,
            label=lambda place, label: place[label] % per_task,
        )

"""Split classes: every task holds some of the classes (Zenke et al. 2017; van de Ven and Tolias 2019)."""

import jax
import jax.numpy as jnp

from cl_jax.config import config, static
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.tasks.stream import Stream, Tables


@config
class Split:
    """The classes, in an order of the seed, cut into T tasks of floor(classes / T); left-over classes are not used.

    Attributes:
        num_tasks: T.
        class_order: "random" by the seed (its own random stream), or "natural".
    """

    num_tasks: int = static(5, low=1)
    class_order: str = static("random", choices=("random", "natural"))

    def build(self, data: Data) -> Stream:
        per_task = data.num_classes // self.num_tasks
        if per_task < 1:
            raise UserError(
                f"stream.num_tasks: was given {self.num_tasks} split tasks, but the data has {data.num_classes} "
                f"classes, which is the most allowed"
            )

        def tables(key: jax.Array, data: Data) -> Tables:
            classes = jnp.arange(data.num_classes, dtype=jnp.int32)
            return jax.random.permutation(key, classes) if self.class_order == "random" else classes  # class -> place

        return Stream(
            num_tasks=self.num_tasks,
            classes_per_task=per_task,
            tables=tables,
            task_of=lambda place, label: place[label] // per_task,
            label=lambda place, label: place[label] % per_task,
        )

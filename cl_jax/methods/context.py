"""What a method's config is given to build its method with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cl_jax.batch import Batch
from cl_jax.model import Model, Params
from cl_jax.text.format import TextFormat


class Context(NamedTuple):
    """Static but for `present`, `old_outputs`, `example` and what `render` closes over."""

    model: Model
    render: Callable[[Any], Batch]  # references [B] -> batch, rows of any task
    render_task: Callable[[Any], Batch]  # the same for rows that are all of one task: faster
    num_outputs: int
    num_active: int  # the most outputs that compete for one example
    classes_per_task: int  # labels within one task; by index, outputs go task by task unless tasks share them all
    head_size: int  # outputs that share a softmax: those of one task (task-incremental), else all
    old_outputs: jax.Array  # bool [num_outputs], of tasks before the present one; domain-incremental: all after task 1
    present: jax.Array  # int32 (), the task in training, from 0
    num_tasks: int
    steps: int  # a task
    batch_size: int  # of incoming examples a step
    largest_task: int  # the most training rows that one task can have
    example: jax.Array  # float32 [1, ...], zeros: what the model receives
    text: TextFormat | None  # what the data say of their tokens; None: images

    def initial(self, key: jax.Array) -> Params:
        """Initial weights of the model, a draw of their own for each key."""
        return self.model.init(key, self.example)

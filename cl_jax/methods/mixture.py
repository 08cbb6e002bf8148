"""Replay by a share of each batch: some of the new examples make room for old ones, and a step costs what it did."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.config import config, static, traced
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.methods.replay import ReplayState, as_batch, replay, whole_examples


def mixture(
    share: jax.Array | float,
    capacity: int,
    *,
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
    task_items: Callable[[Any], Any] | None = None,
) -> Method:
    """Each row of a batch is, with probability `share`, one drawn from the stored examples of finished tasks instead.

    With share 0, or while nothing is stored, it is fine-tuning on the B new examples: the control at equal compute, in
    which new data stand where replay has old. Nothing is weighted: the task loss is the mean over the B rows.

    Args:
        share: in [0, 1], may be traced: a sweep over it is one program.
        capacity: examples stored, a uniform sample (reservoir) of all of the finished tasks, put in at boundaries.
        store, load, task_items: as `cl_jax.methods.replay.replay`'s.

    Raises:
        UserError: as `replay`.

    Source: Scialom et al. 2022, arXiv 2205.12393 (1 % of the data of earlier tasks); Ibrahim et al. 2024, arXiv
    2403.08763 (1 to 5 % for a weak shift, 25 % for a strong one; "compute-equivalent replay": as many tokens with it).
    """
    stored = replay(capacity, insert="boundary", store=store, load=load, task_items=task_items)

    def draw(key: jax.Array, state: ReplayState, params: Any, batch: Batch) -> Batch:
        key_which, key_rows = jax.random.split(key)
        number = batch.y.shape[0]
        old = stored.draw(key_rows, state, params, batch)  # the new rows, then as many old ones
        anything = jnp.any(state.buffer.occupied)
        chosen_B = (jax.random.uniform(key_which, (number,)) < share) & anything
        rows_B = jnp.arange(number, dtype=jnp.int32) + jnp.where(chosen_B, number, 0)
        return jax.tree.map(lambda leaf: leaf[rows_B], old._replace(weight=None))._replace(weight=batch.weight)

    return Method(init=stored.init, draw=draw, end_task=stored.end_task)


@config
class Mixture:
    """See `mixture`."""

    waits_for_boundary: ClassVar[bool] = True  # nothing is stored before it
    mixes_tasks: ClassVar[bool] = True
    needs_boundaries: ClassVar[bool] = True

    share: float = traced(0.05, high=1.0)
    capacity: int = static(1000, low=1)

    def build(self, context: Context) -> Method:
        return mixture(self.share, self.capacity, store=lambda batch: batch.reference, load=context.render)

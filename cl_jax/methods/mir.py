"""Maximally interfered retrieval: replays what the coming step would harm most.

Aljundi, Caccia, Belilovsky, Caccia, Lin, Charlin & Tuytelaars 2019, arXiv 1908.04742 (ER-MIR).
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cl_jax import buffer as buffers
from cl_jax.batch import Batch, equal_shares, join, row_weights
from cl_jax.config import config, static, traced
from cl_jax.errors import UserError
from cl_jax.losses import example_losses, task_loss
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.methods.replay import INSERTIONS, ReplayState, as_batch, replay, whole_examples
from cl_jax.model import Model, Params

CANDIDATES_PER_REPLAYED = 5  # the authors' 50 for 10


def mir(
    model: Model,
    capacity: int,
    learning_rate: jax.Array | float = 0.1,
    *,
    candidates: int | None = None,
    num_classes: int | None = None,
    policy: str = "reservoir",
    batch_size: int | None = None,
    insert: str = "step",
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
    task_items: Callable[[Any], Any] | None = None,
) -> Method:
    """Task loss = incoming loss + 1/R sum_j loss_j over the R of M stored candidates j whose loss would rise most.

    Candidates are drawn uniformly without replacement; the rise of candidate j is l_j(theta') - l_j(theta), with l_j
    its cross-entropy over the outputs that compete for it and theta' = theta - learning_rate * d/dtheta (task loss of
    the incoming rows), one virtual step of plain SGD, whatever optimizer, penalty or projection the real one has.
    Both without dropout. With fewer stored than R all of them are replayed, 1 / their number each; the second term is
    0 while nothing is stored.

    A step costs, beyond replay's, a pass forward and backward over the incoming rows and two forward over M rows.

    This is the authors' s_MI-1 (optimass/Maximally_Interfered_Retrieval); their s_MI-2, which measures from the
    lowest loss an example ever had, is left out. That code draws no candidates from the present task: `insert`
    "boundary" does not store them before it is finished. Their later pclucas14/AML does as "step".

    Args:
        model: theta is its effective parameters.
        learning_rate: of the virtual step, may be traced; the authors take the training's own.
        candidates: M. None: 5 R.
        capacity, num_classes, policy, batch_size (R), insert, store, load, task_items: as
            `cl_jax.methods.replay.replay`'s.

    Raises:
        UserError: fewer candidates than are replayed; and as `replay`.

    Source: Aljundi et al. 2019, arXiv 1908.04742.
    """
    base = replay(
        capacity, num_classes=num_classes, policy=policy, batch_size=batch_size, weighting="sum", insert=insert,
        store=store, load=load, task_items=task_items,
    )  # fmt: skip

    def draw(key: jax.Array, state: ReplayState, params: Params, batch: Batch) -> Batch:
        num = batch_size or batch.y.shape[0]
        num_candidates = CANDIDATES_PER_REPLAYED * num if candidates is None else candidates
        if num_candidates < num:
            raise UserError(
                f"MIR chooses {num} of {num_candidates} candidates: give at least {num} candidates, or None"
            )
        items, valid = buffers.sample_distinct(key, state.buffer, num_candidates)
        stored = load(items)
        gradient = jax.grad(lambda values: task_loss(model, values, batch))(params)
        ahead = jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)

        def losses(values: Params) -> jax.Array:
            return example_losses(model.apply(values, stored.x), stored)

        rise = jnp.where(valid, losses(ahead) - losses(params), -jnp.inf)
        _, chosen = jax.lax.top_k(rise, num)
        joined = join(batch, jax.tree.map(lambda leaf: leaf[chosen], stored))
        return joined._replace(weight=jnp.concatenate([row_weights(batch), equal_shares(valid[chosen])]))

    return base._replace(draw=draw)


@config
class Mir:
    """See `mir`. The replayed batch is `ratio` times as large as the incoming one."""

    mixes_tasks: ClassVar[bool] = True

    learning_rate: float = traced(0.1)
    capacity: int = static(200, low=1)
    policy: str = static("reservoir", choices=buffers.POLICIES)
    ratio: int = static(1, low=1)
    candidate_ratio: int = static(CANDIDATES_PER_REPLAYED, low=1)
    insert: str = static("step", choices=INSERTIONS)

    @property
    def needs_boundaries(self) -> bool:
        return self.insert == "boundary"

    def build(self, context: Context) -> Method:
        batch_size = self.ratio * context.batch_size
        return mir(
            context.model,
            self.capacity,
            self.learning_rate,
            candidates=self.candidate_ratio * batch_size,
            num_classes=context.num_outputs,
            policy=self.policy,
            batch_size=batch_size,
            insert=self.insert,
            store=lambda batch: batch.reference,
            load=context.render,
        )

"""A tie to the base: the model keeps the answers that it gave at an earlier boundary, by KL divergence.

Unlike `cl_jax.methods.anchoring` it keeps the earlier weights, not their answers: a second pass forward, and no memory
by input, which sequences need, whose answers are as many numbers as tokens times positions.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch, Task, equal_shares, target_weights
from cl_jax.config import config, static, traced
from cl_jax.distillation import divergence
from cl_jax.errors import unknown
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.methods.replay import ReplayState, as_batch, replay, whole_examples
from cl_jax.model import Model, Params

INPUTS = ("new", "old")
ANCHORS = ("base", "previous")


class KlAnchorState(NamedTuple):
    """The earlier model, and where old inputs are asked for, them."""

    anchor: Params  # like params
    tasks_finished: jax.Array  # int32 ()
    past: ReplayState | tuple[()]


def kl_anchor(
    model: Model,
    strength: jax.Array | float,
    *,
    inputs: str = "new",
    anchor: str = "base",
    capacity: int = 1000,
    batch_size: int | None = None,
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
    task_items: Callable[[Any], Any] | None = None,
) -> Method:
    """penalty = strength * mean KL(p_anchor(. | x) || p_theta(. | x)), in nats, over inputs x.

    The mean is over examples, of sequences over their counted targets. 0 before the first boundary. On *new* inputs it
    bounds what RL's Razor says predicts forgetting; on *old* ones it holds what is to be kept itself.

    Args:
        strength: may be traced.
        inputs: "new": those of the batch in training. "old": R drawn from the stored ones of finished tasks.
        anchor: "base": the model at the first boundary. "previous": at the last one.
        capacity, store, load, task_items: of "old", as `cl_jax.methods.replay.replay`'s.
        batch_size: R; None: as many as come in.

    Raises:
        UserError: unknown inputs or anchor; else as `replay`.

    Source: Li & Hoiem 2016, arXiv 1606.09282 (new inputs); Shenfeld, Pari & Agrawal 2025, arXiv 2509.04259 (the KL to
    the base as what forgetting follows).
    """
    if inputs not in INPUTS:
        raise unknown("KL anchor inputs", inputs, INPUTS)
    if anchor not in ANCHORS:
        raise unknown("KL anchor", anchor, ANCHORS)
    stored = replay(
        capacity, batch_size=batch_size, insert="boundary", store=store, load=load, task_items=task_items
    )  # fmt: skip

    def init(key: jax.Array, params: Params, batch: Batch) -> KlAnchorState:
        past = stored.init(key, params, batch) if inputs == "old" else ()
        return KlAnchorState(params, jnp.zeros((), jnp.int32), past)

    def draw(key: jax.Array, state: KlAnchorState, params: Params, batch: Batch) -> Batch:
        if inputs == "new":
            return batch
        assert isinstance(state.past, ReplayState)
        joined, number = stored.draw(key, state.past, params, batch), batch.y.shape[0]
        rows = joined.y.shape[0] - number
        filled = jnp.broadcast_to(jnp.any(state.past.buffer.occupied), (rows,))
        old = jnp.concatenate([jnp.zeros((number,), bool), filled])
        weight = jnp.full((number,), 1.0 / number, jnp.float32) if batch.weight is None else batch.weight
        told = {**(joined.extra or {}), "kl_anchor": equal_shares(old)}
        return joined._replace(weight=jnp.concatenate([weight, jnp.zeros((rows,), jnp.float32)]), extra=told)

    def loss(state: KlAnchorState, logits: jax.Array, batch: Batch) -> jax.Array:
        if inputs == "old":
            batch = batch._replace(weight=(batch.extra or {})["kl_anchor"])
        apart = divergence(model.apply(state.anchor, batch.x), logits, 1.0, batch.active, batch.active)
        held = strength * jnp.sum(target_weights(batch) * apart)
        return jnp.where(state.tasks_finished > 0, held, 0.0)

    def end_task(key: jax.Array, state: KlAnchorState, params: Params, task: Task) -> KlAnchorState:
        past = stored.end_task(key, state.past, params, task) if isinstance(state.past, ReplayState) else ()
        moves = (state.tasks_finished == 0) | (anchor == "previous")
        kept = jax.tree.map(lambda old, new: jnp.where(moves, new, old), state.anchor, params)
        return KlAnchorState(kept, state.tasks_finished + 1, past)

    return Method(init=init, draw=draw, loss=loss, end_task=end_task)


@config
class KlAnchor:
    """See `kl_anchor`. The old inputs are `ratio` times the incoming ones."""

    waits_for_boundary: ClassVar[bool] = True
    needs_boundaries: ClassVar[bool] = True

    strength: float = traced(1.0)
    inputs: str = static("new", choices=INPUTS)
    anchor: str = static("base", choices=ANCHORS)
    capacity: int = static(1000, low=1)
    ratio: int = static(1, low=1)

    @property
    def mixes_tasks(self) -> bool:
        return self.inputs == "old"

    def build(self, context: Context) -> Method:
        return kl_anchor(
            context.model, self.strength, inputs=self.inputs, anchor=self.anchor, capacity=self.capacity,
            batch_size=self.ratio * context.batch_size, store=lambda batch: batch.reference, load=context.render,
        )  # fmt: skip

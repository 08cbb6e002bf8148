"""Functional anchoring: stored inputs keep the answers of the last boundary, by KL divergence."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax import buffer as buffers
from cl_jax.batch import Batch, Task, equal_shares, join, row_weights
from cl_jax.config import config, static, traced
from cl_jax.distillation import answers, divergence
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.methods.replay import ReplayState, as_batch, replay, whole_examples
from cl_jax.model import Model, Params


class AnchoringState(NamedTuple):
    """Stored inputs and what the model answered."""

    past: ReplayState
    answers: jax.Array  # float32 [capacity, C], logits at the last boundary on the input of each slot


class Anchored(NamedTuple):
    """What `draw` tells `loss` of each row, in `batch.extra["anchoring"]`."""

    answers: jax.Array  # float32 [B, C]; 0 for rows that are not anchored
    weight: jax.Array  # float32 [B], sums to 1, or to 0 while nothing is stored


def anchoring(
    model: Model,
    capacity: int,
    strength: jax.Array | float = 1.0,
    temperature: jax.Array | float = 1.0,
    *,
    old_outputs: jax.Array | None = None,
    num_classes: int | None = None,
    policy: str = "reservoir",
    batch_size: int | None = None,
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
    task_items: Callable[[Any], Any] | None = None,
) -> Method:
    """loss = strength * T^2 * 1/R sum_j KL(q_j || p_j) over R inputs drawn from those stored of finished tasks.

    q_j = softmax(z*_j / T), z*_j the logits of the model at the last boundary, over the outputs that competed for the
    input then; p_j = softmax(z_j / T), the present model's, over the outputs that compete now (`Batch.active`), so in
    class-incremental learning the new classes are to have probability 0 on old inputs. Labels are not used, and the
    task loss sees the incoming rows alone. 0 before the first boundary. The factor T^2 keeps the gradient's size as T
    grows (Hinton et al. 2015).

    At each boundary the buffer is offered every training example of the finished task, once, in random order, and the
    present model answers anew on all that is stored: 4 C bytes a slot instead of a copy of the weights and its pass
    forward a step. Draws are independent, uniform and with replacement.

    Args:
        strength, temperature: may be traced; T > 0.
        old_outputs: bool [C], outputs of finished tasks; only read once something is stored. None: all. It changes
            from task to task unless the tasks share all outputs: build the method anew for each, as the engine does.
        capacity, num_classes, policy, batch_size (R), store, load, task_items: as `cl_jax.methods.replay.replay`'s.

    Raises:
        UserError: as `replay`.

    Source: soft targets of the previous model on replayed inputs, van de Ven & Tolias 2018, arXiv 1809.10635, and
    Rebuffi et al. 2017, arXiv 1611.07725; regularising the function at stored inputs, Benjamin, Rolnick & Kording
    2019, arXiv 1805.08289 (L2), Titsias et al. 2020, arXiv 1901.11356, and Pan et al. 2020, arXiv 2004.14070.
    """
    stored = replay(
        capacity, num_classes=num_classes, policy=policy, batch_size=batch_size, insert="boundary",
        store=store, load=load, task_items=task_items,
    )  # fmt: skip

    def init(key: jax.Array, params: Params, batch: Batch) -> AnchoringState:
        num_outputs = jax.eval_shape(model.apply, params, batch.x).shape[-1]
        return AnchoringState(stored.init(key, params, batch), jnp.zeros((capacity, num_outputs), jnp.float32))

    def draw(key: jax.Array, state: AnchoringState, params: Params, batch: Batch) -> Batch:
        buffer = state.past.buffer._replace(items=(state.past.buffer.items, state.answers))
        (items, told), valid = buffers.sample(key, buffer, batch_size or batch.y.shape[0])
        anchored = Anchored(told, equal_shares(valid))
        joined = join(batch, load(items)._replace(extra={"anchoring": anchored}))
        return joined._replace(weight=jnp.concatenate([row_weights(batch), jnp.zeros_like(anchored.weight)]))

    def loss(state: AnchoringState, logits: jax.Array, batch: Batch) -> jax.Array:
        anchored: Anchored = (batch.extra or {})["anchoring"]
        competed = batch.active
        if old_outputs is not None:
            old = jnp.broadcast_to(old_outputs[None, :], logits.shape)
            competed = old if competed is None else old & competed
        apart = divergence(anchored.answers, logits, temperature, competed, batch.active)
        return strength * temperature**2 * jnp.sum(anchored.weight * apart)

    def end_task(key: jax.Array, state: AnchoringState, params: Params, task: Task) -> AnchoringState:
        past = stored.end_task(key, state.past, params, task)
        return AnchoringState(past, answers(model, params, past.buffer.items, load))

    return Method(init=init, draw=draw, loss=loss, end_task=end_task)


@config
class Anchoring:
    """See `anchoring`. The anchored batch is `ratio` times as large as the incoming one."""

    needs_labels: ClassVar[bool] = True
    waits_for_boundary: ClassVar[bool] = True  # nothing is stored before it
    mixes_tasks: ClassVar[bool] = True

    strength: float = traced(1.0)
    temperature: float = traced(1.0, low=0.01)
    capacity: int = static(200, low=1)
    policy: str = static("reservoir", choices=buffers.POLICIES)
    ratio: int = static(1, low=1)

    def build(self, context: Context) -> Method:
        return anchoring(
            context.model,
            self.capacity,
            self.strength,
            self.temperature,
            old_outputs=context.old_outputs,
            num_classes=context.num_outputs,
            policy=self.policy,
            batch_size=self.ratio * context.batch_size,
            store=lambda batch: batch.reference,
            load=context.render,
        )

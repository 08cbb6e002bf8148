"""Dark experience replay: stored examples keep the logits that they had when stored.

Buzzega, Boschini, Porrello, Abati & Calderara 2020, arXiv 2004.07211.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax import buffer as buffers
from cl_jax import errors
from cl_jax.batch import Batch, equal_shares, join, row_weights
from cl_jax.config import config, static, traced
from cl_jax.method import Method, StepInfo
from cl_jax.methods.context import Context
from cl_jax.methods.replay import as_batch, whole_examples
from cl_jax.model import Params


class Answered(NamedTuple):
    """What a slot of the buffer, which is all of the state, holds."""

    item: Any  # what `store` makes of the example
    logits: jax.Array  # float32 [C], of the model that the example came to


class Matched(NamedTuple):
    """What `draw` tells `loss` of each row, in `batch.extra["der"]`."""

    logits: jax.Array  # float32 [B, C]; 0 for rows whose logits are not matched
    weight: jax.Array  # float32 [B], sums to 1, or to 0 while nothing is stored


def der(
    capacity: int,
    num_outputs: int,
    alpha: jax.Array | float = 0.5,
    beta: jax.Array | float | None = None,
    *,
    batch_size: int | None = None,
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
) -> Method:
    """Adds alpha * 1/(R C) sum_j sum_c (z_jc - z*_jc)^2 to the task loss; DER++ also beta * 1/R sum_k loss_k.

    z_j are the present logits of R examples j drawn from a reservoir of all that came in so far, the present task's
    too, z*_j those stored with them: of the training step they came in with, before its update. The mean is over the
    examples *and* the C outputs (as in the authors' aimagelab/mammoth; the paper writes a squared norm, C times
    that), over all outputs, whatever competes in the softmax. loss_k is the cross-entropy of R more examples from a
    second, independent draw, weighed in `Batch.weight`, so that it counts as task loss. Both terms are 0 while nothing
    is stored. alpha, beta here are those of mammoth.

    Draws are uniform with replacement; mammoth draws without, and as many as there are while fewer than R are stored.

    Args:
        capacity: slots of the buffer.
        num_outputs: C.
        alpha, beta: may be traced. beta None: DER, without the second draw; 0 is the same, computed with it.
        batch_size: R; None: as many as come in.
        store, load: as `cl_jax.methods.replay.replay`'s; a slot takes 4 C bytes more than with replay.

    Raises:
        UserError: capacity or batch_size below 1. While tracing: incoming and replayed examples of which only one has
            `active` or `reference`.

    Source: Buzzega et al. 2020, arXiv 2004.07211.
    """
    buffers.validate(capacity, "reservoir")
    if batch_size is not None and batch_size < 1:
        raise errors.UserError(f"DER batch_size {batch_size}: must be at least 1, or None for as many as come in")

    def init(key: jax.Array, params: Params, batch: Batch) -> buffers.Buffer:
        def answered(batch: Batch) -> Answered:
            return Answered(store(batch), jnp.zeros((batch.y.shape[0], num_outputs), jnp.float32))

        return buffers.init(jax.eval_shape(answered, batch), capacity, "reservoir")

    def draw(key: jax.Array, state: buffers.Buffer, params: Params, batch: Batch) -> Batch:
        key_logits, key_labels = jax.random.split(key)
        num = batch_size or batch.y.shape[0]
        stored, valid = buffers.sample(key_logits, state, num)
        share = equal_shares(valid)
        matched = Matched(stored.logits, share)
        joined = join(batch, load(stored.item)._replace(extra={"der": matched}))
        weights = [row_weights(batch), jnp.zeros_like(share)]
        if beta is not None:
            replayed, _ = buffers.sample(key_labels, state, num)
            joined = join(joined, load(replayed.item))
            weights.append(beta * share)
        return joined._replace(weight=jnp.concatenate(weights))

    def loss(state: buffers.Buffer, logits: jax.Array, batch: Batch) -> jax.Array:
        matched: Matched = (batch.extra or {})["der"]
        return alpha * jnp.sum(matched.weight * jnp.mean((logits - matched.logits) ** 2, axis=1))

    def after_step(key: jax.Array, state: buffers.Buffer, info: StepInfo) -> buffers.Buffer:
        logits = info.logits[: info.incoming.y.shape[0]].astype(jnp.float32)  # the incoming rows come first
        items = Answered(store(info.incoming), logits)
        return buffers.insert(key, buffers.after(state, info.gradient), items, "reservoir")

    return Method(init=init, draw=draw, loss=loss, after_step=after_step)


@config
class Der:
    """See `der`. The replayed batch is `ratio` times as large as the incoming one."""

    needs_labels: ClassVar[bool] = True
    mixes_tasks: ClassVar[bool] = True

    alpha: float = traced(0.5)
    capacity: int = static(200, low=1)
    ratio: int = static(1, low=1)

    def build(self, context: Context) -> Method:
        return _build(context, self.capacity, self.ratio, self.alpha, None)


@config
class Derpp:
    """DER++: as DER, and replays the labels of a second, independent draw (Buzzega et al. 2020).

    See `der`. Each of the two replayed batches is `ratio` times as large as the incoming one.
    """

    needs_labels: ClassVar[bool] = True
    mixes_tasks: ClassVar[bool] = True

    alpha: float = traced(0.5)
    beta: float = traced(0.5)
    capacity: int = static(200, low=1)
    ratio: int = static(1, low=1)

    def build(self, context: Context) -> Method:
        return _build(context, self.capacity, self.ratio, self.alpha, self.beta)


def _build(context: Context, capacity: int, ratio: int, alpha: Any, beta: Any) -> Method:
    return der(
        capacity, context.num_outputs, alpha, beta, batch_size=ratio * context.batch_size,
        store=lambda batch: batch.reference, load=context.render,
    )  # fmt: skip

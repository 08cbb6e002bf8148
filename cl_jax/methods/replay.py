"""Experience replay: every step also trains on examples kept from the past."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax import buffer as buffers
from cl_jax import errors
from cl_jax.batch import Batch, Task, join
from cl_jax.config import config, static
from cl_jax.exemplars import head_of, nearest_mean
from cl_jax.method import Method, StepInfo
from cl_jax.methods.context import Context
from cl_jax.model import Model, Params

WEIGHTINGS = ("union", "sum", "balanced")
INSERTIONS = ("step", "boundary")


class ReplayState(NamedTuple):
    """What replay remembers."""

    buffer: buffers.Buffer  # the stored items
    tasks_finished: jax.Array  # int32 []


def whole_examples(batch: Batch) -> Batch:
    """The default `store`: the examples themselves, without the weights they had in their batch."""
    return batch._replace(weight=None)


def as_batch(items: Any) -> Batch:
    """The default `load`: items are examples already."""
    return items


def replay(
    capacity: int,
    *,
    num_classes: int | None = None,
    policy: str = "reservoir",
    batch_size: int | None = None,
    weighting: str = "union",
    insert: str = "step",
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
    task_items: Callable[[Any], Any] | None = None,
    nearest_mean_of: Model | None = None,
) -> Method:
    """Joins to the B incoming examples R drawn uniformly, with replacement, from a buffer of past ones.

    With incoming weights u_i (1/B unless the batch says otherwise, summing to 1) and n valid replayed examples (R, or
    0 while the buffer is empty) the task loss becomes

        loss = c * sum_i u_i loss_i + (r / n) * sum_j replayed_loss_j

        union:     c = B / (B + n), r = n / (B + n)     the mean over all B + n; rows with u_i = 0 do not count in B
        sum:       c = 1, r = 1                         mean of the incoming plus mean of the replayed
        balanced:  c = 1 / t, r = 1 - 1 / t             t = tasks so far including the present one

    and c = 1, r = 0, which is fine-tuning, while n = 0. The R rows are always there; they weigh 0 then.

    Args:
        capacity: slots of the buffer.
        num_classes: for policies by class.
        policy: what the buffer keeps, see `cl_jax.buffer.insert`.
        batch_size: R; None: as many as come in.
        weighting: `union`, `sum` or `balanced`.
        insert: `step`: each step's incoming examples, after the step (so the present task is replayed too).
            `boundary`: all training examples of a task when it ends, once each, in random order (past tasks only).
        store: from the incoming batch to items, a pytree of arrays [B, ...]. Default: the examples. The sweep engine
            keeps `batch.reference`, 8 bytes an example.
        load: from R items to a batch of R, the other way round; has to give finite `x` for items that are all zeros.
        task_items: from `Task.examples` to items, for `boundary`. Default: a `Batch` goes through `store`; anything
            else (the engine's references) is taken as items already.
        nearest_mean_of: evaluate by the nearest mean of the stored examples in this model's features, see
            `cl_jax.exemplars.nearest_mean`. None: with the weights as they are.

    Raises:
        UserError: an unknown policy, weighting or insertion; capacity or batch_size below 1; no or too many classes.
            While tracing: incoming and replayed examples of which only one has `active` or `reference`.

    Source: Rolnick et al. 2019, arXiv 1811.11682 (replay with a reservoir); Chaudhry et al. 2019, arXiv 1902.10486
    (tiny memories; policies; `union`); van de Ven & Tolias 2019, arXiv 1904.07734, and van de Ven et al. 2022,
    Nature Machine Intelligence 4 (`boundary`, `balanced`).
    """
    buffers.validate(capacity, policy, num_classes)
    if batch_size is not None and batch_size < 1:
        raise errors.UserError(f"replay batch_size {batch_size}: must be at least 1, or None for as many as come in")
    if weighting not in WEIGHTINGS:
        raise errors.unknown("replay weighting", weighting, WEIGHTINGS)
    if insert not in INSERTIONS:
        raise errors.unknown("replay insertion", insert, INSERTIONS)

    def init(key: jax.Array, params: Params, batch: Batch) -> ReplayState:
        if nearest_mean_of is not None:
            head_of(nearest_mean_of, params, batch)  # complains now, not at the first boundary
        empty = buffers.init(jax.eval_shape(store, batch), capacity, policy, num_classes)
        return ReplayState(empty, jnp.zeros((), jnp.int32))

    def draw(key: jax.Array, state: ReplayState, params: Params, batch: Batch) -> Batch:
        items, valid = buffers.sample(key, state.buffer, batch_size or batch.y.shape[0])
        weight = weights(weighting, batch, valid, state.tasks_finished + 1)
        return join(batch, load(items))._replace(weight=weight)

    def after_step(key: jax.Array, state: ReplayState, info: StepInfo) -> ReplayState:
        if insert != "step":
            return state
        buffer = buffers.after(state.buffer, info.gradient)
        items = store(info.incoming)
        return state._replace(buffer=buffers.insert(key, buffer, items, policy, classes=info.incoming.y))

    def end_task(key: jax.Array, state: ReplayState, params: Params, task: Task) -> ReplayState:
        state = state._replace(tasks_finished=state.tasks_finished + 1)
        if insert != "boundary":
            return state
        key_order, key_insert = jax.random.split(key)
        order = jax.random.permutation(key_order, task.valid.shape[0])
        examples = task.examples
        if task_items is not None:
            items = task_items(examples)
        else:
            items = store(examples) if isinstance(examples, Batch) else examples
        items = jax.tree.map(lambda leaf: leaf[order], items)
        classes = load(items).y if policy in buffers.BY_CLASS else None
        return state._replace(
            buffer=buffers.insert(key_insert, state.buffer, items, policy, task.valid[order], classes)
        )

    def evaluated(state: ReplayState, params: Params) -> Params:
        if nearest_mean_of is None:
            return params
        return nearest_mean(nearest_mean_of, params, state.buffer.items, state.buffer.occupied, load)

    return Method(init=init, draw=draw, after_step=after_step, end_task=end_task, evaluated=evaluated)


def weights(weighting: str, batch: Batch, valid: jax.Array, num_tasks: jax.Array) -> jax.Array:
    """float32 [B + R], the equation of `replay`; `valid` is bool [R], `num_tasks` the t of `balanced`."""
    size = batch.y.shape[0]
    incoming = jnp.full(size, 1 / size, jnp.float32) if batch.weight is None else batch.weight
    num_incoming = jnp.sum(incoming > 0, dtype=jnp.float32)
    num_replayed = jnp.sum(valid, dtype=jnp.float32)
    if weighting == "union":
        current = num_incoming / (num_incoming + num_replayed)
        replayed = num_replayed / (num_incoming + num_replayed)
    elif weighting == "sum":
        current, replayed = 1.0, 1.0
    else:
        current = 1 / num_tasks.astype(jnp.float32)
        replayed = 1 - current
    current = jnp.where(num_replayed > 0, current, 1.0)
    each = jnp.where(valid, replayed / jnp.maximum(num_replayed, 1), 0.0)
    return jnp.concatenate([incoming * current, each])


@config
class Replay:
    """See `replay`. The replayed batch is `ratio` times the incoming one. `nearest_mean`: of what the buffer holds."""

    mixes_tasks: ClassVar[bool] = True

    capacity: int = static(200, low=1)
    policy: str = static("reservoir", choices=buffers.POLICIES)
    ratio: int = static(1, low=1)
    weighting: str = static("union", choices=WEIGHTINGS)
    insert: str = static("step", choices=INSERTIONS)
    nearest_mean: bool = static(False, later=True)

    @property
    def needs_boundaries(self) -> bool:
        return self.insert == "boundary" or self.weighting == "balanced"

    def build(self, context: Context) -> Method:
        return replay(
            self.capacity,
            num_classes=context.num_outputs,
            policy=self.policy,
            batch_size=self.ratio * context.batch_size,
            weighting=self.weighting,
            insert=self.insert,
            store=lambda batch: batch.reference,
            load=context.render,
            nearest_mean_of=context.model if self.nearest_mean else None,
        )

"""iCaRL: few chosen exemplars, distillation, and classifying by the nearest mean of exemplars."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax import buffer as buffers
from cl_jax import errors
from cl_jax.batch import Batch, Task, join
from cl_jax.config import config, static
from cl_jax.exemplars import features, head_of, herd, members, nearest_mean
from cl_jax.losses import cross_entropy
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.methods.replay import as_batch, weights, whole_examples
from cl_jax.model import Model, Params

LOSSES = ("distillation", "binary", "softmax")
NAME = "icarl"


class IcarlState(NamedTuple):
    """The exemplars, and what the last boundary left."""

    buffer: buffers.Buffer  # the exemplars, newest sets first; `seen` counts the examples they were chosen from
    rank: jax.Array  # int32 [capacity], each exemplar's place in the order of its set, from 0
    num_sets: jax.Array  # int32 [], sets so far: one for each class of each task
    learned: jax.Array  # bool [C], outputs of finished tasks
    old: Params  # weights at the last boundary, for `distillation`; else ()


def icarl(
    model: Model,
    capacity: int,
    *,
    batch_size: int | None = None,
    loss: str = "distillation",
    nearest_mean_of_exemplars: bool = True,
    most_per_class: int | None = None,
    num_candidates: int | None = None,
    task_size: int | None = None,
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
    render: Callable[[Any], Batch] = as_batch,
) -> Method:
    """Rehearses exemplars chosen by herding, distils the old network, classifies by the nearest mean of exemplars.

    At each boundary every class of the task gets a set of m = min(capacity // (sets so far), most_per_class) exemplars,
    the first m that `cl_jax.exemplars.herd` takes of its training examples, and the older sets are cut to their first
    m. Under class-incremental learning that is the paper's K / t; where a class comes in several tasks, each of them
    has a set of it. With more sets than capacity there is m = 1 and the oldest sets are dropped.

    Training joins to the B incoming examples R exemplars, drawn uniformly with replacement; the row weights u_i sum to
    1, and the exemplars' share of it is n / (task_size + n) for n stored, that of the union of both sets as in the
    paper, or R / (B + R) without `task_size`. Per row, g_c = sigmoid(logit_c) and c over the active outputs:

        distillation: sum_i u_i sum_c -[q_ic log g_c(x_i) + (1 - q_ic) log(1 - g_c(x_i))], with
                      q_ic = g_c of the network at the last boundary for outputs of finished tasks, else [y_i = c].
                      An incoming example whose own output is such a one (domain-incremental) keeps q_ic = [y_i = c].
        binary:       the same with q_ic = [y_i = c] throughout (the paper's hybrid2 under nearest_mean_of_exemplars).
        softmax:      the task loss of all other methods; chain with another method to distil.

    The first two take the place of the task loss: `Method.loss` adds their difference to it, so what is recorded as the
    task loss, and handed to other methods as its gradient, stays the cross-entropy.

    Args:
        model: with a `tap`, see `cl_jax.exemplars.head_of`.
        capacity: exemplars in all, the paper's K.
        batch_size: R; None: as many as come in.
        loss: one of `LOSSES`.
        nearest_mean_of_exemplars: evaluate with the last layer of `cl_jax.exemplars.nearest_mean` (means of the
            exemplars' features under the weights evaluated); False: with the network's own outputs (hybrid1).
        most_per_class: a bound on m, for memories of a fixed size per class.
        num_candidates: choose from that many of the task's examples, drawn without replacement; None: from all. All
            their features are held at a boundary, 4 D bytes an example.
        task_size: training examples of one task.
        store, load: see `cl_jax.methods.replay.replay`.
        render: turns `Task.examples` into a `Batch`.

    Raises:
        UserError: an unknown loss; a number below 1; see `cl_jax.exemplars.head_of`.

    Differs from the authors' code: fixed batches of R exemplars instead of shuffling both sets into one; losses are
    summed over outputs, not averaged; no mirrored images; see `herd`.

    Source: Rebuffi et al. 2017, arXiv 1611.07725.
    """
    buffers.validate(capacity, "reservoir")
    if loss not in LOSSES:
        raise errors.unknown("iCaRL loss", loss, LOSSES)
    numbers = {"batch_size": batch_size, "most_per_class": most_per_class, "num_candidates": num_candidates}
    for name, number in {**numbers, "task_size": task_size}.items():
        if number is not None and number < 1:
            raise errors.UserError(f"icarl {name} {number}: must be at least 1, or None")

    def init(key: jax.Array, params: Params, batch: Batch) -> IcarlState:
        head_of(model, params, batch)  # complains now, not at the first boundary
        num_outputs = jax.eval_shape(model.apply, params, batch.x).shape[1]
        return IcarlState(
            buffer=buffers.init(jax.eval_shape(store, batch), capacity, "reservoir"),
            rank=jnp.zeros((capacity,), jnp.int32),
            num_sets=jnp.zeros((), jnp.int32),
            learned=jnp.zeros((num_outputs,), bool),
            old=params if loss == "distillation" else (),
        )

    def draw(key: jax.Array, state: IcarlState, params: Params, batch: Batch) -> Batch:
        num_incoming = batch.y.shape[0]
        items, valid = buffers.sample(key, state.buffer, batch_size or num_incoming)
        joined = join(batch, load(items))._replace(weight=_weights(batch, state.buffer, valid, task_size))
        if loss == "softmax":
            return joined
        target = jax.nn.one_hot(joined.y, state.learned.shape[0], dtype=jnp.float32)
        if loss == "distillation":
            incoming = jnp.arange(joined.y.shape[0], dtype=jnp.int32) < num_incoming
            distilled = state.learned[None, :] & ~(incoming & state.learned[joined.y])[:, None]
            target = jnp.where(distilled, jax.nn.sigmoid(model.apply(state.old, joined.x)), target)
        told = {"target": target, "binary": jnp.ones(joined.y.shape, jnp.float32)}
        return joined._replace(extra={**(joined.extra or {}), NAME: told})

    def added_loss(state: IcarlState, logits: jax.Array, batch: Batch) -> jax.Array:
        if loss == "softmax":
            return jnp.zeros(())
        assert batch.extra is not None and batch.weight is not None
        told = batch.extra[NAME]  # rows that another method joined later have 0
        binary = binary_cross_entropy(logits, told["target"], batch.active)
        return jnp.sum(batch.weight * told["binary"] * (binary - cross_entropy(logits, batch.y, batch.active)))

    def end_task(key: jax.Array, state: IcarlState, params: Params, task: Task) -> IcarlState:
        examples, valid = _candidates(key, task, num_candidates)
        phi, labels = features(model, params, examples, valid, render)
        member_CxN = members(labels, valid, state.learned.shape[0])
        present = jnp.any(member_CxN, axis=1)
        num_sets = state.num_sets + jnp.sum(present, dtype=jnp.int32)
        quota = jnp.maximum(capacity // jnp.maximum(num_sets, 1), 1)
        quota = quota if most_per_class is None else jnp.minimum(quota, most_per_class)
        rank = jnp.max(jax.vmap(herd, in_axes=(None, 0, None))(phi, member_CxN, quota), axis=0)
        items = store(examples) if isinstance(examples, Batch) else examples
        buffer, rank = _kept(state, items, rank, quota)
        return IcarlState(
            buffer=buffer._replace(seen=state.buffer.seen + jnp.sum(valid, dtype=jnp.int32)),
            rank=rank,
            num_sets=num_sets,
            learned=state.learned | present,
            old=params if loss == "distillation" else (),
        )

    def evaluated(state: IcarlState, params: Params) -> Params:
        return nearest_mean(model, params, state.buffer.items, state.buffer.occupied, load)

    method = Method(init=init, draw=draw, loss=added_loss, end_task=end_task)
    return method._replace(evaluated=evaluated) if nearest_mean_of_exemplars else method


def binary_cross_entropy(logits: jax.Array, target: jax.Array, active: jax.Array | None) -> jax.Array:
    """sum_c -[q_c log sigmoid(z_c) + (1 - q_c) log sigmoid(-z_c)] over the active outputs, in nats: float32 [B]."""
    each = jax.nn.softplus(logits) - target * logits
    return jnp.sum(each if active is None else jnp.where(active, each, 0.0), axis=1)


def _weights(batch: Batch, exemplars: buffers.Buffer, valid: jax.Array, task_size: int | None) -> jax.Array:
    """float32 [B + R], the u_i of `icarl`."""
    one = jnp.ones((), jnp.int32)
    if task_size is None:
        return weights("union", batch, valid, one)
    num = jnp.sum(exemplars.occupied, dtype=jnp.float32)
    share = num / (num + task_size)
    shares = jnp.where(jnp.arange(batch.y.shape[0] + valid.shape[0]) < batch.y.shape[0], 1.0 - share, share)
    return shares * weights("sum", batch, valid, one)


def _candidates(key: jax.Array, task: Task, num: int | None) -> tuple[Any, jax.Array]:
    """The examples to choose from, and which of them are valid: all, or `num` drawn without replacement."""
    if num is None or num >= task.valid.shape[0]:
        return task.examples, task.valid
    order = jnp.argsort(jnp.where(task.valid, jax.random.uniform(key, task.valid.shape), 2.0))[:num]
    return jax.tree.map(lambda leaf: leaf[order], task.examples), task.valid[order]


def _kept(state: IcarlState, items: Any, rank: jax.Array, quota: jax.Array) -> tuple[buffers.Buffer, jax.Array]:
    """The chosen items (rank not negative), then the stored ones of rank below `quota`, while there is room."""
    capacity = state.rank.shape[0]
    keep = jnp.concatenate([rank >= 0, state.buffer.occupied & (state.rank < quota)])
    (place,) = jnp.nonzero(keep, size=capacity, fill_value=0)
    occupied = jnp.arange(capacity, dtype=jnp.int32) < jnp.sum(keep, dtype=jnp.int32)

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        picked = jnp.concatenate([new, old])[place]
        return jnp.where(occupied.reshape(-1, *(1,) * (picked.ndim - 1)), picked, jnp.zeros_like(picked))

    return buffers.Buffer(jax.tree.map(pick, items, state.buffer.items), occupied, state.buffer.seen), pick(
        rank, state.rank
    )


@config
class Icarl:
    """See `icarl`. Exemplars have their share of the union of both sets, or (`weighting` "batch") of the batch."""

    needs_labels: ClassVar[bool] = True
    mixes_tasks: ClassVar[bool] = True

    capacity: int = static(200, low=1)
    ratio: int = static(1, low=1)
    loss: str = static("distillation", choices=LOSSES)
    weighting: str = static("sets", choices=("sets", "batch"))
    nearest_mean: bool = static(True)
    most_per_class: int | None = static(None, low=1)
    num_candidates: int | None = static(None, low=1)

    def build(self, context: Context) -> Method:
        return icarl(
            context.model, self.capacity, batch_size=self.ratio * context.batch_size, loss=self.loss,
            nearest_mean_of_exemplars=self.nearest_mean, most_per_class=self.most_per_class,
            num_candidates=self.num_candidates, task_size=context.largest_task if self.weighting == "sets" else None,
            store=lambda batch: batch.reference, load=context.render, render=context.render_task,
        )  # fmt: skip

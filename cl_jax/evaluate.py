"""One row of R: accuracy and loss on every task, past, present and future."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cl_jax.data import Data
from cl_jax.losses import cross_entropy
from cl_jax.model import Model, Params
from cl_jax.tasks.stream import Curriculum, Stream, View, largest_task, render, task_rows

CHUNK = 1024  # examples evaluated at once
METRICS = ("accuracy", "loss")
EVALUATED = ("validation", "test")


def evaluate(
    model: Model,
    params_for: Callable[[jax.Array], Params],
    view: View,
    curriculum: Curriculum,
    data: Data,
    after: jax.Array,
    *,
    recent: int | None = None,
) -> jax.Array:
    """Accuracy in [0, 1] and mean cross-entropy in nats on every task.

    Class-incremental outputs of tasks not yet trained do not compete: a future task's accuracy is 0 then, and its loss
    is that of an impossible label, reported as infinite.

    Args:
        params_for: from the number of a task, int32 (), to the parameters that it is evaluated with.
        after: int32 (), number of tasks trained so far.
        recent: evaluate only the tasks of `evaluated_tasks`, the others are NaN; None: all.

    Returns:
        float32 [splits (`EVALUATED`), metrics (`METRICS`), T].
    """
    splits = [_split(model, params_for, view, curriculum, data, after, recent, split) for split in EVALUATED]
    return jnp.stack(splits)


def evaluated_tasks(num_tasks: int, after: jax.Array | int, recent: int | None) -> tuple[jax.Array, jax.Array]:
    """The first of the tasks evaluated after `after` tasks, and the one behind the last: int32 () each.

    All of them if `recent` is None, before any training and at the end; else the `recent` tasks trained last.
    """
    after = jnp.asarray(after, jnp.int32)
    whole = (after == 0) | (after >= num_tasks) if recent is not None else jnp.ones((), bool)
    first = jnp.where(whole, 0, jnp.maximum(after - (recent or 0), 0))
    return first, jnp.where(whole, num_tasks, after)


def chunks(stream: Stream, data: Data, split: str) -> tuple[int, int]:
    """In how many chunks a task of a split is evaluated, and the examples of each."""
    rows = largest_task(stream, data, split)
    number = -(-rows // CHUNK)
    return number, -(-rows // number)


def each_share(size: jax.Array) -> jax.Array:
    """What each of `size` examples counts in a mean; as a factor, which the compiler makes of a division anyway."""
    return 1.0 / jnp.maximum(size, 1).astype(jnp.float32)


def chunk_sums(
    model: Model,
    params: Params,
    view: View,
    curriculum: Curriculum,
    data: Data,
    after: jax.Array,
    task: jax.Array,
    first: jax.Array,
    *,
    split: str,
) -> jax.Array:
    """Sums of right answers and losses over one chunk of a task, from position `first` on: float32 [metrics]."""
    segments = curriculum.segments[split]
    _, size = chunks(view.stream, data, split)
    position = first + jnp.arange(size, dtype=jnp.int32)
    reference = task_rows(segments, task, position)
    present = jnp.maximum(after - 1, 0)
    batch = render(view, curriculum.tables, data, reference, present, mask=view.evaluation_mask, one_task=True)
    logits = model.apply(params, batch.x)
    valid = (position < segments.size[task]).astype(jnp.float32)
    assert batch.active is not None
    right = jnp.argmax(jnp.where(batch.active, logits, -jnp.inf), axis=-1).astype(jnp.int32) == batch.y
    loss = cross_entropy(logits, batch.y, batch.active)
    known = jnp.take_along_axis(batch.active, batch.y[:, None], axis=-1)[:, 0]
    loss = jnp.where(known, loss, jnp.inf)
    right = right & known & jnp.isfinite(logits).all(axis=-1)
    return jnp.stack([jnp.sum(valid * right.astype(jnp.float32)), jnp.sum(jnp.where(valid > 0, loss, 0.0))])


def _split(
    model: Model,
    params_for: Callable[[jax.Array], Params],
    view: View,
    curriculum: Curriculum,
    data: Data,
    after: jax.Array,
    recent: int | None,
    split: str,
) -> jax.Array:
    num_chunks, size = chunks(view.stream, data, split)
    segments = curriculum.segments[split]

    def one_task(task: jax.Array) -> jax.Array:
        params = params_for(task)

        def add(sums: jax.Array, first: jax.Array) -> tuple[jax.Array, None]:
            return sums + chunk_sums(model, params, view, curriculum, data, after, task, first, split=split), None

        firsts = jnp.arange(num_chunks, dtype=jnp.int32) * size
        sums, _ = jax.lax.scan(add, jnp.zeros((len(METRICS),), jnp.float32), firsts)
        return sums * each_share(segments.size[task])

    num_tasks = view.stream.num_tasks
    if recent is None:
        return jax.lax.map(one_task, jnp.arange(num_tasks, dtype=jnp.int32)).T
    first, end = evaluated_tasks(num_tasks, after, recent)
    unknown = jnp.full((num_tasks, len(METRICS)), jnp.nan, jnp.float32)
    return jax.lax.fori_loop(first, end, lambda task, rows: rows.at[task].set(one_task(task)), unknown).T

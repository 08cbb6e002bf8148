"""One row of R: accuracy and loss on every task, past, present and future."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.data import Data
from cl_jax.losses import cross_entropy
from cl_jax.model import Model, Params
from cl_jax.tasks.render import render
from cl_jax.tasks.stream import Curriculum, Stream, View, largest_task, task_rows
from cl_jax.tokens import read_rows

CHUNK = 1024  # examples evaluated at once
CHUNK_TOKENS = 8192  # of text
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
    """Accuracy in [0, 1] and mean cross-entropy in nats on every task; of text in nats a byte.

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
    format = data.text or data.labelled
    most = CHUNK if format is None else max(1, CHUNK_TOKENS // format.context)
    number = -(-rows // most)
    return number, -(-rows // number)


def means(sums: jax.Array) -> jax.Array:
    """float32 [..., metrics] from sums [..., 2, metrics] as `chunk_sums` gives them.

    By a factor, which the compiler makes of a division anyway.
    """
    return sums[..., 0, :] * (1.0 / jnp.maximum(sums[..., 1, :], 1.0))


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
    """Sums over one chunk of a task, from position `first` on, and of what they are to be divided by: [2, metrics].

    Right answers and losses, float32, by examples. Of text: right tokens by tokens, losses by bytes.
    """
    segments = curriculum.segments[split]
    _, size = chunks(view.stream, data, split)
    position = first + jnp.arange(size, dtype=jnp.int32)
    reference = task_rows(segments, task, position)
    present = jnp.maximum(after - 1, 0)
    batch = render(view, curriculum.tables, data, reference, present, mask=view.evaluation_mask, one_task=True)
    logits = model.apply(params, batch.x)
    valid = (position < segments.size[task]).astype(jnp.float32)
    if data.text is not None:
        return _text_sums(logits, batch, data.pixels(reference.row), valid)
    assert batch.active is not None
    right = jnp.argmax(jnp.where(batch.active, logits, -jnp.inf), axis=-1).astype(jnp.int32) == batch.y
    loss = cross_entropy(logits, batch.y, batch.active)
    known = jnp.take_along_axis(batch.active, batch.y[:, None], axis=-1)[:, 0]
    loss = jnp.where(known, loss, jnp.inf)
    right = right & known & jnp.isfinite(logits).all(axis=-1)
    sums = jnp.stack([jnp.sum(valid * right.astype(jnp.float32)), jnp.sum(jnp.where(valid > 0, loss, 0.0))])
    return jnp.stack([sums, jnp.broadcast_to(jnp.sum(valid), sums.shape)])


def _text_sums(logits: jax.Array, batch: Batch, rows: jax.Array, valid: jax.Array) -> jax.Array:
    assert batch.counted is not None
    counted = batch.counted * valid[:, None]
    right = (jnp.argmax(logits, axis=-1) == batch.y) & jnp.isfinite(logits).all(axis=-1)
    loss = cross_entropy(logits, batch.y)
    sums = jnp.stack([jnp.sum(counted * right.astype(jnp.float32)), jnp.sum(jnp.where(counted > 0, loss, 0.0))])
    sizes = read_rows(rows)[1].bytes * valid[:, None]
    return jnp.stack([sums, jnp.stack([jnp.sum(counted), jnp.sum(sizes)])])


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

    def one_task(task: jax.Array) -> jax.Array:
        params = params_for(task)

        def add(sums: jax.Array, first: jax.Array) -> tuple[jax.Array, None]:
            return sums + chunk_sums(model, params, view, curriculum, data, after, task, first, split=split), None

        firsts = jnp.arange(num_chunks, dtype=jnp.int32) * size
        sums, _ = jax.lax.scan(add, jnp.zeros((2, len(METRICS)), jnp.float32), firsts)
        return means(sums)

    num_tasks = view.stream.num_tasks
    if recent is None:
        return jax.lax.map(one_task, jnp.arange(num_tasks, dtype=jnp.int32)).T
    first, end = evaluated_tasks(num_tasks, after, recent)
    unknown = jnp.full((num_tasks, len(METRICS)), jnp.nan, jnp.float32)
    return jax.lax.fori_loop(first, end, lambda task, rows: rows.at[task].set(one_task(task)), unknown).T

"""One row of R: accuracy and loss on every task, past, present and future."""

import jax
import jax.numpy as jnp

from cl_jax.data import Data
from cl_jax.losses import cross_entropy
from cl_jax.model import Model, Params
from cl_jax.tasks.stream import Curriculum, View, largest_task, render, task_rows

CHUNK = 1024  # examples evaluated at once
METRICS = ("accuracy", "loss")
EVALUATED = ("validation", "test")


def evaluate(
    model: Model, params: Params, view: View, curriculum: Curriculum, data: Data, after: jax.Array
) -> jax.Array:
    """Accuracy in [0, 1] and mean cross-entropy in nats on every task.

    Class-incremental outputs of tasks not yet trained do not compete: a future task's accuracy is 0 then, and its loss
    is that of an impossible label, reported as infinite.

    Args:
        after: int32 (), number of tasks trained so far.

    Returns:
        float32 [splits (`EVALUATED`), metrics (`METRICS`), T].
    """
    return jnp.stack([_split(model, params, view, curriculum, data, after, split) for split in EVALUATED])


def _split(
    model: Model, params: Params, view: View, curriculum: Curriculum, data: Data, after: jax.Array, split: str
) -> jax.Array:
    segments = curriculum.segments[split]
    rows = largest_task(view.stream, data, split)
    num_chunks = -(-rows // CHUNK)
    chunk = -(-rows // num_chunks)
    present = jnp.maximum(after - 1, 0)

    def one_task(task: jax.Array) -> jax.Array:
        def add(sums: jax.Array, first: jax.Array) -> tuple[jax.Array, None]:
            position = first + jnp.arange(chunk, dtype=jnp.int32)
            reference = task_rows(segments, task, position)
            batch = render(view, curriculum.tables, data, reference, present, mask="seen", one_task=True)
            logits = model.apply(params, batch.x)
            valid = (position < segments.size[task]).astype(jnp.float32)
            assert batch.active is not None
            right = jnp.argmax(jnp.where(batch.active, logits, -jnp.inf), axis=-1).astype(jnp.int32) == batch.y
            loss = cross_entropy(logits, batch.y, batch.active)
            known = jnp.take_along_axis(batch.active, batch.y[:, None], axis=-1)[:, 0]
            loss = jnp.where(known, loss, jnp.inf)
            right = right & known & jnp.isfinite(logits).all(axis=-1)
            summed = jnp.stack([jnp.sum(valid * right.astype(jnp.float32)), jnp.sum(jnp.where(valid > 0, loss, 0.0))])
            return sums + summed, None

        firsts = jnp.arange(num_chunks, dtype=jnp.int32) * chunk
        sums, _ = jax.lax.scan(add, jnp.zeros((2,), jnp.float32), firsts)
        return sums / jnp.maximum(segments.size[task], 1).astype(jnp.float32)

    return jax.lax.map(one_task, jnp.arange(view.stream.num_tasks, dtype=jnp.int32)).T

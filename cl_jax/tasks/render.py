"""How references become batches: rows stay whole numbers in the data set and are transformed when a batch is made."""

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch, Reference
from cl_jax.data import Data
from cl_jax.tasks.stream import Tables, View, _same_images
from cl_jax.tokens import Tokens, read_rows


def labels_of(view: View, tables: Tables, reference: Reference, data: Data) -> jax.Array:
    """The index of the right output for each reference: int32, shaped like `reference.row`."""
    within = jax.vmap(lambda label: view.stream.label(tables, label))(jnp.arange(data.num_classes, dtype=jnp.int32))
    label = within[data.labels[reference.row]]
    if view.stream.relabel is not None:
        label = view.stream.relabel(tables, reference.row, label)
    return label if view.scenario == "domain" else view.head(reference.task) * view.stream.classes_per_task + label


def active_outputs(view: View, task: jax.Array, present: jax.Array, mask: str) -> jax.Array:
    """Which outputs compete for examples of given tasks: bool [B, C].

    Domain-incremental: all. Task-incremental: the K of the example's own task. Class-incremental: `mask` "all"; "seen":
    those of tasks 0 ... present; "current": for examples of the present task its own, for replayed ones all seen.

    Args:
        task: int32 [B], each example's task.
        present: int32 (), the task in training (or the last one trained, when evaluating).
    """
    owner = jnp.arange(view.num_outputs, dtype=jnp.int32) // view.stream.classes_per_task
    shape = (*task.shape, view.num_outputs)
    if view.scenario == "domain" or (view.scenario == "class" and mask == "all"):
        return jnp.ones(shape, bool)
    own = owner[None, :] == view.head(task)[:, None]
    if view.scenario == "task":
        return own
    seen = jnp.broadcast_to(owner[None, :] <= view.newest_head(present), shape)
    return seen if mask == "seen" else jnp.where((view.head(task) == view.head(present))[:, None], own, seen)


def old_outputs(view: View, present: jax.Array) -> jax.Array:
    """bool [C]: the outputs of tasks before `present`; domain-incremental tasks share all, from the second on."""
    if view.scenario == "domain":
        return jnp.broadcast_to(present > 0, (view.num_outputs,))
    owner = jnp.arange(view.num_outputs, dtype=jnp.int32) // view.stream.classes_per_task
    return (owner <= view.newest_head(jnp.maximum(present - 1, 0))) & (present > 0)


def render(
    view: View, tables: Tables, data: Data, reference: Reference, present: jax.Array, *, mask: str, one_task: bool
) -> Batch:
    """Turns references [B] into a batch: images in [0, 1], labels, active outputs; or tokens and those that follow;
    or tokens of whole texts and their labels.

    Args:
        present: int32 (), the task in training.
        mask: see `active_outputs`.
        one_task: all rows are of task `reference.task[0]`: then the images are transformed together, several times
            faster than example by example.
    """
    images = data.pixels(reference.row)
    held = data.holds(reference.row)
    if data.text is not None:
        return _text_batch(images, reference, held)
    if data.labelled is not None:
        return Batch(
            x=_whole_texts(images, held),
            y=labels_of(view, tables, reference, data),
            active=active_outputs(view, reference.task, present, mask),
            reference=reference,
        )
    if one_task:
        images = view.stream.transform(tables, reference.task[0], images)
    elif view.stream.transform is not _same_images:
        transform = view.stream.transform
        images = jax.vmap(lambda task, image: transform(tables, task, image[None])[0])(reference.task, images)
    x = images.astype(jnp.float32) / data.pixel_max
    if held is not None:  # a row that nobody foresaw must not train as some other image: its member is flagged instead
        x = jnp.where(held[:, None, None, None], x, jnp.nan)
    return Batch(
        x=x,
        y=labels_of(view, tables, reference, data),
        active=active_outputs(view, reference.task, present, mask),
        reference=reference,
    )


def _text_batch(rows: jax.Array, reference: Reference, held: jax.Array | None) -> Batch:
    tokens, targets = read_rows(rows)
    counted = targets.counted
    if held is not None:  # as of images: the loss of a row that nobody foresaw is NaN
        counted = jnp.where(held[:, None], counted, jnp.nan)
    return Batch(x=tokens, y=targets.ids, reference=reference, counted=counted)


def _whole_texts(rows: jax.Array, held: jax.Array | None) -> Tokens:
    """Rows [B, L] of ids, -1 where there is none, as one segment each."""
    segments = (rows >= 0).astype(jnp.int32)
    if held is not None:  # as of images: the model makes NaN of a text that nobody foresaw
        segments = jnp.where(held[:, None], segments, -1)
    return Tokens(jnp.maximum(rows, 0).astype(jnp.int32), segments)

"""A task stream: arrays of one seed plus pure functions, the same for a domain-, task- or class-incremental reading.

A task is a window on the data set (which rows belong to it) and a view of it (how its images look, see
`cl_jax.tasks.render`). Nothing is copied per task or per member.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.batch import Reference
from cl_jax.data import SPLITS, Data
from cl_jax.shuffle import shuffled_index
from cl_jax.text.format import TextFormat

SCENARIOS = ("domain", "task", "class")
TRAINING_MASKS = ("seen", "all", "current")
EXPOSURES = ("current", "seen", "all")

Tables = Any  # what a stream draws once per seed: permutations, class orders


def _whole_label(tables: Tables, label: jax.Array) -> jax.Array:
    return label


def _same_images(tables: Tables, task: jax.Array, images: jax.Array) -> jax.Array:
    return images


def changes_images(stream: "Stream") -> bool:
    """Whether its tasks see images in ways of their own."""
    return stream.transform is not _same_images


def _no_tables(key: jax.Array, data: Data) -> Tables:
    return ()


class Stream(NamedTuple):
    """What a stream's author writes; the last four are for streams made of another one.

    Attributes:
        num_tasks: T.
        classes_per_task: K, the number of labels within one task.
        tables: `(key, data) -> tables`, the stream's randomness, once per seed; arrays, a key as its `key_data`.
        task_of: `(tables, label) -> int32`, the task that a class belongs to (outside 0 ... T - 1: to none), or None
            when every task sees every row.
        label: `(tables, label) -> int32` in 0 ... K - 1, the label within the task.
        transform: `(tables, task, images uint8 [B, H, W, C]) -> images`, how one task sees images.
        schedule: of each task, which one it is of those that `task_of` numbers, where some come again; None: its own.
            Tasks of one number share their rows and their outputs.
        relabel: `(tables, row int32 [...], label int32 [...]) -> label`, what training rows are taken for.
        share: `tables -> float32 [T]` in (0, 1], the share of its training rows that each task keeps; None: all.
        least_share: the smallest of these, known before any seed is drawn.
        text: of a stream of text, whose model predicts tokens and no labels; K is then how many domains a task has.
    """

    num_tasks: int
    classes_per_task: int
    tables: Callable[[jax.Array, Data], Tables] = _no_tables
    task_of: Callable[[Tables, jax.Array], jax.Array] | None = None
    label: Callable[[Tables, jax.Array], jax.Array] = _whole_label
    transform: Callable[[Tables, jax.Array, jax.Array], jax.Array] = _same_images
    schedule: tuple[int, ...] | None = None
    relabel: Callable[[Tables, jax.Array, jax.Array], jax.Array] | None = None
    share: Callable[[Tables], jax.Array] | None = None
    least_share: float = 1.0
    text: TextFormat | None = None


def with_tables(stream: Stream, tables: Callable[[jax.Array, Data], Tables]) -> Stream:
    """The same stream with tables (its own, further ones), for a stream made of another one: itself it reads its own.

    Args:
        tables: the further ones; of the same key, so that it folds in a name of its own.
    """

    def reading_own(function: Any) -> Any:
        if function in (None, _whole_label, _same_images):
            return function
        return lambda held, *arguments: function(held[0], *arguments)

    return stream._replace(
        tables=lambda key, data: (stream.tables(key, data), tables(key, data)),
        task_of=reading_own(stream.task_of),
        label=reading_own(stream.label),
        transform=reading_own(stream.transform),
        relabel=reading_own(stream.relabel),
        share=reading_own(stream.share),
    )


class Segments(NamedTuple):
    """The rows of every task within one split: task t owns order[start[t] : start[t] + size[t]]."""

    order: jax.Array  # int32 [rows of the split]
    start: jax.Array  # int32 [T]
    size: jax.Array  # int32 [T]


class Curriculum(NamedTuple):
    """A stream as one seed sees it."""

    tables: Tables
    segments: dict[str, Segments]  # by split


class View(NamedTuple):
    """How labels and outputs are laid out: the static reading of a stream."""

    stream: Stream
    scenario: str
    training_mask: str = "seen"
    evaluation_mask: str = "seen"  # as `active_outputs` takes it

    @property
    def heads(self) -> np.ndarray:
        """int32 [T], each task's number among those with outputs of their own; one that comes again keeps its first."""
        schedule = self.stream.schedule or range(self.stream.num_tasks)
        number = {task: head for head, task in enumerate(dict.fromkeys(schedule))}
        return np.array([number[task] for task in schedule], np.int32)

    @property
    def num_outputs(self) -> int:
        """Domain-incremental tasks share K outputs; in the others every task has K of its own. Text: every token."""
        if self.stream.text is not None:
            return self.stream.text.num_tokens
        return self.stream.classes_per_task * (1 if self.scenario == "domain" else len(set(self.heads.tolist())))

    def head(self, task: jax.Array) -> jax.Array:
        """The entry of `heads` of each task, int32 like `task`."""
        return task if self.stream.schedule is None else jnp.asarray(self.heads)[task]

    def newest_head(self, task: jax.Array) -> jax.Array:
        """The largest of tasks 0 ... task."""
        return task if self.stream.schedule is None else jnp.asarray(np.maximum.accumulate(self.heads))[task]


def make_curriculum(key: jax.Array, stream: Stream, data: Data) -> Curriculum:
    """Draws a seed's tables and sorts the rows of every split by task. Pure; O(rows) memory whatever T is."""
    tables = stream.tables(key, data)
    segments = {split: _segments(stream, tables, data, split) for split in SPLITS}
    if stream.share is not None:
        train = segments["train"]
        # Rows are in a random order, the same for every seed, so that the first of a task are as good as any.
        kept = jnp.round(stream.share(tables) * train.size.astype(jnp.float32)).astype(jnp.int32)
        segments["train"] = train._replace(size=jnp.minimum(jnp.maximum(kept, 1), train.size))
    return Curriculum(tables, segments)


def _segments(stream: Stream, tables: Tables, data: Data, split: str) -> Segments:
    first, size = data.bounds(split)
    if stream.task_of is None:
        order = jnp.arange(first, first + size, dtype=jnp.int32)
        return Segments(
            order, jnp.zeros((stream.num_tasks,), jnp.int32), jnp.full((stream.num_tasks,), size, jnp.int32)
        )
    number = stream.num_tasks if stream.schedule is None else max(stream.schedule) + 1
    classes = jnp.arange(data.num_classes, dtype=jnp.int32)
    by_class = jax.vmap(stream.task_of, in_axes=(None, 0))(tables, classes)
    inside = (by_class >= 0) & (by_class < number)
    task = jnp.where(inside, by_class, number)[data.labels[first : first + size]]
    order = first + jnp.argsort(task, stable=True).astype(jnp.int32)
    count = jnp.bincount(task, length=number + 1).astype(jnp.int32)[:-1]
    start = jnp.cumsum(count) - count
    if stream.schedule is None:
        return Segments(order, start, count)
    which = jnp.asarray(stream.schedule, jnp.int32)
    return Segments(order, start[which], count[which])


def largest_task(stream: Stream, data: Data, split: str) -> int:
    """An upper bound on the rows of one task in a split, known before any seed is drawn (it sets shapes)."""
    if stream.task_of is None:
        return data.bounds(split)[1]
    return sum(sorted(data.class_counts[SPLITS.index(split)])[-stream.classes_per_task :])


def smallest_task(stream: Stream, data: Data, split: str) -> int:
    """A lower bound on the rows of one task in a split, known before any seed is drawn."""
    if stream.task_of is None:
        rows = data.bounds(split)[1]
    else:
        rows = sum(sorted(data.class_counts[SPLITS.index(split)])[: stream.classes_per_task])
    return rows if split != "train" else min(rows, max(1, int(stream.least_share * rows)))


def task_rows(segments: Segments, task: jax.Array, position: jax.Array) -> Reference:
    """References to the given positions of one task; positions past its end repeat its last row (mask them)."""
    inside = jnp.minimum(position, jnp.maximum(segments.size[task] - 1, 0))
    return Reference(
        row=segments.order[segments.start[task] + inside],
        task=jnp.full(position.shape, task, jnp.int32),
    )


def sample_references(
    key: jax.Array, segments: Segments, exposure: str, task: jax.Array, steps: jax.Array, batch_size: int
) -> Reference:
    """The batches of given steps of a task: shuffled epochs without replacement, incomplete last batches dropped.

    Args:
        key: the seed's batch stream, folded with the task.
        exposure: "current" draws from task t, "seen" from tasks 0 ... t, "all" from every task (joint training).
        task: int32 (), t.
        steps: int32 [S], numbers of steps within the task.
        batch_size: B.

    Returns:
        References [S, B].
    """
    tasks = jnp.arange(len(segments.size), dtype=jnp.int32)
    open_tasks = {"current": tasks == task, "seen": tasks <= task, "all": tasks >= 0}[exposure]
    ends = jnp.cumsum(jnp.where(open_tasks, segments.size, 0))
    total = ends[-1]
    per_epoch = jnp.maximum(total // batch_size, 1)
    epoch, slot = steps // per_epoch, steps % per_epoch
    position = slot[:, None] * batch_size + jnp.arange(batch_size, dtype=jnp.int32)[None, :]
    # A task smaller than one batch is walked round: the same rows again, never rows of another task.
    position = position % total
    drawn = shuffled_index(key, jnp.broadcast_to(epoch[:, None], position.shape), position, total)
    if exposure == "current":
        owner, within = jnp.full(drawn.shape, task, jnp.int32), drawn
    else:
        owner = jnp.searchsorted(ends, drawn.reshape(-1), side="right").astype(jnp.int32).reshape(drawn.shape)
        within = drawn - (ends - segments.size)[owner]
    return Reference(row=segments.order[segments.start[owner] + within], task=owner)

"""How one task passes into the next: at once, or gradually.

Training is T periods of S steps of B slots, one example each; n = S B. A task's own sequence is what it shows when it
is alone: slot after slot its examples in epochs, each shuffled anew and cut into batches, incomplete last ones dropped.
A boundary says which slot of which task's sequence is shown at each slot of each period. So a blurry stream is the
sharp one in another order: nothing is drawn with replacement, and any batch is a formula of seed, period and step.

In a blurry stream nobody is told a task. The engine's boundaries between periods are points of evaluation, R[i, j] is
the accuracy on task j after period i, and what acts at them is refused (`cl_jax.checks`): methods with an `end_task` or
`restart` unless they say `needs_boundaries = False`, adapters that change from task to task, `optimizer.reset`. In a
class-incremental stream all outputs compete, in training and in evaluation. Schedules of the learning rate go on
counting the steps of periods, which is what whoever sets them knows.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from cl_jax.batch import Reference
from cl_jax.config import config, traced
from cl_jax.errors import UserError
from cl_jax.shuffle import LARGEST_COUNT, shuffled_index
from cl_jax.tasks.stream import Segments


class Layout(NamedTuple):
    """The size of training."""

    num_tasks: int  # T, periods too
    steps: int  # S, of a period
    batch_size: int  # B

    @property
    def num_slots(self) -> int:
        """n, of a period."""
        return self.steps * self.batch_size


Places = tuple[jax.Array, jax.Array]  # task and slot of its own sequence, int32 each


class Boundary(Protocol):
    """What a boundary's author writes, in a config."""

    def shown(self, key: jax.Array, layout: Layout, task: jax.Array, slot: jax.Array) -> Places:
        """What is shown at slots int32 [...], from 0 to n - 1, of the period of `task`, int32 ()."""
        ...


@config
class Sharp:
    """Each task ends where the next begins: the boundary of nearly all published comparisons."""

    def shown(self, key: jax.Array, layout: Layout, task: jax.Array, slot: jax.Array) -> Places:
        return jnp.broadcast_to(task, slot.shape), slot


@config
class Fuzzy:
    """Around each boundary the share of the next task rises linearly from 0 to 1, over `width` of a task's steps.

    With h = floor(width n / 2) the i-th slot before a boundary and the i-th after it (i from 0) change places with
    probability (1 - (i + 1/2) / h) / 2, for i < h, each pair on its own. Every example is shown exactly as often as in
    the sharp stream, in one pass once. Examples of a task are seen before its period begins.

    Args:
        width: from 0, which is sharp, to 1, where shares change all the time.

    Source: Zeno et al. 2018, arXiv 1803.10123 (continuous permuted MNIST), who draw the task of each example by shares
    that change over time; learning that is told no boundary: Aljundi et al. 2019, arXiv 1812.03596.
    """

    width: float = traced(0.5, high=1.0)

    def shown(self, key: jax.Array, layout: Layout, task: jax.Array, slot: jax.Array) -> Places:
        half = _slots(0.5 * jnp.asarray(self.width, jnp.float32), layout)
        left = layout.num_slots - 1 - slot
        before_next = (left < half) & (task < layout.num_tasks - 1)
        after_last = (slot < half) & (task > 0)
        distance = jnp.where(before_next, left, slot)
        share = 0.5 * (1.0 - _middle(distance) / jnp.maximum(half, 1).astype(jnp.float32))
        changed = _coins(key, task + before_next.astype(jnp.int32), distance) < share
        shift = jnp.where(changed & before_next, 1, jnp.where(changed & after_last, -1, 0))
        return task + shift, jnp.where(shift == 0, slot, left)


@config
class LinearDecay:
    """After each boundary the share of the task before falls linearly from 1 to 0, over `width` of the new one's steps.

    Of the first W = 2 floor(width n / 2) slots of a period the i-th and the (W - 1 - i)-th share one example of the old
    task and one of the new, the old one first with probability 1 - (i + 1/2) / W. No example is seen before its task's
    period begins, so that R[i, i + 1] is of a task not seen. Each task's sequence goes on from where it was: a task is
    shown n slots of it, but the first one n + W / 2 and the last one n - W / 2.

    Args:
        width: from 0, which is sharp, to 1.
    """

    width: float = traced(0.5, high=1.0)

    def shown(self, key: jax.Array, layout: Layout, task: jax.Array, slot: jax.Array) -> Places:
        half = _slots(0.5 * jnp.asarray(self.width, jnp.float32), layout)
        mirrored = 2 * half - 1 - slot
        mixed = (slot < 2 * half) & (task > 0)
        pair = jnp.minimum(slot, mirrored)
        old_first = _coins(key, task, pair) < 1.0 - _middle(pair) / jnp.maximum(2 * half, 1).astype(jnp.float32)
        old = mixed & ((slot < half) == old_first)
        behind = jnp.where(task > 0, half, 0)  # slots of the new task's sequence that its period has not come to
        came_to = layout.num_slots - jnp.where(task > 1, half, 0)  # of the old one's, at the end of its period
        own = jnp.where(mixed, pair, slot - behind)
        return jnp.where(old, task - 1, task), jnp.where(old, came_to + pair, own)


@config
class Scattered:
    """A share of every batch is of random times of the stream: its examples are shuffled over all periods.

    The first k = round(share B) slots of all batches change places by one random permutation of these T S k. Every
    example is shown exactly as often as in the sharp stream. A 1 / T of the share falls on the period's own task.

    Args:
        share: from 0, which is sharp, to 1, where the stream is one shuffled data set.

    Source: the blurry-M split of Bang et al. 2021 (Rainbow Memory), arXiv 2103.17230, M = 100 share, which scatters
    over the other tasks alone; Koh et al. 2022 (i-Blurry), arXiv 2110.10031, has it for a part of the classes.
    """

    share: float = traced(0.1, high=1.0)

    def check(self, layout: Layout) -> None:
        """Raises UserError for a stream too long to be shuffled."""
        slots = layout.num_tasks * layout.num_slots
        if slots >= LARGEST_COUNT:
            raise UserError(
                f"boundary Scattered shuffles fewer than {LARGEST_COUNT} examples, and tasks x steps x batch_size is "
                f"{slots}: lower one of these"
            )

    def shown(self, key: jax.Array, layout: Layout, task: jax.Array, slot: jax.Array) -> Places:
        moved = jnp.round(jnp.asarray(self.share, jnp.float32) * layout.batch_size).astype(jnp.int32)
        step, within = slot // layout.batch_size, slot % layout.batch_size
        size = jnp.maximum(moved, 1)
        total = layout.num_tasks * layout.steps * size
        place = (task * layout.steps + step) * size + jnp.minimum(within, size - 1)
        drawn = shuffled_index(key, jnp.zeros_like(place), place, total)
        time, other = drawn // size, drawn % size
        there = (time % layout.steps) * layout.batch_size + other
        away = within < moved
        return jnp.where(away, time // layout.steps, task), jnp.where(away, there, slot)


BOUNDARIES: dict[str, Any] = {"sharp": Sharp, "fuzzy": Fuzzy, "linear_decay": LinearDecay, "scattered": Scattered}


def is_sharp(boundary: Any) -> bool:
    """Whether a period shows its own task alone."""
    return isinstance(boundary, Sharp)


def blurry_references(
    key: jax.Array, key_boundaries: jax.Array, segments: Segments, boundary: Boundary, layout: Layout,
    task: jax.Array, steps: jax.Array,
) -> Reference:  # fmt: skip
    """The batches of given steps int32 [S'] of a period: references [S', B].

    Args:
        key: the seed's batch stream; that of task j's sequence is folded in with j, as where it is alone.
        key_boundaries: the seed's stream of what is shown when.
    """
    slot = steps[:, None] * layout.batch_size + jnp.arange(layout.batch_size, dtype=jnp.int32)[None, :]
    owner, place = boundary.shown(key_boundaries, layout, task, slot)
    return _of_sequences(key, segments, owner, place, layout.batch_size)


def _of_sequences(key: jax.Array, segments: Segments, task: jax.Array, slot: jax.Array, batch_size: int) -> Reference:
    """References to slots of tasks' own sequences, as `sample_references` with exposure "current" numbers them."""

    def one(task: jax.Array, slot: jax.Array) -> jax.Array:
        total = segments.size[task]
        per_epoch = jnp.maximum(total // batch_size, 1)
        step, within = slot // batch_size, slot % batch_size
        position = ((step % per_epoch) * batch_size + within) % total
        drawn = shuffled_index(jax.random.fold_in(key, task), step // per_epoch, position, total)
        return segments.order[segments.start[task] + drawn]

    return Reference(row=jax.vmap(jax.vmap(one))(task, slot), task=task)


def _slots(share: jax.Array, layout: Layout) -> jax.Array:
    """So many slots of a period, rounded down: int32 ()."""
    return jnp.floor(share * layout.num_slots).astype(jnp.int32)


def _middle(place: jax.Array) -> jax.Array:
    return place.astype(jnp.float32) + 0.5


def _coins(key: jax.Array, boundary: jax.Array, pair: jax.Array) -> jax.Array:
    """Uniform in [0, 1), one for each pair of slots of each boundary: float32 [...]."""

    def one(boundary: jax.Array, pair: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, boundary), pair))

    return jnp.vectorize(one)(jnp.broadcast_to(boundary, pair.shape), pair)

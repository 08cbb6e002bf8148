"""What GEM and A-GEM remember: examples of every task, each task's apart or all in one buffer, used once it is over."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax import buffer as buffers
from cl_jax import errors
from cl_jax.batch import Batch, Task
from cl_jax.method import Method, StepInfo
from cl_jax.methods.replay import as_batch, whole_examples
from cl_jax.model import Params
from cl_jax.shuffle import shuffled_index

INSERTIONS = ("step", "boundary", "shared")


class EpisodicMemory(NamedTuple):
    """R buffers of M slots: one a task, or a single one for all of them."""

    buffers: buffers.Buffer  # each leaf with a leading axis of buffers: items [R, M, ...], occupied bool [R, M]
    finished: jax.Array  # int32 (), tasks


def episodic_memory(
    num_tasks: int,
    capacity: int,
    *,
    insert: str = "step",
    policy: str = "ring",
    num_classes: int | None = None,
    offered: int | None = None,
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
    task_items: Callable[[Any], Any] | None = None,
) -> Method:
    """A method that only remembers, of state `EpisodicMemory`: for methods that say what to do with it.

    Args:
        num_tasks: T. What belongs to later tasks is not kept.
        capacity: slots in all. Each task has `capacity // num_tasks` of its own, unless they are shared.
        insert: `step`: each step's incoming examples, into the buffer of the task in training. `boundary`: examples of
            the task that ends, in random order, into its buffer. `shared`: likewise, into one buffer of all slots.
        policy: what a buffer keeps, see `cl_jax.buffer.insert`. By class, an example's class is y mod num_classes.
        num_classes: for policies by class: how many classes one task has.
        offered: how many examples a boundary offers, drawn without replacement; None: all of the task.
        store, load, task_items: as in `cl_jax.methods.replay.replay`.

    Raises:
        UserError: an unknown policy or insertion; too few slots for a buffer; no or too many classes.
    """
    if insert not in INSERTIONS:
        raise errors.unknown("memory insertion", insert, INSERTIONS)
    num_buffers = 1 if insert == "shared" else num_tasks
    slots = capacity // num_buffers
    if slots < 1:
        raise errors.UserError(
            f"memory capacity {capacity} for {num_tasks} tasks leaves a task without a slot: give a capacity of at "
            f"least {num_tasks}, or insert='shared', one buffer for all tasks"
        )
    buffers.validate(slots, policy, num_classes)
    if offered is None and insert == "boundary" and policy not in buffers.BY_CLASS:
        offered = slots  # its buffer is empty and takes no more

    def classes(y: jax.Array) -> jax.Array | None:
        return y % num_classes if policy in buffers.BY_CLASS and num_classes else None

    def put(
        key: jax.Array, memory: EpisodicMemory, items: Any, valid: jax.Array | None, y: jax.Array
    ) -> EpisodicMemory:
        place = jnp.zeros_like(memory.finished) if insert == "shared" else memory.finished
        one = jax.tree.map(lambda leaf: leaf[place], memory.buffers)
        one = buffers.insert(key, one, items, policy, valid, classes(y))
        return memory._replace(
            buffers=jax.tree.map(lambda leaf, new: leaf.at[place].set(new, mode="drop"), memory.buffers, one)
        )

    def init(key: jax.Array, params: Params, batch: Batch) -> EpisodicMemory:
        one = buffers.init(jax.eval_shape(store, batch), slots, policy, num_classes)
        empty = jax.tree.map(lambda leaf: jnp.zeros((num_buffers, *leaf.shape), leaf.dtype), one)
        return EpisodicMemory(empty, jnp.zeros((), jnp.int32))

    def after_step(key: jax.Array, state: EpisodicMemory, info: StepInfo) -> EpisodicMemory:
        if insert != "step":
            return state
        waiting = state._replace(buffers=buffers.after(state.buffers, info.gradient))
        return put(key, waiting, store(info.incoming), None, info.incoming.y)

    def end_task(key: jax.Array, state: EpisodicMemory, params: Params, task: Task) -> EpisodicMemory:
        if insert != "step":
            key_rows, key_insert = jax.random.split(key)
            rows, valid = random_rows(key_rows, task, offered)
            examples = jax.tree.map(lambda leaf: leaf[rows], task.examples)
            if task_items is not None:
                items = task_items(examples)
            else:
                items = store(examples) if isinstance(examples, Batch) else examples
            state = put(key_insert, state, items, valid, load(items).y)
        return state._replace(finished=state.finished + 1)

    return Method(init=init, after_step=after_step, end_task=end_task)


def random_rows(key: jax.Array, task: Task, num: int | None) -> tuple[jax.Array, jax.Array]:
    """The first `num` rows of the task in random order (None: all), int32 [num], and which of them are valid, bool.

    Where the task has fewer than `num` rows, the others repeat some of them and are not valid.
    """
    size = task.valid.shape[0]
    count = jnp.sum(task.valid, dtype=jnp.int32)
    position = jnp.arange(size if num is None else min(num, size), dtype=jnp.int32)
    most = jnp.maximum(count, 1)
    return shuffled_index(key, jnp.zeros_like(position), position % most, most), position < count


def past_slots(memory: EpisodicMemory) -> jax.Array:
    """Which slots hold an example of a finished task: bool [R, M]."""
    number = jnp.arange(memory.buffers.occupied.shape[0], dtype=jnp.int32)
    return memory.buffers.occupied & (number < memory.finished)[:, None]


def sample_past(key: jax.Array, memory: EpisodicMemory, num: int) -> tuple[Any, jax.Array]:
    """Draws examples of finished tasks, uniformly without replacement.

    Returns:
        items: pytree, leaves [num, ...].
        valid: bool [num]: the first min(num, how many there are) are True; the other items repeat some of them.
    """
    past = past_slots(memory).reshape(-1)
    count = jnp.sum(past, dtype=jnp.int32)
    position = jnp.arange(num, dtype=jnp.int32)
    most = jnp.maximum(count, 1)
    rank = shuffled_index(key, jnp.zeros_like(position), position % most, most)
    slot = jnp.searchsorted(jnp.cumsum(past.astype(jnp.int32)), rank, side="right").astype(jnp.int32)
    slot = jnp.where(count > 0, slot, 0)

    def drawn(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(-1, *leaf.shape[2:])[slot]

    return jax.tree.map(drawn, memory.buffers.items), position < count

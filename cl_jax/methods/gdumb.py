"""GDumb: a greedy class-balanced memory, and a model trained from scratch on it alone whenever one is asked for."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cl_jax import errors
from cl_jax.batch import Batch, Task
from cl_jax.config import config, static, traced
from cl_jax.losses import weighted_loss
from cl_jax.method import Method, StepInfo
from cl_jax.methods.context import Context
from cl_jax.methods.replay import as_batch, whole_examples
from cl_jax.model import Model, Params, training_logits
from cl_jax.shuffle import shuffled_index


class Memory(NamedTuple):
    """What the greedy sampler holds. Slots fill from the first; K of them, C classes."""

    items: Any  # pytree, leaves [K, ...]; zeros where empty
    label: jax.Array  # int32 [K], -1: empty
    place: jax.Array  # int32 [K], number of the item within its class, 0 ... stored - 1
    stored: jax.Array  # int32 [C], items held of each class
    met: jax.Array  # bool [C], classes offered so far


class GdumbState(NamedTuple):
    """The memory, and the model last trained on it."""

    memory: Memory
    trained: Params  # like the model's; the initial weights before the first boundary
    present: jax.Array  # bool [], whether a boundary has passed


def empty_memory(items_like: Any, capacity: int, num_classes: int) -> Memory:
    """A memory of `capacity` slots for items like `items_like`, arrays or their shapes [B, ...]."""
    return Memory(
        items=jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape[1:]), leaf.dtype), items_like),
        label=jnp.full((capacity,), -1, jnp.int32),
        place=jnp.zeros((capacity,), jnp.int32),
        stored=jnp.zeros((num_classes,), jnp.int32),
        met=jnp.zeros((num_classes,), bool),
    )


def greedy_insert(key: jax.Array, memory: Memory, items: Any, labels: jax.Array) -> Memory:
    """Offers B items to the greedy sampler; what offering them one after another gives.

    An item of class y is taken if y is new or stored_y < K / |classes met before it| (not rounded). Where the memory is
    full it replaces an item drawn uniformly from the class that has most, one of them at random where several do.

    Args:
        key: give every call its own.
        memory: from `empty_memory`.
        items: pytree like `memory.items`, leaves [B, ...].
        labels: int32 [B]; an item of a class outside 0 ... C - 1 is not taken.

    Source: Prabhu et al. 2020, GDumb, ECCV, algorithm 1. The authors' code takes the first K / C items of each class
        instead, which is the same where every class comes often enough and C is known beforehand.
    """
    (capacity,), (num_classes,), (size,) = memory.label.shape, memory.stored.shape, labels.shape
    order_B = jnp.arange(size, dtype=jnp.int32)
    inside_B = (labels >= 0) & (labels < num_classes)
    key_class, key_item = jax.random.split(key)
    lots_BxC = jax.random.bits(key_class, (size, num_classes)) | 1
    words_B = jax.random.bits(key_item, (size,))

    def wanted(books: Memory, first: jax.Array) -> jax.Array:
        """Items from `first` on that would be taken now: nothing changes before the first of them."""
        quota_left_B = books.stored[labels] * jnp.sum(books.met, dtype=jnp.int32) < capacity
        return (~books.met[labels] | quota_left_B) & inside_B & (order_B >= first)

    def take(carry: tuple[Memory, jax.Array, jax.Array]) -> tuple[Memory, jax.Array, jax.Array]:
        books, slots_B, first = carry
        now = jnp.argmax(wanted(books, first)).astype(jnp.int32)
        books, slot = _admit(books, labels[now], lots_BxC[now], words_B[now])
        slots_B = jnp.where(slots_B == slot, capacity, slots_B)  # whoever was given it in this batch has left
        return books, slots_B.at[now].set(slot), now + 1

    # Most batches have few items that are taken, and none once the memory is balanced. The items themselves are moved
    # once, after the loop, which then carries some integers only.
    start = (memory._replace(items=()), jnp.full((size,), capacity, jnp.int32), jnp.zeros((), jnp.int32))
    books, slots_B, _ = jax.lax.while_loop(lambda carry: jnp.any(wanted(carry[0], carry[2])), take, start)
    target_B = jnp.where(slots_B < capacity, slots_B, capacity + order_B)  # past the end: dropped

    def write(held: jax.Array, new: jax.Array) -> jax.Array:
        return held.at[target_B].set(new, mode="drop", unique_indices=True)

    return books._replace(items=jax.tree.map(write, memory.items, items))


def _admit(books: Memory, label: jax.Array, lots_C: jax.Array, word: jax.Array) -> tuple[Memory, jax.Array]:
    """Gives an item of class `label` a slot: the next empty one, or one of the class that has most.

    Args:
        books: a memory without items.
        lots_C: uint32, not 0: of several largest classes the one with the greatest lot has to give.
        word: uint32, draws which of its items.
    """
    capacity, total = books.label.shape[0], jnp.sum(books.stored, dtype=jnp.int32)
    full, own = total >= capacity, books.stored[label]
    largest = jnp.argmax(jnp.where(books.stored == jnp.max(books.stored), lots_C, 0)).astype(jnp.int32)
    most = books.stored[largest]
    drawn = (word % jnp.maximum(most, 1).astype(jnp.uint32)).astype(jnp.int32)
    among = books.label == largest
    slot = jnp.where(full, jnp.argmax(among & (books.place == drawn)).astype(jnp.int32), total)
    # The last of the class takes the number of the one that leaves, so that numbers have no gaps.
    place = jnp.where(full & among & (books.place == most - 1), drawn, books.place)
    return Memory(
        items=(),
        label=books.label.at[slot].set(label),
        place=place.at[slot].set(own),
        stored=books.stored.at[largest].add(-full.astype(jnp.int32)).at[label].add(1),
        met=books.met.at[label].set(True),
    ), slot


def gdumb(
    model: Model,
    capacity: int,
    *,
    num_steps: int,
    batch_size: int = 16,
    learning_rate: jax.Array | float = 0.05,
    final: jax.Array | float = 0.01,
    momentum: jax.Array | float = 0.9,
    weight_decay: jax.Array | float = 1e-6,
    clip: jax.Array | float = 10.0,
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
) -> Method:
    """At each boundary a new model is trained on the memory alone, and it is what is evaluated.

    In between, `greedy_insert` is offered every incoming example. What trains in the stream is plain fine-tuning (or
    what other methods make of it) and takes no part: with this method only its cost is seen.

    The new model starts from new weights and takes S = num_steps steps s = 0 ... S - 1 of

        g <- gradient of the mean cross-entropy over `batch_size` stored examples (active outputs only)
        g <- g min(1, clip / |g|) + weight_decay theta
        m <- momentum m + g,  theta <- theta - rate_s m
        rate_s = learning_rate (final + (1 - final) (1 + cos(pi s / S)) / 2)

    over shuffled epochs of the memory. Active for a stored example are the outputs that `load` gives it then, in the
    sweep engine those of all classes so far; in evaluation outputs compete as they do for any method.

    The setting of the paper is class-incremental. Where every task has every class (domain-incremental) a memory that
    is full and balanced takes nothing more, so that the model never hears of later tasks.

    Args:
        model: its `init` gives the new weights.
        capacity: items stored, the paper's k.
        num_steps, batch_size: of the training at a boundary.
        learning_rate, final, momentum, weight_decay, clip: as above, may be traced.
        store, load: see `cl_jax.methods.replay.replay`.

    Raises:
        UserError: capacity, num_steps or batch_size below 1.

    Differs from the authors' code: one cosine over all steps, without their first epoch at a tenth of the rate and
    without warm restarts (of 1, 2, 4 ... epochs); steps, not epochs, so that the program has one shape; no cutmix and
    no random crops.

    Source: Prabhu et al. 2020, GDumb: a simple approach that questions our progress in continual learning, ECCV.
    """
    for name, number in {"capacity": capacity, "num_steps": num_steps, "batch_size": batch_size}.items():
        if number < 1:
            raise errors.UserError(f"gdumb {name} {number}: must be at least 1")

    def init(key: jax.Array, params: Params, batch: Batch) -> GdumbState:
        num_outputs = jax.eval_shape(model.apply, params, batch.x).shape[1]
        memory = empty_memory(jax.eval_shape(store, batch), capacity, num_outputs)
        return GdumbState(memory, params, jnp.zeros((), bool))

    def after_step(key: jax.Array, state: GdumbState, info: StepInfo) -> GdumbState:
        return state._replace(memory=greedy_insert(key, state.memory, store(info.incoming), info.incoming.y))

    def batches(key: jax.Array, memory: Memory) -> Any:
        """The slots of each step's examples: int32 [S, batch_size]."""
        stored = jnp.maximum(jnp.sum(memory.stored, dtype=jnp.int32), 1)
        position = jnp.arange(num_steps * batch_size, dtype=jnp.int32)
        return shuffled_index(key, position // stored, position % stored, stored).reshape(num_steps, batch_size)

    def fit(key: jax.Array, memory: Memory) -> Params:
        key_init, key_order, key_steps = jax.random.split(key, 3)
        optimizer = optax.chain(
            optax.clip_by_global_norm(clip), optax.add_decayed_weights(weight_decay), optax.trace(momentum)
        )
        params = model.init(key_init, load(jax.tree.map(lambda leaf: leaf[:1], memory.items)).x)

        def one(carry: tuple[Params, Any], step: tuple[jax.Array, jax.Array]) -> tuple[tuple[Params, Any], None]:
            (params, moments), (number, slots) = carry, step
            batch = load(jax.tree.map(lambda leaf: leaf[slots], memory.items))._replace(weight=None)

            def loss(params: Params) -> jax.Array:
                key_step = jax.random.fold_in(key_steps, number)
                return weighted_loss(training_logits(model, key_step, params, batch.x), batch)

            updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
            along = 0.5 * (1.0 + jnp.cos(jnp.pi * number.astype(jnp.float32) / num_steps))
            rate = learning_rate * (final + (1.0 - final) * along)
            return (optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, updates)), moments), None

        steps = (jnp.arange(num_steps, dtype=jnp.int32), batches(key_order, memory))
        return jax.lax.scan(one, (params, optimizer.init(params)), steps)[0][0]

    def end_task(key: jax.Array, state: GdumbState, params: Params, task: Task) -> GdumbState:
        return GdumbState(state.memory, fit(key, state.memory), jnp.ones((), bool))

    def evaluated(state: GdumbState, params: Params) -> Params:
        return jax.tree.map(lambda new, old: jnp.where(state.present, new, old), state.trained, params)

    return Method(init=init, after_step=after_step, end_task=end_task, evaluated=evaluated)


@config
class Gdumb:
    """See `gdumb`. `steps`: of the training at a boundary; None: as many as a task has."""

    needs_labels: ClassVar[bool] = True
    mixes_tasks: ClassVar[bool] = True

    capacity: int = static(200, low=1)
    steps: int | None = static(None, low=1)
    batch_size: int = static(16, low=1)
    learning_rate: float = traced(0.05)
    final: float = traced(0.01, high=1.0)
    momentum: float = traced(0.9, high=1.0)
    weight_decay: float = traced(1e-6)
    clip: float = traced(10.0)

    def build(self, context: Context) -> Method:
        return gdumb(
            context.model, self.capacity, num_steps=self.steps or context.steps, batch_size=self.batch_size,
            learning_rate=self.learning_rate, final=self.final, momentum=self.momentum,
            weight_decay=self.weight_decay, clip=self.clip, store=lambda batch: batch.reference, load=context.render,
        )  # fmt: skip

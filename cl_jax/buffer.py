"""Fixed-capacity buffers of past examples as pure functions: reservoir and ring (FIFO), of all examples or by class.

A buffer is a NamedTuple of arrays, so it can be the carry of a scan, be batched by `vmap` and be saved as it is.
Its slots form regions, each filled from its start: one region of `capacity` slots for `reservoir` and `ring`, one
of `capacity // num_classes` slots a class for `class_balanced` and `class_ring`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax import errors
from cl_jax.shuffle import shuffled_index

POLICIES = ("reservoir", "ring", "class_balanced", "class_ring")
BY_CLASS = ("class_balanced", "class_ring")


class Buffer(NamedTuple):
    """Stored items, which slots hold one, and how many were offered so far."""

    items: Any  # pytree, leaves [capacity, ...]; zeros where not occupied
    occupied: jax.Array  # bool [capacity]
    seen: jax.Array  # int32 [], valid items offered (kept or not); policies by class: int32 [num_classes]


def validate(capacity: int, policy: str, num_classes: int | None = None) -> None:
    """Raises `UserError` for an unknown policy, a capacity below 1, or one that cannot give each class a slot."""
    if policy not in POLICIES:
        raise errors.unknown("buffer policy", policy, POLICIES)
    if capacity < 1:
        raise errors.UserError(f"buffer capacity {capacity}: must be at least 1; to store nothing, leave replay out")
    if policy not in BY_CLASS:
        return
    if num_classes is None or num_classes < 1:
        raise errors.UserError(
            f"buffer policy {policy!r} with num_classes={num_classes}: say how many classes there are (at least "
            "1), or use 'reservoir', which needs no classes"
        )
    if capacity < num_classes:
        raise errors.UserError(
            f"buffer capacity {capacity} for {num_classes} classes leaves a class without a slot: give a capacity of "
            f"at least {num_classes}, or use 'reservoir'"
        )


def init(items_like: Any, capacity: int, policy: str, num_classes: int | None = None) -> Buffer:
    """An empty buffer.

    Args:
        items_like: pytree of arrays or `ShapeDtypeStruct`s [B, ...]; only shapes and dtypes are read.
        capacity: number of slots, static.
        policy: one of `POLICIES`.
        num_classes: for policies by class, which ignore the `capacity % num_classes` last slots; else not used.

    Raises:
        UserError: see `validate`.
    """
    validate(capacity, policy, num_classes)
    return Buffer(
        items=jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape[1:]), leaf.dtype), items_like),
        occupied=jnp.zeros(capacity, bool),
        seen=jnp.zeros((num_classes,) if policy in BY_CLASS and num_classes else (), jnp.int32),
    )


def reservoir_draws(key: jax.Array, position: jax.Array, region: jax.Array, num_regions: int) -> jax.Array:
    """Algorithm R's draw for the item that `position` valid items of its region came before: uniform on 0..position.

    The draw depends on key, position and region alone, not on how the stream was cut into batches. It is a 32-bit
    word modulo `position + 1`: no value is more likely than another by more than a factor 1 + (position + 1) / 2^32.

    Args:
        key: shared by all items.
        position: int32 [B], from 0.
        region: int32 [B], in 0..num_regions - 1.
        num_regions: static.

    Returns:
        int32 [B].
    """
    address = position.astype(jnp.uint32) * num_regions + region.astype(jnp.uint32)
    words = jax.vmap(lambda word: jax.random.bits(jax.random.fold_in(key, word)))(address)
    return (words % (position.astype(jnp.uint32) + 1)).astype(jnp.int32)


def assign(
    key: jax.Array, buffer: Buffer, policy: str, valid: jax.Array, classes: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The slot at which each item of a batch would arrive if they came one by one, and the new `seen`.

    An item that n earlier valid items of its region came before goes, within the q slots of its region, to
    `n mod q` (rings), or to n if n < q and else to j ~ uniform{0..n} if j < q, else nowhere (reservoir). None of it
    depends on what the slots hold, which is why a batch needs no loop.

    Args and errors are those of `insert`.

    Returns:
        slot: int32 [B]; `capacity` for an item that is not kept. Slots may repeat: the later item replaces the earlier.
        seen: like `buffer.seen`.
    """
    capacity, num_regions = buffer.occupied.shape[0], buffer.seen.size
    quota = capacity // num_regions
    region = jnp.zeros(valid.shape, jnp.int32) if classes is None else classes.astype(jnp.int32)
    counts = (region[:, None] == jnp.arange(num_regions)[None, :]) & valid[:, None]  # [B, num_regions]
    region_seen = buffer.seen.reshape(1, num_regions)
    earlier = jnp.cumsum(counts, axis=0, dtype=jnp.int32) - counts.astype(jnp.int32)
    position = jnp.sum(jnp.where(counts, region_seen + earlier, 0), axis=1)
    if policy in ("ring", "class_ring"):
        offset = position % quota
    else:
        offset = jnp.where(position < quota, position, reservoir_draws(key, position, region, num_regions))
    kept = jnp.any(counts, axis=1) & (offset < quota)
    slot = jnp.where(kept, region * quota + offset, capacity)
    return slot, buffer.seen + jnp.sum(counts, axis=0, dtype=jnp.int32).reshape(buffer.seen.shape)


def insert(
    key: jax.Array,
    buffer: Buffer,
    items: Any,
    policy: str,
    valid: jax.Array | None = None,
    classes: jax.Array | None = None,
) -> Buffer:
    """Offers a batch of items in order; exactly what offering them one by one with the same key would give.

    `reservoir` keeps every item offered so far with probability min(1, capacity / seen) (algorithm R), `ring` the
    last `capacity`, `class_balanced` runs a reservoir of `capacity // num_classes` slots a class: class c owns the
    slots from c * quota up to (c + 1) * quota - 1; `class_ring` a ring of them a class. Counters are int32: at most
    2^31 - 1 items a buffer.

    Args:
        key: give every call its own; rings draw nothing.
        buffer: from `init` with the same policy.
        items: pytree like `buffer.items`, leaves [B, ...].
        policy: one of `POLICIES`.
        valid: bool [B]; an invalid item is neither stored nor counted. None: all valid.
        classes: int [B], for policies by class (an item of a class outside 0..num_classes - 1 counts
            as invalid); else not used.

    Raises:
        UserError: unknown policy or one that the buffer was not made for, no classes for one by class, or items
            of another structure, shape or dtype than the stored ones.

    Source: J. S. Vitter, Random sampling with a reservoir, ACM TOMS 11(1), 1985 (algorithm R).
    """
    if policy not in POLICIES:
        raise errors.unknown("buffer policy", policy, POLICIES)
    if (policy in BY_CLASS) != (buffer.seen.ndim == 1):
        made_for = "'class_balanced' or 'class_ring'" if buffer.seen.ndim == 1 else "'reservoir' or 'ring'"
        raise errors.UserError(f"buffer policy {policy!r} on a buffer made for {made_for}: give `init` the same policy")
    if policy in BY_CLASS and classes is None:
        raise errors.UserError(f"buffer policy {policy!r} needs `classes`, the class of each item")
    if _item_types(items) != _item_types(buffer.items):
        raise errors.UserError(
            f"items {_item_types(items)} do not match the stored {_item_types(buffer.items)}: what is inserted must "
            "have the structure, shapes and dtypes that `init` was given"
        )
    num_items, capacity = jax.tree.leaves(items)[0].shape[0], buffer.occupied.shape[0]
    valid = jnp.ones(num_items, bool) if valid is None else valid
    slot, seen = assign(key, buffer, policy, valid, classes if policy in BY_CLASS else None)

    # Of several items for one slot the last wins. A scatter with repeated indices leaves the winner open on a GPU, so
    # the losers (and the items not kept) go to distinct places past the end, which are dropped.
    order = jnp.arange(num_items)
    last = jnp.full(capacity, -1).at[slot].max(order, mode="drop")
    wins = last.at[slot].get(mode="fill", fill_value=-1) == order
    target = jnp.where(wins, slot, capacity + order)

    def write(stored: jax.Array, new: jax.Array) -> jax.Array:
        return stored.at[target].set(new, mode="drop", unique_indices=True)

    return Buffer(jax.tree.map(write, buffer.items, items), write(buffer.occupied, jnp.ones(num_items, bool)), seen)


def after(buffer: Buffer, values: Any) -> Buffer:
    """The same buffer, which the compiler may not write to before it has computed `values`.

    A step reads its buffer (`sample`), trains, and writes to it (`insert`). Unless the write depends on something
    computed from what was read, XLA takes the two for unordered and copies the whole buffer, twice a step; with
    `insert(key, after(buffer, gradient), ...)` it writes in place (in a scan, or if the step's arguments are donated).

    Args:
        buffer: any.
        values: pytree of real arrays; the first element of the first leaf is what is waited for.
    """
    first = jax.tree.leaves(values)[0].ravel()[0]
    never = (first > 0) & (first < 0)  # a contradiction that the compiler does not see through
    return buffer._replace(seen=buffer.seen + never.astype(jnp.int32))


def sample(key: jax.Array, buffer: Buffer, num: int) -> tuple[Any, jax.Array]:
    """Draws `num` stored items, independently and uniformly with replacement over the occupied slots.

    Returns:
        items: pytree like `buffer.items`, leaves [num, ...].
        valid: bool [num]; all True, or all False when the buffer is empty (the items are then those of slot 0: zeros).
    """
    filled = _filled(buffer)
    total = jnp.sum(filled, dtype=jnp.int32)
    words = jax.random.bits(key, (num,))
    rank = (words % jnp.maximum(total, 1).astype(jnp.uint32)).astype(jnp.int32)
    slot = _slots(buffer, filled, rank)
    return jax.tree.map(lambda leaf: leaf[slot], buffer.items), jnp.broadcast_to(total > 0, (num,))


def sample_distinct(key: jax.Array, buffer: Buffer, num: int) -> tuple[Any, jax.Array]:
    """Draws stored items without replacement: the first `num` of all occupied slots in random order.

    Returns:
        items: pytree like `buffer.items`, leaves [num, ...].
        valid: bool [num]; the first min(num, occupied slots) are True. The other items repeat some of these, or are
            those of slot 0 when the buffer is empty.
    """
    filled = _filled(buffer)
    total = jnp.sum(filled, dtype=jnp.int32)
    position = jnp.arange(num, dtype=jnp.int32)
    count = jnp.maximum(total, 1)
    rank = shuffled_index(key, jnp.zeros_like(position), position % count, count)
    slot = _slots(buffer, filled, rank)
    return jax.tree.map(lambda leaf: leaf[slot], buffer.items), position < total


def _filled(buffer: Buffer) -> jax.Array:
    """int32 [num_regions], the occupied slots of each region."""
    num_regions = buffer.seen.size
    quota = buffer.occupied.shape[0] // num_regions
    return jnp.sum(buffer.occupied[: num_regions * quota].reshape(num_regions, quota), axis=1, dtype=jnp.int32)


def _slots(buffer: Buffer, filled: jax.Array, rank: jax.Array) -> jax.Array:
    """The rank-th occupied slots, int32 like `rank`; slot 0 when none is occupied."""
    num_regions = buffer.seen.size
    quota = buffer.occupied.shape[0] // num_regions
    ends = jnp.cumsum(filled)
    # Each region is filled from its start, so the rank-th occupied slot needs a search over regions, not over slots.
    region = jnp.minimum(jnp.searchsorted(ends, rank, side="right"), num_regions - 1).astype(jnp.int32)
    return jnp.where(ends[-1] > 0, region * quota + rank - (ends - filled)[region], 0)


def _item_types(items: Any) -> Any:
    """The pytree with each leaf replaced by dtype and shape of one item, as text."""
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape[1:])}", items)

"""Random-access shuffling: the i-th element of a random order, without making the order.

A permutation addressed by key, epoch and position needs no memory, no sort and no state: batch 731 of epoch 12 is a
formula, so a run can stop and go on at any step, and sixty thousand examples cost no more than ten.
"""

import jax
import jax.numpy as jnp

ROUNDS = 8  # four suffice for a pseudo-random permutation (Luby and Rackoff 1988); tiny ranges want more
LARGEST_COUNT = 2**24  # float32 holds every whole number below, which the square root needs


def _mix(value: jax.Array) -> jax.Array:
    """A 32-bit integer hash with full avalanche (the finalizer family of Appleby's MurmurHash3)."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x85EBCA6B)
    value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
    return value ^ (value >> 16)


def shuffled_index(key: jax.Array, epoch: jax.Array, position: jax.Array, count: jax.Array) -> jax.Array:
    """perm_{key, epoch}(position): for each key and epoch a permutation of 0 ... count - 1.

    A Feistel network on the smallest a x b rectangle with a = ceil(sqrt(count)), walked again from any point that falls
    outside the range (cycle walking, Black and Rogaway 2002), which happens for less than 1 in sqrt(count).

    Args:
        key: a typed key.
        epoch: int32 [...], broadcastable to `position`.
        position: int32 [...], each in [0, count).
        count: int32 (), at least 1, less than `LARGEST_COUNT`.

    Returns:
        int32 [...].
    """
    words = jax.random.bits(key, (ROUNDS,), jnp.uint32)
    count = jnp.asarray(count, jnp.uint32)
    rows = jnp.ceil(jnp.sqrt(count.astype(jnp.float32))).astype(jnp.uint32)
    columns = (count + rows - 1) // rows
    tweak = _mix(jnp.asarray(epoch, jnp.uint32) * jnp.uint32(0x9E3779B9) + 1)

    def permute(value: jax.Array) -> jax.Array:
        row, column = value // columns, value % columns
        for i in range(ROUNDS):
            if i % 2 == 0:
                row = (row + _mix(column + words[i] ^ tweak)) % rows
            else:
                column = (column + _mix(row + words[i] ^ tweak)) % columns
        return row * columns + column

    def walk(value: jax.Array) -> jax.Array:
        return jnp.where(value >= count, permute(value), value)

    start = permute(jnp.asarray(position, jnp.uint32))
    return jax.lax.while_loop(lambda value: jnp.any(value >= count), walk, start).astype(jnp.int32)

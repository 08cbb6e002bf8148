"""Random-access shuffling is a permutation, a different one for each key and epoch, and looks uniform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.shuffle import shuffled_index


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    position = jnp.arange(count, dtype=jnp.int32)
    return np.asarray(shuffled_index(jax.random.key(seed), jnp.full_like(position, epoch), position, jnp.int32(count)))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 97, 128, 1294, 60_000])
def test_every_position_once(count: int) -> None:
    np.testing.assert_array_equal(np.sort(order(3, 5, count)), np.arange(count))


def test_key_and_epoch_matter() -> None:
    assert (order(0, 0, 1000) == order(0, 1, 1000)).mean() < 0.02
    assert (order(0, 0, 1000) == order(1, 0, 1000)).mean() < 0.02


def test_uniform_over_keys() -> None:
    """Chi-squared of where position 0 of 10 lands over 4000 keys; 27.9 is the 99.9 % quantile at 9 degrees."""
    keys = jax.vmap(jax.random.key)(jnp.arange(4000))
    landed = jax.vmap(lambda key: shuffled_index(key, jnp.int32(0), jnp.int32(0), jnp.int32(10)))(keys)
    counts = np.bincount(np.asarray(landed), minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 27.9

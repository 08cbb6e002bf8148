"""Replay by a share of the batch: how many rows are old, which, and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.batch import Batch, Task
from cl_jax.methods.mixture import mixture

KEY = jax.random.key(0)


def batch(first: int, rows: int) -> Batch:
    number = jnp.arange(first, first + rows, dtype=jnp.int32)
    return Batch(number[:, None].astype(jnp.float32), number)


def after_task(method, old: Batch):
    state = method.init(KEY, {}, old)
    return method.end_task(KEY, state, {}, Task(jnp.int32(0), old, jnp.ones(old.y.shape, bool)))


def test_the_share_of_old_rows_is_binomial_and_each_stored_one_as_likely() -> None:
    share, rows, draws = 0.3, 50, 400
    method = mixture(share, 8)
    state, new = after_task(method, batch(1000, 8)), batch(0, rows)
    drawn = jax.vmap(lambda key: method.draw(key, state, {}, new).y)(jax.random.split(KEY, draws))
    old = np.asarray(drawn) >= 1000
    mean, deviation = share * rows, (share * (1 - share) * rows / draws) ** 0.5
    assert abs(old.sum(axis=1).mean() - mean) < 4 * deviation
    assert abs(old.sum(axis=1).var() / (share * (1 - share) * rows) - 1) < 4 * (2 / draws) ** 0.5
    counts = np.bincount(np.asarray(drawn)[old] - 1000, minlength=8)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 24.3  # chi-squared of 7, 0.1 %
    np.testing.assert_array_equal(np.where(old, 0, np.asarray(drawn)), np.where(old, 0, np.asarray(new.y)[None]))


def test_no_share_or_nothing_stored_is_the_batch_as_it_came() -> None:
    new = batch(0, 6)._replace(weight=jnp.asarray([0.5, 0.1, 0.1, 0.1, 0.1, 0.1], jnp.float32))
    for share, state_of in ((0.0, lambda m: after_task(m, batch(1000, 8))), (1.0, lambda m: m.init(KEY, {}, new))):
        method = mixture(share, 8)
        drawn = method.draw(KEY, state_of(method), {}, new)
        np.testing.assert_array_equal(drawn.y, new.y)
        np.testing.assert_array_equal(drawn.weight, new.weight)


def test_the_whole_share_is_old_rows_only_and_the_step_is_no_larger() -> None:
    method = mixture(1.0, 8)
    drawn = method.draw(KEY, after_task(method, batch(1000, 8)), {}, batch(0, 6))
    assert drawn.y.shape == (6,) and (np.asarray(drawn.y) >= 1000).all()
    np.testing.assert_array_equal(drawn.x[:, 0], drawn.y.astype(jnp.float32))


def test_rows_of_the_present_task_are_stored_at_its_end_and_not_before() -> None:
    method = mixture(0.5, 4)
    state = method.init(KEY, {}, batch(0, 6))
    assert not bool(state.buffer.occupied.any())
    assert bool(after_task(method, batch(1000, 4)).buffer.occupied.all())

"""Forward KL from the first boundary, on every task, against sums over labels."""

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.batch import Batch
from cl_jax.diagnostics import base_kl
from cl_jax.model import Model
from tests.diagnostics.by_hand import ALL_WEIGHTS, BATCHES, boundary, examples, forward, measured, softmax


def by_hand(task: int, after: int) -> float:
    x, _ = examples(task)
    p, q = (softmax(forward(ALL_WEIGHTS[at], x)[1]) for at in (1, after))
    return float(np.mean(np.sum(p * np.log(p / q), axis=1)))


def test_base_to_now_on_every_task_trained_or_not() -> None:
    for after in (2, 3):
        array, layers = measured(base_kl, after)["base_kl"]
        assert layers == ("",) and array.shape == (1, 3, 1)
        np.testing.assert_allclose(array[0, :, 0], [by_hand(task, after) for task in range(3)], rtol=1e-4)


def test_undefined_until_something_follows_the_base_and_where_it_is_not_known() -> None:
    for after, since in ((0, 0), (1, 0), (3, 2)):
        assert np.isnan(measured(base_kl, after, since=since)["base_kl"][0]).all()
    assert np.isfinite(measured(base_kl, 3, since=1)["base_kl"][0]).all()


def test_each_model_answers_over_the_outputs_of_its_time() -> None:
    asked = []

    def probe(task, present=None):
        asked.append(present if present is None else int(present))
        return BATCHES[0]

    base_kl.measure(boundary(3, probe=probe))
    assert set(asked) == {0, None}  # None: those after the last task trained


def test_of_text_by_counted_targets() -> None:
    draw = np.random.default_rng(0)
    tables = draw.normal(size=(4, 5, 3)).astype(np.float32)  # by boundary: logits after each of 5 tokens
    x, y = draw.integers(5, size=(2, 6)), draw.integers(3, size=(2, 6))
    counted = np.array([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
    kept = jnp.asarray(tables)
    model = Model(init=lambda key, like: kept[0], apply=lambda params, ids: params[ids])
    batch = jax.tree.map(jnp.asarray, Batch(x.astype(np.int32), y.astype(np.int32)))
    batch = batch._replace(counted=jnp.asarray(counted, jnp.float32), weight=jnp.full((2,), 0.5, jnp.float32))
    changes = {"model": model, "probe": lambda task, **about: batch, "params": lambda task: kept[3]}
    (value,) = base_kl.measure(boundary(3, earlier=lambda at, task: kept[at], **changes))
    each = []
    for row, place in np.argwhere(counted):
        p, q = (softmax(tables[at, x[row, place]].astype(np.float64)) for at in (1, 3))
        each.append(np.sum(p * np.log(p / q)))
    np.testing.assert_allclose(value.array[0, :, 0], np.mean(each), rtol=1e-4)

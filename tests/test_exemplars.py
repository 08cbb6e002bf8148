"""Herding against a loop that computes every distance; the nearest mean against distances to means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch
from cl_jax.errors import UserError
from cl_jax.exemplars import features, head_of, herd, nearest_mean
from cl_jax.model import Model
from cl_jax.models.cnn import cnn
from cl_jax.models.mlp import mlp

MODEL = mlp((7,), 4)
ROUNDING = dict(rtol=1e-5, atol=1e-6)  # float32 sums of a few dozen terms


def batch_of(num: int, seed: int = 0) -> Batch:
    generator = np.random.default_rng(seed)
    x = jnp.asarray(generator.normal(size=(num, 5)), jnp.float32)
    return Batch(x, jnp.asarray(generator.integers(0, 4, num), jnp.int32))


def parameters(model: Model = MODEL, seed: int = 0):
    return model.init(jax.random.key(seed), jnp.zeros((1, 5)))


def by_hand(params, x) -> np.ndarray:
    """What the last layer of `MODEL` receives, float64 [N, 7]."""
    layer = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["dense_0"])
    return np.maximum(np.asarray(x, np.float64) @ layer["kernel"] + layer["bias"], 0.0)


def divided(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def herd_by_hand(phi: np.ndarray, num: int) -> list[int]:
    """Rows of `phi` in the order of the argmin of the distance to the mean, all distances computed."""
    mean, taken = phi.mean(axis=0), []
    for k in range(1, min(num, len(phi)) + 1):
        best, nearest = -1, np.inf
        for i in range(len(phi)):
            if i not in taken:
                distance = np.linalg.norm(mean - (phi[i] + sum(phi[j] for j in taken)) / k)
                if distance < nearest:
                    best, nearest = i, distance
        taken.append(best)
    return taken


@pytest.mark.parametrize("lengths", ["one", "any"])
def test_herding_takes_what_a_loop_over_all_distances_takes(lengths):
    phi = np.random.default_rng(1).normal(size=(60, 6))
    phi = divided(phi) if lengths == "one" else phi
    member = np.random.default_rng(2).random(60) < 0.6
    several = jax.jit(jax.vmap(herd, in_axes=(None, None, 0)))
    ranks = several(jnp.asarray(phi, jnp.float32), jnp.asarray(member), jnp.array([0, 1, 9, 1000], jnp.int32))
    for num, rank in zip([0, 1, 9, 1000], np.asarray(ranks), strict=True):
        taken = np.flatnonzero(rank >= 0)
        order = taken[np.argsort(rank[taken])]
        assert rank[order].tolist() == list(range(min(num, member.sum())))
        assert order.tolist() == np.flatnonzero(member)[herd_by_hand(phi[member], num)].tolist()


def test_of_equal_examples_herding_takes_the_first():
    phi = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.6, 0.8]])
    rank = jax.jit(herd)(phi, jnp.array([False, True, True, True, True]), 3)
    assert rank.tolist() == [-1, 0, 1, 2, -1]  # 1 of all four, 2 of 2 and 4, 3 of 3 and 4


@pytest.mark.parametrize("num", [3, 300])  # less and more than a chunk
def test_features_are_what_the_last_layer_receives_of_length_one(num):
    batch, params = batch_of(num), parameters()
    valid = jnp.arange(num) < num - 2
    rows = jnp.where(valid, jnp.arange(num), num)  # what is not valid is never rendered

    def render(rows):
        return Batch(jnp.where((rows < num)[:, None], batch.x[rows % num], jnp.nan), batch.y[rows % num])

    phi, labels = jax.jit(lambda: features(MODEL, params, rows, valid, render))()
    np.testing.assert_allclose(phi[:-2], divided(by_hand(params, batch.x))[:-2], **ROUNDING)
    np.testing.assert_array_equal(labels[:-2], batch.y[:-2])
    assert np.isfinite(phi).all() and phi.shape == (num, 7)


def test_the_new_last_layer_classifies_by_the_nearest_mean():
    stored, asked, params = batch_of(40), batch_of(200, seed=1), parameters()
    stored = stored._replace(y=jnp.where(stored.y == 2, 1, stored.y))  # of class 2 there is no example
    valid = jnp.arange(40) < 30
    new = jax.jit(lambda: nearest_mean(MODEL, params, stored, valid))()
    phi, labels = divided(by_hand(params, stored.x))[:30], np.asarray(stored.y)[:30]
    known = [0, 1, 3]
    means = np.stack([divided(phi[labels == c].mean(axis=0)) for c in known])
    distances = np.linalg.norm(divided(by_hand(params, asked.x))[:, None] - means[None], axis=-1)
    predicted = np.asarray(jnp.argmax(MODEL.apply(new, asked.x), axis=1))
    nearest, second = np.sort(distances, axis=1)[:, :2].T
    clear = second - nearest > 1e-5  # not a matter of rounding
    assert clear.sum() > 150 and len(set(predicted)) == 3
    np.testing.assert_array_equal(predicted[clear], np.array(known)[np.argmin(distances, axis=1)][clear])
    np.testing.assert_array_equal(new["dense_0"]["kernel"], params["dense_0"]["kernel"])
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, params)


def test_without_examples_the_parameters_stay():
    params = parameters()
    new = jax.jit(lambda: nearest_mean(MODEL, params, batch_of(5), jnp.zeros(5, bool)))()
    jax.tree.map(np.testing.assert_array_equal, new, params)


def test_the_last_layer_is_the_one_used_last():
    """Not the last in alphabetical order."""
    deep = mlp((3,) * 11, 4)
    assert head_of(deep, parameters(deep), batch_of(2)) == "dense_11"
    images = Batch(jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32))
    small = cnn((2,), (3,), 4)
    assert head_of(small, jax.eval_shape(small.init, jax.random.key(0), images.x), images) == "dense_1"


def test_models_that_cannot_tell_their_features():
    with pytest.raises(UserError, match=r"has no `tap`.*cl_jax\.models"):
        head_of(MODEL._replace(tap=None), parameters(), batch_of(2))
    params = {"dense": {"kernel": jnp.ones((5, 3))}, "shift": {"bias": jnp.zeros(3)}}

    def tap(params, probes, x):
        h = x @ params["dense"]["kernel"]
        return h + params["shift"]["bias"][None, :], {"dense": x, "shift": h}

    shifted = Model(lambda key, x: params, lambda params, x: tap(params, {}, x)[0], tap)
    with pytest.raises(UserError, match=r"ends in a dense layer.*'shift'"):
        head_of(shifted, params, batch_of(2))

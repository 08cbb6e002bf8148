"""GPM: the memory against NumPy's singular vectors, the projection by hand, and what stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch, Task
from cl_jax.errors import UserError
from cl_jax.methods.gpm import enlarged, gpm, kernel_layers
from cl_jax.model import Model
from cl_jax.models.cnn import cnn
from cl_jax.models.mlp import mlp
from tests.methods.test_agem import KEY, compiled

MLP = mlp((12, 9), 4)
CLOSE = 2e-4  # of projectors: float32's eigenvectors of energies that differ by a thousandth


def inputs(seed, size, num=20):
    """Of which a few directions hold nearly all energy."""
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(num, size))
        * 0.6 ** np.arange(size)
        @ np.linalg.qr(generator.normal(size=(size, size)))[0]
    )


def batch_of(seed, num=20):
    return Batch(jnp.asarray(inputs(seed, 10, num), jnp.float32), jnp.zeros(num, jnp.int32))


PARAMS = MLP.init(jax.random.key(1), batch_of(0).x)


def memory_after(representations, thresholds):
    """M [d, r] by the paper's algorithm 1 (update of the memory): a list of R [d, n] -> columns, float64."""
    memory = np.zeros((len(representations[0]), 0))
    for r, threshold in zip(representations, thresholds, strict=True):
        missed = r - memory @ memory.T @ r
        u, s, _ = np.linalg.svd(missed, full_matrices=False)
        total, held = np.sum(r**2), np.sum(r**2) - np.sum(missed**2)
        k = 0
        while k < len(s) and held < threshold * total:
            held += s[k] ** 2
            k += 1
        memory = np.concatenate([memory, u[:, :k]], axis=1)
    return memory


def ended(method, state, number, batch, valid=None, params=PARAMS):
    valid = jnp.ones(batch.y.shape, bool) if valid is None else valid
    return method.end_task(KEY, state, params, Task(jnp.int32(number), batch, valid))


def by_hand(params, x):
    """What each layer of the network receives: float64 [d, n] by layer."""
    found, h = {}, np.asarray(x, np.float64)
    for name in ("dense_0", "dense_1", "dense_2"):
        found[name] = h.T
        layer = params[name]
        h = np.maximum(h @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64), 0)
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_the_memory_over_three_tasks(threshold):
    representations = [inputs(seed, 10).T for seed in range(3)]
    found = jnp.zeros((10, 10))
    for number in range(3):
        moment = jnp.asarray(representations[number] @ representations[number].T, jnp.float32)
        found = jax.jit(enlarged)(found, moment, jnp.float32(threshold))
        memory = memory_after(representations[: number + 1], [threshold] * (number + 1))
        np.testing.assert_allclose(found, memory @ memory.T, atol=CLOSE)
    assert 1 < memory.shape[1] <= 10


def test_no_direction_and_all_directions():
    r = inputs(0, 10).T
    moment = jnp.asarray(r @ r.T, jnp.float32)
    np.testing.assert_array_equal(enlarged(jnp.zeros((10, 10)), moment, 0.0), np.zeros((10, 10)))
    np.testing.assert_array_equal(enlarged(jnp.zeros((10, 10)), jnp.zeros((10, 10)), 1.0), np.zeros((10, 10)))
    few = jnp.asarray(r[:, :3] @ r[:, :3].T, jnp.float32)  # of rank 3
    whole = enlarged(jnp.zeros((10, 10)), few, 1.0)
    np.testing.assert_allclose(jnp.trace(whole), 3.0, atol=1e-4)
    np.testing.assert_allclose(enlarged(whole, few, 1.0), whole, atol=1e-5)


def test_every_layer_of_a_network_and_a_rising_threshold():
    """Two boundaries, at other weights each; biases are free before the first and frozen after it."""
    method = compiled(gpm(MLP, threshold=0.8, increase=0.19))
    state, seen, params = method.init(KEY, PARAMS, batch_of(0)), [], PARAMS
    g = jax.tree.map(lambda leaf: jnp.cos(3 * leaf) + 0.1, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, method.gradients(KEY, state, g, PARAMS, batch_of(0)), g)
    for number in range(2):
        batch = batch_of(10 + number)
        state = ended(method, state, number, batch, params=params)
        seen.append(by_hand(params, batch.x))
        found = method.gradients(KEY, state, g, params, batch)
        for name in PARAMS:
            memory = memory_after([one[name] for one in seen], [0.8, 0.99][: number + 1])
            kernel = np.asarray(g[name]["kernel"], np.float64)
            np.testing.assert_allclose(found[name]["kernel"], kernel - memory @ memory.T @ kernel, atol=1e-3)
            assert 0 < memory.shape[1] < len(memory) and not found[name]["bias"].any()
        params = jax.tree.map(lambda leaf: 0.8 * leaf + 0.05, params)


def test_a_threshold_for_each_layer():
    """Over the valid examples, once each."""
    method = compiled(gpm(MLP, threshold={"dense_0": 0.6, "dense_1": 0.9, "dense_2": 0.99}))
    batch = batch_of(4)
    state = ended(method, method.init(KEY, PARAMS, batch), 0, batch, jnp.arange(20) < 11)
    for (name, r), threshold in zip(by_hand(PARAMS, batch.x[:11]).items(), (0.6, 0.9, 0.99), strict=True):
        memory = memory_after([r], [threshold])
        np.testing.assert_allclose(state.projector[name], memory @ memory.T, atol=1e-3)


def test_a_projected_step_leaves_a_layers_answers():
    """With a threshold of 1 and fewer examples than inputs, what the valid ones received is answered as before."""
    method, batch = compiled(gpm(MLP, threshold=1.0, num_examples=6)), batch_of(5, 9)
    state = ended(method, method.init(KEY, PARAMS, batch), 0, batch, jnp.arange(9) < 6)
    g = jax.tree.map(jnp.ones_like, PARAMS)
    step = method.gradients(KEY, state, g, PARAMS, batch)
    after = jax.tree.map(lambda p, d: p - d, PARAMS, step)
    moved = np.abs(np.asarray(MLP.apply(after, batch.x) - MLP.apply(PARAMS, batch.x)))
    assert moved[:6].max() < 1e-3 < moved[6:].min()


def test_a_head_of_each_tasks_own_is_free():
    method, batch = compiled(gpm(MLP, threshold=1.0, separate_heads=True)), batch_of(6)
    state = ended(method, method.init(KEY, PARAMS, batch), 0, batch)
    g = jax.tree.map(jnp.ones_like, PARAMS)
    found = method.gradients(KEY, state, g, PARAMS, batch)
    assert sorted(state.projector) == ["dense_0", "dense_1"]
    jax.tree.map(np.testing.assert_array_equal, found["dense_2"], g["dense_2"])
    assert jnp.abs(found["dense_0"]["kernel"]).max() < 1e-3 and not found["dense_1"]["bias"].any()


def test_a_convolutions_patches_at_all_positions():
    model = cnn((3,), (), 4)
    x = np.random.default_rng(7).normal(size=(5, 4, 4, 1))
    batch = Batch(jnp.asarray(x, jnp.float32), jnp.zeros(5, jnp.int32))
    params = model.init(KEY, batch.x)
    method = compiled(gpm(model, threshold=0.7))
    state = ended(method, method.init(KEY, params, batch), 0, batch, params=params)
    padded = np.pad(x[..., 0], ((0, 0), (1, 1), (1, 1)))
    r = np.stack([padded[:, i : i + 3, j : j + 3].reshape(5, 9) for i in range(4) for j in range(4)], axis=1)
    memory = memory_after([r.reshape(-1, 9).T], [0.7])
    assert 1 < memory.shape[1] < 9
    np.testing.assert_allclose(state.projector["conv_0"], memory @ memory.T, atol=1e-3)
    assert kernel_layers(model, params, batch) == ["conv_0", "dense_0"]


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"this model has no `tap`.*or use ogd"):
        gpm(MLP._replace(tap=None))
    with pytest.raises(UserError, match="num_examples 0"):
        gpm(MLP, num_examples=0)
    with pytest.raises(UserError, match="no threshold for layer 'dense_1': give one for each of dense_0, dense_1, d"):
        gpm(MLP, threshold={"dense_0": 0.9}).init(KEY, PARAMS, batch_of(0))
    scaled = Model(lambda key, x: {"s": {"scale": jnp.ones(4)}}, lambda p, x: x, lambda p, probes, x: (x, {"s": x}))
    with pytest.raises(UserError, match="no layer with one"):
        gpm(scaled).init(KEY, {"s": {"scale": jnp.ones(4)}}, batch_of(0))

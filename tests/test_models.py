"""Convolutions against XLA's own, models against Flax Linen and `lax`, initial weights against their laws."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax

from cl_jax import train
from cl_jax.batch import Batch
from cl_jax.errors import UserError
from cl_jax.experiment import MODELS, Decoder, Dropout, Encoder, Mlp
from cl_jax.model import Model
from cl_jax.models.cnn import cnn
from cl_jax.models.conv import convolution, global_average_pool, max_pool
from cl_jax.models.layers import Layers, dropped
from cl_jax.models.mlp import mlp
from cl_jax.models.resnet import resnet18

KEY = jax.random.key(0)
# float32 sums of a few hundred products in another order.
ROUNDING = dict(rtol=1e-5, atol=1e-5)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def library(x, kernel, window, stride, padding):
    hwio = kernel.reshape(window, window, x.shape[3], -1)
    return lax.conv_general_dilated(x, hwio, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(
    ("window", "stride", "padding", "members"),
    [(3, 1, "SAME", 2), (3, 2, "SAME", 2), (3, 2, "SAME", None), (3, 1, "VALID", None), (3, 2, "VALID", None),
     (1, 2, "SAME", 2), (2, 3, "SAME", None)],
)  # fmt: skip
def test_convolution_is_the_library_s(window, stride, padding, members):
    """Value, both gradients and forward derivative, on an image with an odd and an even side; kernels of their own."""
    batch = () if members is None else (members,)
    x, kernel = normal(0, *batch, 2, 7, 6, 3), normal(1, *batch, window * window * 3, 4)

    def results(conv):
        def one(x, kernel):
            y, pull_back = jax.vjp(lambda *args: conv(*args, window, stride, padding), x, kernel)
            _, forward = jax.jvp(lambda x: conv(x, kernel, window, stride, padding), (x,), (jnp.cos(x),))
            return y, pull_back(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)), forward

        return jax.jit(one if members is None else jax.vmap(one))(x, kernel)

    chex.assert_trees_all_close(results(convolution), results(library), **ROUNDING)


@pytest.mark.parametrize(("window", "height", "width"), [(2, 7, 5), (3, 6, 10)])
def test_max_pool_is_the_library_s(window, height, width):
    x = normal(0, 2, height, width, 3)  # no equals among them, so one gradient is right

    def results(pool):
        y, pull_back = jax.vjp(pool, x)
        return y, pull_back(jnp.cos(y)), jax.jvp(pool, (x,), (jnp.sin(x),))[1]

    tile = (1, window, window, 1)
    reference = jax.jit(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, tile, tile, "VALID"))
    chex.assert_trees_all_equal(results(lambda x: max_pool(x, window)), results(reference))


def test_among_equals_the_first_gets_the_gradient():
    x = jnp.zeros((1, 2, 4, 1)).at[0, 1, 3, 0].set(-1.0)
    found = jax.vmap(jax.grad(lambda x: jnp.sum(max_pool(x) * jnp.array([2.0, 5.0]).reshape(1, 1, 2, 1))))(x[None])
    np.testing.assert_array_equal(found[0, 0, :, :, 0], [[2, 0, 5, 0], [0, 0, 0, 0]])


def test_group_norm_by_hand():
    x, scale, bias = normal(0, 2, 3, 4, 6), normal(1, 6), normal(2, 6)
    expected = np.asarray(x, np.float64).reshape(2, 12, 3, 2)  # 3 groups of adjacent channels
    expected = (expected - expected.mean(axis=(1, 3), keepdims=True)) / np.sqrt(
        expected.var(axis=(1, 3), keepdims=True) + 1e-5
    )
    layers = Layers({"norm": {"scale": scale, "bias": bias}}, {})
    found = layers.group_norm("norm", 100 + x, 3)  # a large mean must not cost the variance its digits
    affine = expected.reshape(x.shape) * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(found, affine, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(layers.inputs["norm"], expected.reshape(x.shape), rtol=1e-3, atol=1e-4)


def perceptron(params, x):
    """An MLP with layer normalisation in float64."""
    h = np.asarray(x, np.float64).reshape(len(x), -1)
    hidden = sum(name.startswith("norm") for name in params)
    for i in range(hidden):
        h = h @ params[f"dense_{i}"]["kernel"] + params[f"dense_{i}"]["bias"]
        h = (h - h.mean(axis=1, keepdims=True)) / np.sqrt(h.var(axis=1, keepdims=True) + 1e-5)
        h = np.maximum(h * params[f"norm_{i}"]["scale"] + params[f"norm_{i}"]["bias"], 0)
    return h @ params[f"dense_{hidden}"]["kernel"] + params[f"dense_{hidden}"]["bias"]


def test_layer_norm_by_hand():
    model, plain, x = mlp((5, 7), 3, layer_norm=True), mlp((5, 7), 3), normal(0, 4, 2, 3)
    params = model.init(KEY, x)
    chex.assert_trees_all_equal({name: params[name] for name in ("dense_0", "dense_1", "dense_2")}, plain.init(KEY, x))
    params = jax.tree.map(lambda leaf: leaf + 0.3 * normal(1, *leaf.shape), params)
    found, inputs = jax.jit(lambda params, x: model.tap(params, {}, x))(params, x)
    np.testing.assert_allclose(found, perceptron(jax.tree.map(np.asarray, params), x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(jax.jit(model.apply)(params, x), found)
    np.testing.assert_allclose(jnp.mean(inputs["norm_1"], axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(inputs["norm_1"], axis=1), 1, atol=1e-3)
    np.testing.assert_array_less(-1e-9, inputs["dense_2"])  # normalised before the ReLU, not after it


def test_dropout_keeps_the_expectation():
    h = jnp.array([[1.0, -2.0, 3.0]])
    keys = jax.random.split(KEY, 4000)
    found = np.asarray(jax.jit(jax.vmap(lambda key: dropped(key, h, jnp.float32(0.3))))(keys))[:, 0]
    kept = found != 0
    np.testing.assert_allclose(found[kept], np.broadcast_to(np.asarray(h[0]) / 0.7, found.shape)[kept], rtol=1e-6)
    np.testing.assert_allclose(kept.mean(axis=0), 0.7, atol=5 * (0.21 / 4000) ** 0.5)
    assert np.abs(np.corrcoef(kept.T.astype(float))[~np.eye(3, dtype=bool)]).max() < 5 / 4000**0.5
    np.testing.assert_array_equal(dropped(KEY, h, 0.0), h)


def test_only_training_steps_drop():
    """Inputs are ones and hidden units positive, and these go straight out: the logits show what was dropped."""
    x = jnp.ones((50, 4))
    params = {
        "dense_0": {"kernel": jnp.full((4, 3), 0.25), "bias": jnp.zeros((3,))},
        "dense_1": {"kernel": jnp.eye(3), "bias": jnp.zeros((3,))},
    }
    hidden, inputs = mlp((3,), 3, dropout=jnp.float32(0.5)), mlp((3,), 3, input_dropout=0.5)
    np.testing.assert_allclose(np.unique(hidden.train(KEY, params, x)), [0, 2], rtol=1e-6)
    np.testing.assert_allclose(np.unique(inputs.train(KEY, params, x)), [0, 0.5, 1, 1.5, 2], rtol=1e-6)
    assert (hidden.train(KEY, params, x) != hidden.train(jax.random.key(1), params, x)).any()
    for model in (hidden, inputs):
        np.testing.assert_array_equal(model.apply(params, x), mlp((3,), 3).apply(params, x))
        np.testing.assert_array_equal(model.tap(params, {}, x)[0], model.apply(params, x))
    learner, batch = train.Learner(hidden, optax.scale(-1.0)), Batch(x, jnp.zeros((50,), jnp.int32))
    state = train.init(learner, KEY, batch, params)
    losses = jax.jit(jax.vmap(lambda key: train.train_step(learner, key, state, batch)[1].loss))(jax.random.split(KEY))
    assert losses[0] != losses[1]


def test_rates_of_dropout_are_traced_and_none_is_none():
    assert mlp((3,), 3).train is None and Mlp().build(3).train is None
    configs = [Mlp(dropout=Dropout(rate=rate)) for rate in (0.1, 0.9)]
    assert jax.tree.structure(configs[0]) == jax.tree.structure(configs[1]) != jax.tree.structure(Mlp())
    params, x = Mlp().build(3).init(KEY, jnp.ones((20, 4))), jnp.ones((20, 4))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *configs)
    found = jax.jit(jax.vmap(lambda config: config.build(3).train(KEY, params, x)))(stacked)
    for config, one in zip(configs, found, strict=True):
        np.testing.assert_allclose(config.build(3).train(KEY, params, x), one, **ROUNDING)


class LinenCnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i, channels in enumerate((4, 6)):
            x = nn.max_pool(nn.relu(nn.Conv(channels, (3, 3), name=f"conv_{i}")(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(5, name="dense_0")(x.reshape(x.shape[0], -1)))
        return nn.Dense(3, name="dense_1")(x)


@pytest.mark.parametrize("implementation", ["patches", "library"])
def test_cnn_is_the_linen_module(implementation):
    model, x = cnn((4, 6), (5,), 3, convolution=implementation), normal(0, 2, 9, 10, 2)
    params = model.init(KEY, x)
    theirs = {
        name: {**layer, "kernel": layer["kernel"].reshape(3, 3, -1, layer["kernel"].shape[1])}
        if name.startswith("conv") else layer
        for name, layer in params.items()
    }  # fmt: skip
    expected = jax.jit(LinenCnn().apply)({"params": theirs}, x)
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), expected, **ROUNDING)


def correlate(x, kernel, window, stride):
    """SAME cross-correlation, position by position."""
    size = -(-x.shape[1] // stride)
    zeros = max((size - 1) * stride + window - x.shape[1], 0)
    x = np.pad(x, ((0, 0), *[(zeros // 2, zeros - zeros // 2)] * 2, (0, 0)))
    starts = [stride * i for i in range(size)]
    rows = [[x[:, i : i + window, j : j + window].reshape(len(x), -1) @ kernel for j in starts] for i in starts]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def resnet_reference(params, x):
    """The paper's network, with 2 groups, in float64."""

    def conv_norm(name, h, window, stride):
        h = correlate(h, params[name]["kernel"], window, stride) + params[name].get("bias", 0)
        norm = params.get(name.replace("conv", "norm"))
        if norm is None:
            return h
        groups = h.reshape(len(h), h.shape[1] * h.shape[2], 2, -1)
        mean, variance = (fn(groups, axis=(1, 3), keepdims=True) for fn in (np.mean, np.var))
        return ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(h.shape) * norm["scale"] + norm["bias"]

    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    h = np.maximum(conv_norm("stem_conv", np.asarray(x, np.float64), 3, 1), 0)
    for stage in range(4):
        for block in range(2):
            name, stride = f"stage_{stage}_block_{block}", 2 if stage > 0 and block == 0 else 1
            inner = np.maximum(conv_norm(f"{name}_conv_0", h, 3, stride), 0)
            shortcut = h if stride == 1 else conv_norm(f"{name}_shortcut_conv", h, 1, stride)
            h = np.maximum(conv_norm(f"{name}_conv_1", inner, 3, 1) + shortcut, 0)
    return h.mean(axis=(1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize("normalization", ["group", pytest.param("none", marks=pytest.mark.slow)])
def test_resnet_is_the_paper_s(normalization):
    model, x = resnet18(4, 3, normalization, 2), normal(0, 2, 9, 9, 2)
    shapes = jax.eval_shape(model.init, KEY, x)
    # Neither ones nor zeros anywhere, so that every parameter counts.
    params = {
        name: {leaf: np.float32(leaf == "scale") + 0.3 * normal(i, *shape.shape) for leaf, shape in layer.items()}
        for i, (name, layer) in enumerate(shapes.items())
    }
    apply = jax.jit(model.apply)
    found = apply(params, x)
    np.testing.assert_allclose(found, resnet_reference(params, x), rtol=1e-4, atol=1e-4)
    other = apply(params, x.at[1].add(1.0))  # an example's output depends on no other example
    np.testing.assert_array_equal(other[0], found[0])
    assert (other[1] != found[1]).all()


def test_resnet_sizes():
    """Base width 20 as GEM has it: 1.1 million parameters, the last of four stages 160 channels wide."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(resnet18(20, 100).init, KEY, images)
    kernels = [layer["kernel"] for layer in params.values() if "kernel" in layer]
    assert len(kernels) == 1 + 16 + 3 + 1  # stem, two a block, three shortcuts, head
    assert params["head"]["kernel"].shape == (160, 100)
    assert 1.09e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 1.11e6


@pytest.mark.parametrize(("name", "initialization"), [("cnn", "he"), ("resnet18", "uniform")])
def test_initial_weights(name, initialization):
    if name == "cnn":
        model = cnn((40, 50), (60,), 30, initialization)
    else:
        model = resnet18(20, 30, "none", initialization=initialization)
    params = jax.jit(model.init)(KEY, jnp.zeros((1, 8, 8, 3)))
    kernels = {name: np.asarray(layer["kernel"]) for name, layer in params.items() if "kernel" in layer}
    zero = {name for name, kernel in kernels.items() if not kernel.any()}
    blocks = {f"stage_{stage}_block_{block}_conv_1" for stage in range(4) for block in range(2)}
    assert zero == (blocks if name == "resnet18" else set())
    kernels = [kernel for name, kernel in kernels.items() if name not in zero]
    assert len({kernel.ravel()[0] for kernel in kernels}) == len(kernels)
    for kernel in kernels:
        d_in = len(kernel)
        if initialization == "uniform":
            assert 0.95 * d_in**-0.5 < np.abs(kernel).max() <= d_in**-0.5
            continue
        # Five standard errors of the second moment of a normal sample.
        np.testing.assert_allclose(np.mean(kernel**2) * d_in / 2, 1, atol=5 * (2 / kernel.size) ** 0.5)


@pytest.mark.parametrize("name", ["cnn", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_models_learn(name):
    """Which half of the image is bright."""
    x = np.random.default_rng(0).uniform(size=(32, 8, 8, 1)) * 0.5
    y = np.arange(32) % 2
    x[y == 1, :4] += 0.5
    batch = Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))
    model = cnn((4,), (8,), 2) if name == "cnn" else resnet18(4, 2, groups=1)
    learner = train.Learner(model, optax.sgd(0.1))

    def run(state):
        return lax.scan(lambda state, _: train.train_step(learner, KEY, state, batch), state, None, length=60)

    _, metrics = jax.jit(run)(train.init(learner, KEY, batch))
    assert metrics.loss[-1] < 0.3 < metrics.loss[0]


def test_by_name():
    for name, kind in MODELS.items():
        if kind in (Decoder, Encoder):  # read text, see test_decoder.py and test_encoder.py
            continue
        model = kind().build(7)
        images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
        params = jax.eval_shape(model.init, KEY, images)
        assert isinstance(model, Model) and jax.eval_shape(model.apply, params, images).shape == (2, 7), name


def test_global_average_pool():
    np.testing.assert_allclose(global_average_pool(jnp.arange(12.0).reshape(1, 2, 3, 2)), [[5, 6]])


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"unknown convolution 'patch'; known: library, patches\. Did"):
        cnn((4,), (), 2, convolution="patch")
    with pytest.raises(UserError, match="unknown initialization 'He'"):
        mlp((4,), 2, "He")
    with pytest.raises(UserError, match="unknown normalization 'batch'; known: group, none"):
        resnet18(20, 2, "batch")
    with pytest.raises(UserError, match="resnet18 width 20 cannot be split into 8 groups of channels"):
        resnet18(20, 2, groups=8)
    with pytest.raises(UserError, match=r"model cnn expects images \[H, W, C\] of at least 4 x 4 pixels.*\[64\]"):
        cnn((4, 4), (), 2).init(KEY, jnp.zeros((1, 64)))
    with pytest.raises(UserError, match=r"at least 8 x 8 pixels, was given examples of shape \[7, 9, 1\]"):
        cnn((4, 4, 4), (), 2).init(KEY, jnp.zeros((1, 7, 9, 1)))

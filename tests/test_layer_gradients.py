"""The Fisher of models with more than dense layers, against whole gradients of single examples."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import layer_gradients, per_example, program
from cl_jax.batch import Batch
from cl_jax.data import split_source
from cl_jax.experiment import Mlp, Run
from cl_jax.fisher import KINDS, diagonal_fisher
from cl_jax.losses import log_probabilities
from cl_jax.methods.ewc import Ewc
from cl_jax.model import Model
from cl_jax.models.cnn import cnn
from cl_jax.models.mlp import mlp
from cl_jax.models.resnet import resnet18
from cl_jax.sources import load
from cl_jax.tasks import Split

KEY = jax.random.key(0)
NUM, OUTPUTS = 7, 3
VALID = jnp.array([1, 1, 0, 1, 1, 1, 1], bool)
OPTIONS = {kind: {} for kind in KINDS} | {"sampled": dict(samples=2), "batched": dict(batch_size=4)}
# float32 sums of a few hundred terms of both signs against float64 sums of float32 gradients.
ROUNDING = dict(rtol=1e-5, atol=2e-7)


def sequence_model() -> Model:
    """Every way to use a parameter that `Model.tap` knows, and one that it leaves out."""

    def init(key, x):
        shapes = {
            "token": {"embedding": (5, 4)}, "position": {"bias": (3, 4)}, "wide": {"kernel": (4, 6), "bias": (6,)},
            "norm": {"scale": (6,), "bias": (6,)}, "free": {"weights": (6,)}, "narrow": {"kernel": (6, 4)},
            "head": {"kernel": (4, OUTPUTS), "bias": (OUTPUTS,)},
        }  # fmt: skip
        leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda node: isinstance(node, tuple))
        keys = jax.random.split(key, len(leaves))
        return tree.unflatten([jax.random.normal(k, shape) for k, shape in zip(keys, leaves, strict=True)])

    def tap(params, probes, x):
        inputs = {}

        def layer(name, received, output):
            inputs[name] = received
            return output + probes[name] if probes else output

        h = layer("token", x, params["token"]["embedding"][x])
        h = layer("position", h, h + params["position"]["bias"][None])
        h = jnp.tanh(layer("wide", h, h @ params["wide"]["kernel"] + params["wide"]["bias"][None, None]))
        h = layer("norm", h, h * params["norm"]["scale"][None, None] + params["norm"]["bias"][None, None])
        h = h * params["free"]["weights"][None, None]
        h = jnp.mean(jnp.tanh(layer("narrow", h, h @ params["narrow"]["kernel"])), axis=1)
        return layer("head", h, h @ params["head"]["kernel"] + params["head"]["bias"][None]), inputs

    return Model(init, lambda params, x: tap(params, {}, x)[0], tap)


MODELS = {
    "sequence": sequence_model(),
    "cnn": cnn((3, 2), (4,), OUTPUTS),
    "library": cnn((2,), (), OUTPUTS, convolution="library"),
    "resnet": resnet18(2, OUTPUTS, groups=2),
    "normalised": mlp((4, 3), OUTPUTS, layer_norm=True),
}


def data(name: str) -> Batch:
    generator = np.random.default_rng(0)
    y = generator.integers(0, OUTPUTS, NUM)
    x = generator.integers(0, 5, (NUM, 3)) if name == "sequence" else generator.normal(size=(NUM, 5, 4, 2))
    active = np.ones((NUM, OUTPUTS), bool)
    active[np.arange(NUM), (y + 1) % OUTPUTS] = np.arange(NUM) % 3 != 1
    active[5, y[5]] = False  # its true label competes in no softmax, and has no weights to move
    return Batch(
        jnp.asarray(x, jnp.int32 if name == "sequence" else jnp.float32), jnp.asarray(y, jnp.int32), jnp.asarray(active)
    )


@functools.cache
def case(name: str):
    """Parameters, data, and of every example: p [N, C] and the gradients of each log p [N, C, ...], in float64."""
    model, batch = MODELS[name], data(name)
    params = jax.tree.map(lambda leaf: 1.5 * leaf, jax.jit(model.init)(jax.random.key(1), batch.x))

    def log_p(params, x, active):
        return log_probabilities(model.apply(params, x[None]), active[None])[0]

    gradients = jax.jit(jax.vmap(jax.jacrev(log_p), in_axes=(None, 0, 0)))(params, batch.x, batch.active)
    p = jnp.exp(jax.vmap(log_p, in_axes=(None, 0, 0))(params, batch.x, batch.active))
    return params, batch, *jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (p, gradients))


def reference(name: str, kind: str):
    _, batch, p, gradients = case(name)
    rows, y = np.flatnonzero(VALID), np.asarray(batch.y)
    if kind == "batched":
        groups = [rows[rows < 4], rows[rows >= 4]]
        return jax.tree.map(lambda g: np.mean([g[r, y[r]].mean(axis=0) ** 2 for r in groups], axis=0), gradients)
    log_p = jnp.log(jnp.asarray(p, jnp.float32))
    draws = [jax.random.categorical(jax.random.fold_in(KEY, i), log_p[i], shape=(2,)) for i in range(NUM)]
    q = {
        "exact": p,
        "sampled": np.mean(np.eye(OUTPUTS)[np.array(draws)], axis=1),
        "empirical": np.eye(OUTPUTS)[y],
        "argmax": np.eye(OUTPUTS)[np.argmax(p, axis=1)],
    }[kind]
    return jax.tree.map(lambda g: np.einsum("nc,nc...->...", q[rows], g[rows] ** 2) / len(rows), gradients)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("sequence", kind) for kind in KINDS],
        ("cnn", "exact"),
        ("library", "empirical"),
        ("normalised", "exact"),
        pytest.param("resnet", "exact", marks=pytest.mark.slow),
    ],
)
def test_equals_whole_gradients(name, kind):
    params, batch, *_ = case(name)
    options = dict(valid=VALID, kind=kind, **OPTIONS[kind])
    found = jax.jit(lambda params: diagonal_fisher(KEY, MODELS[name], params, batch, **options))(params)
    chex.assert_trees_all_close(found, reference(name, kind), **ROUNDING)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, params)
    if kind == "exact":
        assert min(np.max(leaf) for leaf in jax.tree.leaves(found)) > 1e-4


def test_members_side_by_side_and_chunks():
    model, (params, batch, *_) = MODELS["sequence"], case("sequence")
    members = [params, jax.tree.map(lambda leaf: 0.5 * leaf, params)]
    run = functools.partial(diagonal_fisher, KEY, model, examples=batch, valid=VALID)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    found = jax.jit(jax.vmap(functools.partial(run, chunk=2)))(stacked)
    one_by_one = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(jax.jit(run)(params) for params in members))
    chex.assert_trees_all_close(found, one_by_one, **ROUNDING)


@pytest.mark.parametrize("num_active", [2, 10])
def test_number_of_active_outputs_saves_passes_alone(num_active):
    model = MODELS["library"]
    params, batch, *_ = case("library")
    if num_active == 2:
        assert np.asarray(batch.active).sum(axis=1).max() == 3  # so that the mask below is the one that allows it
        batch = batch._replace(active=jnp.arange(OUTPUTS)[None] != ((batch.y + 1) % OUTPUTS)[:, None])

    def run(**options):
        return jax.jit(lambda params: diagonal_fisher(KEY, model, params, batch, **options)).trace(params)

    few, all_ = run(num_active=num_active), run()
    chex.assert_trees_all_close(*(traced.lower().compile()(params) for traced in (few, all_)), **ROUNDING)
    assert re.search(r"length=2\b", str(all_.jaxpr))  # of three outputs two passes
    assert bool(re.search(r"length=2\b", str(few.jaxpr))) == (num_active > 2)


def test_saturated_predictions_have_finite_curvature():
    """p of 1 and p of 0, and probabilities that vanish one after another."""
    model = mlp((), 4)
    params = {"dense_0": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}
    x = jnp.array([[0.0, -500, -500, -500], [-500, -500, -500, 0], [0, -20, -40, -60], [-60, -40, -20, 0]])
    p = np.exp(np.asarray(x, np.float64))
    p /= p.sum(axis=1, keepdims=True)
    others = np.stack([np.delete(p, c, axis=1).sum(axis=1) for c in range(4)], axis=1)  # 1 - p without its rounding
    expected = np.mean(p * others, axis=0)
    for num_active in (None, 3):
        found = diagonal_fisher(KEY, model, params, Batch(x, jnp.zeros(4, jnp.int32)), num_active=num_active)
        np.testing.assert_allclose(found["dense_0"]["bias"], expected, rtol=1e-5)


def test_chunks_go_by_memory(monkeypatch):
    """8 MiB on a CPU, 64 elsewhere; one by one on a CPU where something is not tapped."""

    def sizes(model, *shape):
        x = jax.ShapeDtypeStruct((300, *shape), jnp.int32 if model is MODELS["sequence"] else jnp.float32)
        params = jax.eval_shape(model.init, KEY, x)
        return layer_gradients.chunk_sizes(model, params, Batch(x, x), lambda examples: examples)

    # Inputs and three times the outputs: 784 + 400 + 400 + 3 * 810 floats.
    assert sizes(mlp((400, 400), 10), 784) == {"cpu": 256, "default": 256}
    assert sizes(mlp((2000, 2000), 10), 784) == {"cpu": 2**21 // (784 + 4000 + 3 * 4010), "default": 256}
    plain = Model(mlp((400, 400), 10).init, mlp((400, 400), 10).apply)
    assert sizes(plain, 784) == {"cpu": 1, "default": 2**24 // (2 * (784 * 400 + 400 * 400 + 4000 + 810))}
    assert sizes(MODELS["sequence"], 3) == {"cpu": 1, "default": 256}
    positions, products = 28 * 28 * (9 + 3 * 32) + 14 * 14 * (288 + 3 * 64) + 3136 + 128 + 3 * 138, 2 * 288 * 64
    assert sizes(cnn((32, 64), (128,), 10), 28, 28, 1)["cpu"] == 2**21 // (positions + products)
    params, batch, *_ = case("cnn")
    monkeypatch.setattr(per_example, "CHUNK_BYTES", {"cpu": 2**11, "default": 2**26})
    assert layer_gradients.chunk_sizes(MODELS["cnn"], params, batch, lambda examples: examples)["cpu"] < 4
    found = jax.jit(lambda params: diagonal_fisher(KEY, MODELS["cnn"], params, batch, valid=VALID))(params)
    chex.assert_trees_all_close(found, reference("cnn", "exact"), **ROUNDING)


@pytest.mark.parametrize(("scenario", "num_active"), [("task", 2), ("class", 10), ("domain", 2)])
def test_a_sweep_s_methods_know_how_many_outputs_compete(scenario, num_active, monkeypatch):
    seen = []

    def fisher(key, model, params, examples, **options):
        seen.append(options["num_active"])
        return params

    monkeypatch.setattr("cl_jax.methods.ewc.diagonal_fisher", fisher)
    run = Run(stream=Split(num_tasks=5), scenario=scenario, model=Mlp(hidden=()), methods={"ewc": Ewc()})
    data = split_source(load("digits"), 0.1)

    def boundary(seed):
        world = program.make_world(program.world_of(run), seed, data)
        state = program.init(run, seed, world.curriculum, world.params, data)
        return program.end_task(run, seed, world.curriculum, state, data, jnp.int32(0))

    jax.eval_shape(boundary, jnp.int32(0))
    assert seen == [num_active]

"""One set of laws over a table of all methods and adapters."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.adapters.adapter import Adapter
from cl_jax.adapters.freeze import freeze
from cl_jax.adapters.lora import lora
from cl_jax.adapters.olora import olora
from cl_jax.adapters.packnet import packnet
from cl_jax.adapters.task_lora import task_lora
from cl_jax.adapters.xdg import xdg
from cl_jax.batch import Batch, Task
from cl_jax.method import Method, chain, stream_key
from cl_jax.methods.agem import agem
from cl_jax.methods.anchoring import anchoring
from cl_jax.methods.average import average
from cl_jax.methods.continual_backprop import continual_backprop
from cl_jax.methods.der import der
from cl_jax.methods.er_ace import er_ace
from cl_jax.methods.ewc import ewc
from cl_jax.methods.gdumb import gdumb
from cl_jax.methods.gem import gem
from cl_jax.methods.generative_replay import generative_replay
from cl_jax.methods.gpm import gpm
from cl_jax.methods.icarl import icarl
from cl_jax.methods.interpolation import interpolation
from cl_jax.methods.kl_anchor import kl_anchor
from cl_jax.methods.l2 import l2
from cl_jax.methods.l2_init import l2_init
from cl_jax.methods.laplace import laplace
from cl_jax.methods.lwf import lwf
from cl_jax.methods.mas import mas
from cl_jax.methods.mir import mir
from cl_jax.methods.mixture import mixture
from cl_jax.methods.ogd import ogd
from cl_jax.methods.replay import replay
from cl_jax.methods.rwalk import rwalk
from cl_jax.methods.shrink_perturb import shrink_perturb
from cl_jax.methods.si import si
from cl_jax.models.mlp import mlp

MODEL = mlp((6,), 3)
EXAMPLE = jnp.zeros((1, 5))
OPTIMIZER = optax.chain(optax.trace(0.9), optax.scale(-0.05))
METHODS: dict[str, Any] = {
    "finetune": lambda strength: Method(),
    "l2": lambda strength: l2(strength),
    "ewc": lambda strength: ewc(MODEL, strength),
    "ewc-online": lambda strength: ewc(MODEL, strength, anchors="online", kind="empirical"),
    "ewc-proximal": lambda strength: ewc(MODEL, strength, proximal=True),
    "ewc-sampled": lambda strength: ewc(MODEL, strength, kind="sampled", samples=3, num_examples=10),
    "si": lambda strength: si(strength),
    "mas": lambda strength: mas(MODEL, strength),
    "rwalk": lambda strength: rwalk(MODEL, strength, interval=4),
    "laplace": lambda strength: laplace(MODEL, strength),
    "replay": lambda strength: replay(20),
    "replay-boundary": lambda strength: replay(20, insert="boundary", weighting="balanced"),
    "gdumb": lambda strength: gdumb(MODEL, 10, num_steps=4),
    "generative-replay": lambda strength: generative_replay(MODEL, hidden=(4,), num_latent=2, labels="soft"),
    "icarl": lambda strength: icarl(MODEL, 12),
    "agem": lambda strength: agem(MODEL, 2, 20, batch_size=8, policy="class_ring", num_classes=3),
    "agem-shared": lambda strength: agem(MODEL, 2, 20, batch_size=8, insert="shared", policy="reservoir"),
    "gem": lambda strength: gem(MODEL, 2, 20, margin=0.1 * strength),
    "ogd": lambda strength: ogd(MODEL, 2, 4),
    "gpm": lambda strength: gpm(MODEL, threshold=strength / (1.0 + strength), num_examples=20),
    "ewc+replay": lambda strength: chain(ewc=ewc(MODEL, strength), replay=replay(20)),
    "lwf": lambda strength: lwf(MODEL, strength),
    "lwf-balanced": lambda strength: lwf(MODEL, strength, convention="van_de_ven_2019"),
    "anchoring": lambda strength: anchoring(MODEL, 20, strength),
    "kl-anchor": lambda strength: kl_anchor(MODEL, strength),
    "kl-anchor-old": lambda strength: kl_anchor(MODEL, strength, inputs="old", anchor="previous", capacity=20),
    "mixture": lambda strength: mixture(0.25, 20),
    "derpp": lambda strength: der(20, 3, 0.1 * strength, 0.5, batch_size=4),
    "er_ace": lambda strength: er_ace(20, 3),
    "mir": lambda strength: mir(MODEL, 20, 0.05, candidates=8, batch_size=4),
    "average": lambda strength: average(0.9),
    "interpolation": lambda strength: interpolation(0.5),
    "interpolation-continued": lambda strength: interpolation(0.5, continue_from=True),
    "l2-init": lambda strength: l2_init(strength),
    "shrink-perturb": lambda strength: shrink_perturb(
        1.0 / (1.0 + strength), 0.01 * strength, initial=lambda key: MODEL.init(key, EXAMPLE)
    ),
    "shrink-perturb-step": lambda strength: shrink_perturb(1.0 - 0.01 * strength, 0.001 * strength, every="step"),
    "continual-backprop": lambda strength: continual_backprop(MODEL, EXAMPLE, 0.05 * strength, maturity=2.0),
}
# A scale alpha / rank of 1: the default of 8 with this learning rate and momentum really diverges.
ADAPTERS = {
    "full": Adapter(),
    "lora": lora(2, 2.0),
    "lora-masked": lora(2, 2.0, used=1.0),
    "lora-merged": lora(2, 2.0, merge=True, first_task="full"),
    "freeze": freeze("dense_0/"),
    "xdg": xdg(2, 0.5),
    "packnet": packnet(2, 0.5),
    "task-lora": task_lora(2, 2, 2.0),
    "olora": olora(2, 2, 0.5, 2.0),
}
PENALTIES = [
    "l2",
    "ewc",
    "ewc-online",
    "ewc-proximal",
    "ewc-sampled",
    "si",
    "mas",
    "rwalk",
    "laplace",
    "lwf",
    "anchoring",
    "kl-anchor",
    "kl-anchor-old",
]
# Strength 0 is fine-tuning, and what more of it does shows from the first step on or not in how far the weights move.
OTHERS = ["l2-init", "shrink-perturb", "shrink-perturb-step", "continual-backprop"]
COMBINATIONS = [
    ("l2", "lora"),
    ("ewc", "freeze"),
    ("ewc+replay", "lora-merged"),
    ("si", "xdg"),
    ("finetune", "packnet"),
    ("l2", "task-lora"),
    ("replay", "olora"),
]
TABLE = [(name, "full") for name in METHODS] + COMBINATIONS
over_the_table = pytest.mark.parametrize(("name", "adapter"), TABLE, ids=["/".join(row) for row in TABLE])
# Compiling is nearly all of the time here, and the programs are tiny: half the time without optimization.
compiled = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
# The members of one packing. Strengths that a float32 gradient step survives.
STRENGTHS, SEEDS = jnp.array([0.0, 1.0, 10.0]), jnp.array([0, 0, 1], jnp.int32)
# Batched and single, fused and single operations round differently, and momentum carries it on.
ROUNDING = dict(rtol=2e-4, atol=2e-5)


def examples() -> Batch:
    """Three tasks of 40 rows, of which the last 3 are padding."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(3, 40, 5)), jnp.float32)
    return Batch(x=x, y=jnp.asarray(generator.integers(0, 3, (3, 40)), jnp.int32))


def first_of(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def learner_of(name: str, adapter: str, strength: Any) -> train.Learner:
    return train.Learner(MODEL, OPTIMIZER, METHODS[name](strength), ADAPTERS[adapter])


def life(learner: train.Learner, seed: Any, steps: int = 10, tasks: int = 2) -> tuple[train.TrainState, Any]:
    """Two tasks; the last state, and what trained as it was at each boundary [tasks, ...]."""
    key = jax.random.key(seed)
    start = train.init(learner, stream_key(key, "init"), first_of(examples()))

    def one_task(state: train.TrainState, item: tuple[jax.Array, Batch]) -> tuple[train.TrainState, Any]:
        task, batch = item
        key_steps = jax.random.fold_in(stream_key(key, "steps"), task)

        def one(state: train.TrainState, step: jax.Array) -> tuple[train.TrainState, None]:
            rows = (step * 8 + jnp.arange(8, dtype=jnp.int32)) % 37
            incoming = jax.tree.map(lambda leaf: leaf[rows], batch)
            state = train.during(learner, state, task, step, steps)
            return train.train_step(learner, jax.random.fold_in(key_steps, step), state, incoming, task=task)[0], None

        state, _ = jax.lax.scan(one, state, jnp.arange(steps, dtype=jnp.int32))
        finished = Task(task, batch, jnp.arange(40) < 37)
        state = train.end_task(learner, jax.random.fold_in(stream_key(key, "boundary"), task), state, finished)
        return state, train.effective(learner, state, task)

    several = jax.tree.map(lambda leaf: leaf[:tasks], examples())
    return jax.lax.scan(one_task, start, (jnp.arange(tasks, dtype=jnp.int32), several))


@functools.cache
def alone(name: str, adapter: str = "full") -> Any:
    """(strength, seed) -> life, compiled once for all laws."""
    return compiled(lambda strength, seed: life(learner_of(name, adapter, strength), seed))


@functools.cache
def packed(name: str, adapter: str = "full") -> Any:
    return compiled(jax.vmap(lambda strength, seed: life(learner_of(name, adapter, strength), seed)))


def run(name: str, adapter: str = "full", strength: float = 1.0, seed: int = 0) -> tuple[train.TrainState, Any]:
    return alone(name, adapter)(jnp.float32(strength), jnp.int32(seed))


def movement(boundaries: Any) -> float:
    """How far the second task took the weights."""
    return sum(float(np.sum((np.asarray(leaf[1]) - np.asarray(leaf[0])) ** 2)) for leaf in jax.tree.leaves(boundaries))


@over_the_table
def test_vmapped_is_looped(name: str, adapter: str) -> None:
    together = packed(name, adapter)(STRENGTHS, SEEDS)
    for i in range(3):
        one = alone(name, adapter)(STRENGTHS[i], SEEDS[i])
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), one, **ROUNDING)
    assert packed(name, adapter)._cache_size() == alone(name, adapter)._cache_size() == 1  # values are traced


@over_the_table
def test_members_train_and_stay_finite(name: str, adapter: str) -> None:
    state, boundaries = run(name, adapter)
    assert not bool(state.diverged) and movement(boundaries) > 1e-6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@over_the_table
def test_neighbours_do_not_notice_a_diverging_member(name: str, adapter: str) -> None:
    """Bitwise, at one packing."""
    calm = packed(name, adapter)(STRENGTHS, SEEDS)
    wild = packed(name, adapter)(STRENGTHS.at[1].set(1e20), SEEDS)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf[np.array([0, 2])], tree) for tree in (calm, wild)))


@over_the_table
def test_structure_shapes_and_dtypes_are_stable(name: str, adapter: str) -> None:
    def states(key: jax.Array) -> list[train.TrainState]:
        learner, batch = learner_of(name, adapter, jnp.float32(1.0)), first_of(examples())
        start = train.init(learner, key, batch)
        after, _ = train.train_step(learner, key, train.during(learner, start, 0, 7, 10), batch)
        return [start, after, train.end_task(learner, key, after, Task(jnp.int32(0), batch, jnp.ones(40, bool)))]

    first, *others = jax.eval_shape(states, jax.random.key(0))
    for other in others:
        assert jax.tree.structure(first) == jax.tree.structure(other)
        assert jax.tree.leaves(first) == jax.tree.leaves(other)


@over_the_table
def test_no_key_is_used_twice(name: str, adapter: str) -> None:
    with jax.debug_key_reuse(True):
        jax.jit(lambda strength, seed: life(learner_of(name, adapter, strength), seed)).trace(1.0, 0)


def test_a_key_used_twice_would_be_found() -> None:
    twice = Method(after_step=lambda key, state, info: (jax.random.normal(key), jax.random.bits(key)))
    learner = train.Learner(
        MODEL, OPTIMIZER, twice._replace(init=lambda key, params, batch: twice.after_step(key, (), None))
    )
    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda seed: life(learner, seed)).trace(0)


@pytest.mark.parametrize("name", [*PENALTIES, *OTHERS])
def test_strength_zero_is_fine_tuning(name: str) -> None:
    for zero, free in zip(*(jax.tree.leaves(run(n, strength=0.0)[1]) for n in (name, "finetune")), strict=True):
        np.testing.assert_allclose(zero, free, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PENALTIES)
def test_strength_holds_the_weights(name: str) -> None:
    """More strength, less movement after the first boundary; none of it before."""
    free, some, more = (run(name, strength=strength)[1] for strength in (0.0, 1.0, 10.0))
    assert movement(more) < movement(some) < movement(free)
    chex.assert_trees_all_equal(first_of(more), first_of(free))


def test_an_identity_member_changes_nothing() -> None:
    """Bitwise: no value, and no random number of another member."""

    def chained(strength: float, **more: Method) -> Any:
        method = chain(it=METHODS["replay"](strength), **more)
        return life(train.Learner(MODEL, OPTIMIZER, method), 0)[1]

    with_identity = compiled(functools.partial(chained, nothing=Method()))(1.0)
    chex.assert_trees_all_equal(with_identity, compiled(chained)(1.0))


@pytest.mark.parametrize(
    ("name", "adapter"),
    [("l2", "lora"), pytest.param("ewc+replay", "lora-merged", marks=pytest.mark.slow)],  # one operation at a time
)
def test_jit_is_no_jit(name: str, adapter: str) -> None:
    learner, batch, key = learner_of(name, adapter, 1.0), first_of(examples()), jax.random.key(0)
    state, _ = run(name, adapter)

    def step(state: train.TrainState) -> Any:
        return train.train_step(learner, key, state, batch, task=1)

    with jax.disable_jit():
        slow = step(state)
    chex.assert_trees_all_close(compiled(step)(state), slow, **ROUNDING)


def test_proximal_step_does_not_diverge() -> None:
    state, boundaries = run("ewc-proximal", strength=1e13)
    assert not bool(state.diverged) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(boundaries))


def test_freeze_holds_its_leaves_bitwise() -> None:
    _, boundaries = run("ewc", "freeze")
    np.testing.assert_array_equal(boundaries["dense_0"]["kernel"][1], boundaries["dense_0"]["kernel"][0])
    assert (boundaries["dense_1"]["kernel"][1] != boundaries["dense_1"]["kernel"][0]).any()


def test_one_quadratic_equals_the_list_of_springs() -> None:
    """After three boundaries EWC's penalty is the sum over tasks of its own springs, value and gradient."""
    method, several = ewc(MODEL, 7.0, kind="empirical"), examples()
    key, params = jax.random.key(0), MODEL.init(jax.random.key(0), several.x[0])
    state, springs = method.init(key, params, first_of(several)), []
    end_task = compiled(method.end_task)
    for number in range(3):
        params = jax.tree.map(lambda leaf, number=number: leaf + 0.1 * (number + 1), params)
        batch = jax.tree.map(lambda leaf, number=number: leaf[number], several)
        finished = Task(jnp.int32(number), batch, jnp.ones((40,), bool))
        springs.append((end_task(key, method.init(key, params, batch), params, finished).fisher, params))
        state = end_task(key, state, params, finished)
    probe = jax.tree.map(lambda leaf: leaf - 0.37, params)

    def listed(p: Any) -> jax.Array:
        terms = [
            jnp.sum(f * (v - a) ** 2)
            for fisher, anchor in springs
            for v, f, a in zip(jax.tree.leaves(p), jax.tree.leaves(fisher), jax.tree.leaves(anchor), strict=True)
        ]
        return 3.5 * jnp.sum(jnp.stack(terms))

    value, gradient = compiled(jax.value_and_grad(lambda p: method.penalty(state, p, first_of(several))))(probe)
    expected, expected_gradient = compiled(jax.value_and_grad(listed))(probe)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    chex.assert_trees_all_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-3


@over_the_table
def test_what_is_evaluated_is_of_the_parameters_form(name: str, adapter: str) -> None:
    def both(key: jax.Array) -> tuple[Any, Any]:
        learner = learner_of(name, adapter, jnp.float32(1.0))
        state = train.init(learner, key, first_of(examples()))
        return train.evaluated(learner, state), train.effective(learner, state)

    chex.assert_trees_all_equal_shapes_and_dtypes(*jax.eval_shape(both, jax.random.key(0)))

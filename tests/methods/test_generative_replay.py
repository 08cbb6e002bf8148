"""Generative replay: what is mixed in, with which weights and labels, and what the generator learns from."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import vae
from cl_jax.batch import Batch, Reference, whole_task
from cl_jax.errors import UserError
from cl_jax.losses import task_loss, weighted_loss
from cl_jax.method import Method, StepInfo, chain
from cl_jax.methods.generative_replay import GenerativeReplayState, generative_replay
from cl_jax.methods.replay import replay
from cl_jax.models.mlp import mlp

KEY = jax.random.key(0)
MODEL = mlp((8,), 6)
SMALL = dict(hidden=(7,), num_latent=3)
ROUNDING = dict(rtol=2e-5, atol=1e-6)


def parameters(seed=0):
    return MODEL.init(jax.random.key(seed), jnp.zeros((1, 2, 3)))


def batch_of(classes, num=4, active=None, seed=0) -> Batch:
    generator = np.random.default_rng(seed)
    x = jnp.asarray(generator.random((num, 2, 3)), jnp.float32)
    outputs = None if active is None else jnp.asarray(np.isin(np.arange(6), list(active)))
    y = jnp.asarray(generator.permutation(np.resize(classes, num)), jnp.int32)
    return Batch(x, y, None if outputs is None else jnp.broadcast_to(outputs, (num, 6)))


@functools.cache
def small(**more) -> Method:
    """Compiled once for all tests that ask for the same."""
    return compiled(generative_replay(MODEL, **SMALL, **{"batch_size": 50, **more}))


def compiled(method: Method) -> Method:
    slots = {name: jax.jit(getattr(method, name)) for name in ("draw", "loss", "after_step", "end_task")}
    return method._replace(**slots)


def info_of(batch: Batch) -> StepInfo:
    wrong = jax.tree.map(jnp.zeros_like, batch)  # what was trained on is not what the generator learns from
    return StepInfo(batch, wrong, parameters(), parameters(), parameters(), jnp.zeros((0, 6)))


def after_tasks(method: Method, *batches: Batch) -> GenerativeReplayState:
    """After one step of each task and its boundary, at which the classifier has the weights of seed 1, 2, ..."""
    state = method.init(KEY, parameters(), batches[0])
    for number, batch in enumerate(batches):
        state = method.after_step(jax.random.fold_in(KEY, number), state, info_of(batch))
        state = method.end_task(KEY, state, parameters(number + 1), whole_task(number, batch))
    return state


@pytest.mark.parametrize(("labels", "head_size"), [("hard", None), ("soft", 2)])
def test_the_first_task_is_fine_tuning(labels, head_size):
    method, batch = small(labels=labels, head_size=head_size), batch_of([2, 3])
    batch = batch._replace(active=jnp.broadcast_to(jnp.arange(6) // 2 == 1, (4, 6)))
    state, params = method.init(KEY, parameters(), batch), parameters()

    def total(params):
        drawn = method.draw(KEY, state, params, batch)
        logits = MODEL.apply(params, drawn.x)
        return weighted_loss(logits, drawn) + method.loss(state, logits, drawn)

    found = jax.jit(jax.value_and_grad(total))(params)
    expected = jax.value_and_grad(lambda p: task_loss(MODEL, p, batch))(params)
    chex.assert_trees_all_close(found, expected, **ROUNDING)


@pytest.mark.parametrize(("finished", "current"), [(1, 1 / 2), (2, 1 / 3)])
def test_later_tasks_mix_in_what_the_old_generator_makes_and_the_old_classifier_says(finished, current):
    method = small()
    tasks = [batch_of([0, 1], active=[0, 1]), batch_of([2, 3], active=[0, 1, 2, 3]), batch_of([4, 5], active=range(6))]
    state, batch = after_tasks(method, *tasks[:finished]), tasks[finished]
    drawn = method.draw(KEY, state, parameters(9), batch)
    np.testing.assert_allclose(drawn.weight, [current / 4] * 4 + [(1 - current) / 50] * 50, **ROUNDING)
    np.testing.assert_array_equal(drawn.x[:4], batch.x)
    made = np.asarray(drawn.x[4:])
    assert made.shape == (50, 2, 3) and made.min() > 0 and made.max() < 1
    assert len(np.unique(made.reshape(50, -1), axis=0)) == 50
    old = np.asarray(MODEL.apply(parameters(finished), made))[:, : 2 * finished]
    np.testing.assert_array_equal(drawn.y[4:], old.argmax(axis=1))
    assert drawn.active[4:].tolist() == [[c < 2 * finished + 2 for c in range(6)]] * 50
    assert drawn.reference is None and drawn.extra is None


def test_generator_and_classifier_are_frozen_at_the_boundary():
    method, batch = small(), batch_of([0, 1])
    start = method.init(KEY, parameters(), batch)
    stepped = method.after_step(KEY, start, info_of(batch))
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (start.generator, stepped.generator)), strict=True))
    chex.assert_trees_all_equal(stepped.old_decoder, start.generator["decoder"])
    assert stepped.learned.tolist() == [False] * 6 and stepped.met.tolist() == [True, True] + [False] * 4
    ended = method.end_task(KEY, stepped, parameters(1), whole_task(0, batch))
    chex.assert_trees_all_equal(ended.old_decoder, stepped.generator["decoder"])
    chex.assert_trees_all_equal(ended.old_classifier, parameters(1))
    again = method.after_step(KEY, ended, info_of(batch_of([2, 3])))
    chex.assert_trees_all_equal((again.old_decoder, again.old_classifier), (ended.old_decoder, parameters(1)))
    assert again.learned.tolist() == [True, True] + [False] * 4


def test_the_generator_learns_from_the_incoming_and_later_from_its_former_self():
    method, batch = small(), batch_of([0, 1])
    other = jax.tree.map(lambda leaf: leaf + 1.0, method.init(KEY, parameters(), batch).old_decoder)
    for finished, learns_from_old in ((0, False), (1, True)):
        state = method.init(KEY, parameters(), batch)._replace(tasks_finished=jnp.int32(finished))
        one, two = (method.after_step(KEY, s, info_of(batch)) for s in (state, state._replace(old_decoder=other)))
        differ = any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (one.moments, two.moments)), strict=True))
        assert differ == learns_from_old


@pytest.mark.slow
def test_the_bound_falls() -> None:
    batch = batch_of([0, 1])
    fast = small(learning_rate=0.01)
    state, step = fast.init(KEY, parameters(), batch), fast.after_step
    model, x = vae.vae(6, **SMALL), batch.x.reshape(4, 6)
    noise = jax.random.normal(KEY, (4, 3))
    before = vae.negative_elbo(model, state.generator, noise, x).mean()
    for i in range(150):
        state = step(jax.random.fold_in(KEY, i), state, info_of(batch))
    assert vae.negative_elbo(model, state.generator, noise, x).mean() < before - 0.3


def test_the_share_of_the_incoming_in_what_the_generator_learns():
    """The gradient is linear in the weights, and Adam's first moment is a tenth of it."""

    def gradient(finished, batch):
        state = method.init(KEY, parameters(), batch)._replace(tasks_finished=jnp.int32(finished))
        return jax.tree.leaves(method.after_step(KEY, state, info_of(batch)).moments.mu)

    method, batch = small(), batch_of([0, 1])
    incoming, second, third = (gradient(t, batch) for t in range(3))  # g, (g + h) / 2, (g + 2 h) / 3
    for g, two, three in zip(incoming, second, third, strict=True):
        np.testing.assert_allclose(three, (4 * two - g) / 3, rtol=1e-4, atol=1e-5)


def test_soft_labels_by_hand():
    method = compiled(generative_replay(MODEL, **SMALL, batch_size=5, labels="soft", temperature=3.0))
    state = after_tasks(method, batch_of([0, 1], active=[0, 1]))
    batch, params = batch_of([2, 3], active=[0, 1, 2, 3]), parameters(9)
    drawn = method.draw(KEY, state, params, batch)
    logits = np.asarray(MODEL.apply(params, drawn.x), np.float64)
    total = float(weighted_loss(jnp.float32(logits), drawn) + method.loss(state, jnp.float32(logits), drawn))
    expected = 0.0
    for i in range(4):
        expected -= 1 / 2 / 4 * np.log(np.exp(logits[i, drawn.y[i]]) / np.exp(logits[i, :4]).sum())
    old = np.exp(np.asarray(MODEL.apply(parameters(1), drawn.x), np.float64) / 3)
    for i in range(4, 9):
        p, q = np.exp(logits[i, :4] / 3), old[i, :2] / old[i, :2].sum()
        expected -= 1 / 2 / 5 * 9 * sum(q[c] * np.log(p[c] / p.sum()) for c in range(2))
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_of_several_heads_each_generated_example_goes_to_one():
    method = compiled(generative_replay(MODEL, **SMALL, batch_size=400, head_size=2))
    state = after_tasks(method, batch_of([2, 3], active=[2, 3]), batch_of([4, 5], active=[4, 5]))
    drawn = method.draw(KEY, state, parameters(9), batch_of([0, 1], active=[0, 1]))
    heads = [tuple(np.flatnonzero(row)) for row in np.asarray(drawn.active[4:])]
    assert set(heads) == {(2, 3), (4, 5)} and abs(heads.count((2, 3)) - 200) < 50  # five standard deviations
    old = np.asarray(MODEL.apply(parameters(2), drawn.x))[4:]
    assert drawn.y[4:].tolist() == [head[int(np.argmax(row[list(head)]))] for head, row in zip(heads, old, strict=True)]


@pytest.mark.parametrize("first", ["generated", pytest.param("stored", marks=pytest.mark.slow)])
def test_beside_replay_of_references(first):
    data = batch_of([0, 1, 2], num=30)

    def render(reference: Reference) -> Batch:
        return Batch(data.x[reference.row], data.y[reference.row], reference=reference)

    parts = {
        "generated": generative_replay(MODEL, **SMALL, labels="soft"),
        "stored": replay(5, store=lambda batch: batch.reference, load=render),
    }
    method = compiled(chain(**{name: parts[name] for name in sorted(parts, key=lambda name: name != first)}))
    incoming = render(Reference(jnp.arange(4, dtype=jnp.int32), jnp.zeros(4, jnp.int32)))
    state = method.init(KEY, parameters(), incoming)
    state = method.after_step(KEY, state, info_of(incoming))
    state = method.end_task(KEY, state, parameters(1), whole_task(0, incoming))
    drawn = method.draw(KEY, state, parameters(), incoming)
    rows = np.asarray(drawn.reference.row)
    assert len(rows) == 16 and (rows < 0).sum() == (4 if first == "generated" else 8)  # each doubles what it is given
    assert np.isfinite(method.loss(state, MODEL.apply(parameters(), drawn.x), drawn))
    np.testing.assert_allclose(drawn.weight.sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(labels="sofd"), "unknown labels of generated examples 'sofd'.*Did you mean 'soft'"),
        (dict(hidden=(4, 0)), "hidden 0"),
        (dict(num_latent=0), "num_latent 0"),
        (dict(batch_size=0), "batch_size 0"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments, message):
    with pytest.raises(UserError, match=message):
        generative_replay(MODEL, **arguments)


def test_heads_that_do_not_fit():
    with pytest.raises(UserError, match="head_size 4 does not divide the 6 outputs"):
        generative_replay(MODEL, **SMALL, head_size=4).init(KEY, parameters(), batch_of([0]))

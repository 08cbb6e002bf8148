"""LwF: each convention's equation in NumPy loops, the teacher, and what counts as an old output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import train
from cl_jax.batch import Batch, Task
from cl_jax.errors import UserError
from cl_jax.losses import weighted_loss
from cl_jax.methods.context import Context
from cl_jax.methods.lwf import CONVENTIONS, Lwf, lwf
from cl_jax.models.mlp import mlp
from cl_jax.optimizers import Sgd

KEY = jax.random.key(0)
MODEL = mlp((), 6)  # softmax regression on 4 inputs, 6 outputs
# float32 sums of a few terms of order 1, against float64.
ROUNDING = dict(rtol=2e-5, atol=1e-6)
# Outputs that share a softmax, old outputs and active outputs of a row, in the third task of two classes each (domain:
# of six classes each).
SCENARIOS = {
    "task": (2, [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]),
    "domain": (6, [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]),
    "class": (6, [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]),
}
TASKS = 3


def weights(seed):
    values = np.random.default_rng(seed).normal(size=(5, 6)).astype(np.float32)
    return {"dense_0": {"kernel": jnp.asarray(values[:4]), "bias": jnp.asarray(values[4])}}


def examples(active=None, weight=None):
    generator = np.random.default_rng(7)
    x, y = generator.normal(size=(5, 4)), generator.integers(4, 6, 5)
    if active is not None:
        active = jnp.broadcast_to(jnp.asarray(active, bool)[None, :], (5, 6))
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32), active, weight)


def softmax(logits, temperature):
    e = np.exp(np.asarray(logits, np.float64) / temperature)
    return e / e.sum()


def logits_of(params, x):
    return np.asarray(x, np.float64) @ np.asarray(params["dense_0"]["kernel"]) + np.asarray(params["dense_0"]["bias"])


def by_hand(convention, scenario, teacher, present, row_weights, strength, temperature):
    """Distillation alone, as the docstring's table says, over rows and old heads one by one."""
    size, old, active = SCENARIOS[scenario]
    heads = [range(first, first + size) for first in range(0, 6, size)]
    heads = [head for head in heads if any(old[k] for k in head)]
    total = 0.0
    for i, weight in enumerate(row_weights):
        for head in heads:
            told = [k for k in head if old[k]]
            competing = told if convention == "li_2016" else [k for k in head if old[k] or active[k]]
            q = dict(zip(told, softmax(teacher[i, told], temperature), strict=True))
            p = dict(zip(competing, softmax(present[i, competing], temperature), strict=True))
            kl = sum(q[k] * np.log(q[k] / p[k]) for k in told)
            if convention == "li_2016":
                factor = 1.0
            elif convention == "van_de_ven_2019":  # mean over heads and over outputs of a softmax
                factor = (1 - 1 / TASKS) * temperature**2 / len(heads) / len(competing)
            else:  # sum over heads; t - 1 times the one head that all tasks share
                factor = TASKS - 1 if scenario == "domain" else 1.0
            total += weight / sum(row_weights) * factor * kl
    return strength * total


def started(method, teacher, finished=TASKS - 1):
    state = method.init(KEY, weights(5), examples())
    for number in range(finished):
        params = teacher if number == finished - 1 else weights(number)
        state = method.end_task(KEY, state, params, Task(jnp.int32(number), None, jnp.ones(5, bool)))
    return state


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_by_hand(convention, scenario, weighted):
    size, old, active = SCENARIOS[scenario]
    weight = jnp.array([0.5, 0.1, 0.0, 0.2, 0.2]) if weighted else None
    batch, teacher, present = examples(active, weight), weights(0), weights(1)

    def total(strength):
        method = lwf(MODEL, strength, 2.0, convention=convention, head_size=size, old_outputs=jnp.asarray(old, bool))
        state = started(method, teacher)
        drawn = method.draw(KEY, state, present, batch)
        logits = MODEL.apply(present, drawn.x)
        return weighted_loss(logits, drawn), method.loss(state, logits, drawn)

    task, distilled = jax.jit(total)(3.0)
    share = TASKS if convention == "van_de_ven_2019" else 1
    np.testing.assert_allclose(task, weighted_loss(MODEL.apply(present, batch.x), batch) / share, **ROUNDING)
    teacher, present = logits_of(teacher, batch.x), logits_of(present, batch.x)
    expected = by_hand(
        convention,
        scenario,
        teacher,
        present,
        [0.2] * 5 if weight is None else np.asarray(weight, np.float64),
        3.0,
        2.0,
    )
    assert expected > 0.1
    np.testing.assert_allclose(distilled, expected, **ROUNDING)


def test_everything_is_old_by_default_after_a_task():
    """Domain-incremental, in a user's own loop."""
    batch, present = examples(), weights(1)
    logits = MODEL.apply(present, batch.x)
    method = lwf(MODEL, temperature=1.5)
    teacher = logits_of(weights(0), batch.x)
    expected = by_hand("li_2016", "domain", teacher, logits_of(present, batch.x), [0.2] * 5, 1.0, 1.5)
    np.testing.assert_allclose(method.loss(started(method, weights(0)), logits, batch), expected, **ROUNDING)
    assert float(method.loss(started(method, weights(0), finished=0), logits, batch)) == 0.0


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_teacher_is_the_model_at_the_last_boundary(convention):
    """At its own weights nothing pulls; away from them the gradient leads back; training does not move the teacher."""
    method = lwf(MODEL, 5.0, convention=convention)
    batch, teacher = examples(), weights(0)
    learner = train.Learner(MODEL, Sgd(learning_rate=0.1).build(), method)
    state = train.init(learner, KEY, batch, teacher)
    task = Task(jnp.int32(0), batch, jnp.ones(5, bool))
    state = train.end_task(learner, KEY, state, task)

    def distilled(params):
        return method.loss(state.method, MODEL.apply(params, batch.x), batch)

    value, gradient = jax.jit(jax.value_and_grad(distilled))(teacher)
    assert abs(float(value)) < 1e-5 and max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) < 1e-5
    away = jax.jit(jax.grad(distilled))(weights(1))
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(away)) > 1e-2
    after, _ = jax.jit(lambda s: train.train_step(learner, KEY, s, batch))(state)
    np.testing.assert_array_equal(after.method.teacher["dense_0"]["kernel"], teacher["dense_0"]["kernel"])
    assert (np.asarray(after.trainable["dense_0"]["kernel"]) != np.asarray(teacher["dense_0"]["kernel"])).any()


def test_the_engine_gives_heads_and_old_outputs():
    context = Context(*(None,) * len(Context._fields))._replace(
        model=MODEL, head_size=2, old_outputs=jnp.asarray(SCENARIOS["task"][1], bool)
    )
    method = Lwf(strength=2.0, temperature=3.0, convention="van_de_ven_2022").build(context)
    batch, present = examples(SCENARIOS["task"][2]), weights(1)
    found = method.loss(started(method, weights(0)), MODEL.apply(present, batch.x), batch)
    teacher, logits = logits_of(weights(0), batch.x), logits_of(present, batch.x)
    expected = by_hand("van_de_ven_2022", "task", teacher, logits, [0.2] * 5, 2.0, 3.0)
    np.testing.assert_allclose(found, expected, **ROUNDING)


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"unknown LwF convention 'li_2017'.*Did you mean 'li_2016'"):
        lwf(MODEL, convention="li_2017")
    method = lwf(MODEL, head_size=4)
    with pytest.raises(UserError, match="LwF head_size 4 for a model of 6 outputs"):
        method.loss(started(method, weights(0)), jnp.zeros((5, 6)), examples())

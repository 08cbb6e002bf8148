"""ParityMNIST: digits of which only the parity is asked, so that many answers are right, and how they are learned.

A network of ten outputs has learned both to name clothes (Fashion-MNIST) and to answer any digit with one of its
parity. Then it is trained on the parity alone, towards targets q that are all fully right and lie differently far from
what it answered before:

    one       1 on one digit a parity: 0 if even, 1 if odd
    two       1/2 on two digits each: 0 and 4, or 1 and 5
    uniform   1/5 on each digit of the right parity
    oracle    p_base(. | x) on the digits of the right parity, scaled to 1: of all right answers the nearest in KL
    reward    none; the expected reward sum_{c right} p(c | x) is raised, by its exact gradient: what policy gradients
              with a reward of 1 for a right answer estimate
    reward_kl the same, less `KL_PENALTY` times KL(p || p_base)

Source: Shenfeld, Pari and Agrawal 2025, RL's Razor, arXiv 2509.04259 (section on ParityMNIST).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cl_jax.errors import UserError
from cl_jax.losses import log_probabilities
from cl_jax.model import Model, Params
from cl_jax.sources import Source

OBJECTIVES = ("one", "two", "uniform", "oracle", "reward", "reward_kl")
KL_PENALTY = 0.1
OUTPUTS = 10
TASK_OF = {"parity": 1.0, "old": -1.0}  # the last input, which tells the network what it is asked


class Examples(NamedTuple):
    """Images with the sign of their task as one more input, and which answers count as right."""

    x: jax.Array  # float32 [N, D + 1]
    right: jax.Array  # bool [N, 10]


class Measured(NamedTuple):
    """Of each member, float32 [members]."""

    old: jax.Array  # accuracy on the old task
    parity: jax.Array  # share of answers of the right parity
    kl: jax.Array  # mean over parity inputs of KL(p_base || p), nats


def examples(source: Source, split: str, task: str) -> Examples:
    """The rows of "train" or "test" of a source, as one of the two tasks asks them.

    Raises:
        UserError: the source has no test set, or more than ten classes.
    """
    images, labels = (getattr(source, f"{split}_{part}") for part in ("images", "labels"))
    if images is None:
        raise UserError(f"data {source.name!r} has no test set of its own; give one that has, such as tfds:mnist")
    if source.num_classes > OUTPUTS:
        raise UserError(f"data {source.name!r} has {source.num_classes} classes; the network has {OUTPUTS} answers")
    pixels = images.reshape(len(images), -1).astype(np.float32) / source.pixel_max
    x = np.concatenate([pixels, np.full((len(pixels), 1), TASK_OF[task], np.float32)], axis=1)
    answers = np.arange(OUTPUTS)
    same = answers % 2 == labels[:, None] % 2 if task == "parity" else answers == labels[:, None]
    return Examples(jnp.asarray(x), jnp.asarray(same))


def take(rows: Examples, index: jax.Array) -> Examples:
    return Examples(rows.x[index], rows.right[index])


def targets(right: jax.Array, log_base: jax.Array) -> jax.Array:
    """q of the four objectives that have one, float32 [4, B, 10], from right bool and log p_base float32 [B, 10]."""
    answers = jnp.arange(OUTPUTS)
    of_one, of_two = (right & jnp.isin(answers, jnp.asarray(some))[None] for some in ([0, 1], [0, 4, 1, 5]))
    weights = [of_one, of_two, right, jnp.where(right, jnp.exp(log_base), 0.0)]
    floored = [jnp.maximum(weight.astype(jnp.float32), jnp.where(right, 1e-12, 0.0)) for weight in weights]
    return jnp.stack([weight / jnp.sum(weight, axis=-1, keepdims=True) for weight in floored])


def objective_loss(
    model: Model, objective: jax.Array, params: Params, base: Params, batch: Examples
) -> jax.Array:  # fmt: skip
    """The mean over a batch of what the objective (its number in `OBJECTIVES`) lowers."""
    log_p = log_probabilities(model.apply(params, batch.x), None)
    log_base = log_probabilities(model.apply(base, batch.x), None)
    with_target = -jnp.sum(targets(batch.right, log_base) * log_p[None], axis=-1)  # [4, B]
    unrewarded = -jnp.sum(jnp.where(batch.right, jnp.exp(log_p), 0.0), axis=-1)
    back = jnp.sum(jnp.exp(log_p) * (log_p - log_base), axis=-1)
    every = jnp.concatenate([with_target, unrewarded[None], (unrewarded + KL_PENALTY * back)[None]])
    return jnp.mean(every[objective])


def right_loss(model: Model, params: Params, batch: Examples) -> jax.Array:
    """-log sum_{c right} p(c | x), the mean: any right answer will do. What the base is trained with on both tasks."""
    log_p = log_probabilities(model.apply(params, batch.x), None)
    return -jnp.mean(jax.nn.logsumexp(jnp.where(batch.right, log_p, -jnp.inf), axis=-1))


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def pretrain(model: Model, key: jax.Array, parity: Examples, old: Examples, steps: int, batch_size: int) -> Params:
    """A base that knows both: Adam 1e-3, half of each batch from either task."""
    key_init, key_rows = jax.random.split(key)
    params, optimizer = model.init(key_init, old.x[:1]), optax.adam(1e-3)

    def step(carry: tuple[Params, optax.OptState], number: jax.Array) -> tuple[tuple[Params, optax.OptState], None]:
        params, state = carry
        keys = jax.random.split(jax.random.fold_in(key_rows, number))
        halves = [
            take(rows, jax.random.randint(key, (batch_size // 2,), 0, len(rows.x)))
            for key, rows in zip(keys, (parity, old), strict=True)
        ]
        batch = jax.tree.map(lambda *parts: jnp.concatenate(parts), *halves)
        grads = jax.grad(lambda params: right_loss(model, params, batch))(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return params


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def fine_tune(
    model: Model,
    key: jax.Array,
    base: Params,
    objective: jax.Array,
    learning_rate: jax.Array,
    parity: Examples,
    steps: int,
    batch_size: int,
) -> Params:
    """Adam on the parity alone from the base, its rate falling linearly to 0."""
    optimizer = optax.scale_by_adam()

    def step(carry: tuple[Params, optax.OptState], number: jax.Array) -> tuple[tuple[Params, optax.OptState], None]:
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(key, number), (batch_size,), 0, len(parity.x))
        grads = jax.grad(lambda params: objective_loss(model, objective, params, base, take(parity, rows)))(params)
        updates, state = optimizer.update(grads, state, params)
        rate = learning_rate * (1 - number / steps)
        return (jax.tree.map(lambda leaf, update: leaf - rate * update, params, updates), state), None

    return jax.lax.scan(step, (base, optimizer.init(base)), jnp.arange(steps))[0][0]


@functools.partial(jax.jit, static_argnums=0)
def measure(model: Model, params: Params, base: Params, parity: Examples, old: Examples) -> Measured:
    """One member on held-out rows of both tasks."""

    def accuracy(rows: Examples) -> jax.Array:
        answer = jnp.argmax(model.apply(params, rows.x), axis=-1)
        return jnp.mean(jnp.take_along_axis(rows.right, answer[:, None], axis=1).astype(jnp.float32))

    log_p, log_base = (log_probabilities(model.apply(at, parity.x), None) for at in (params, base))
    return Measured(accuracy(old), accuracy(parity), jnp.mean(jnp.sum(jnp.exp(log_base) * (log_base - log_p), -1)))

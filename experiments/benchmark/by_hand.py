"""What a user would write without the engine: the same training steps as one bare scan, and the textbook Fisher."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cl_jax.batch import Batch
from cl_jax.data import Data
from cl_jax.losses import log_probabilities, task_loss
from cl_jax.model import Model, Params
from cl_jax.optimizers import Adam
from experiments.benchmark.cases import NUM_CLASSES, Case


def scan_of(case: Case, data: Data, num_steps: int) -> Callable[[], Any]:
    """`num_steps` steps of one member: rows drawn at random, images scaled, gradient, update. No method, no flags."""
    run = case.run()
    model, config = run.model.build(NUM_CLASSES), run.optimizer
    rate = config.learning_rate
    optimizer = optax.adam(rate) if isinstance(config, Adam) else optax.sgd(rate)
    first, size = data.bounds("train")

    @jax.jit
    def steps(state: Any, key: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        def one(state: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
            params, moments = state
            batch = Batch(images[rows].astype(jnp.float32) / 255, labels[rows])
            loss, gradient = jax.value_and_grad(lambda p: task_loss(model, p, batch))(params)
            updates, moments = optimizer.update(gradient, moments, params)
            return (optax.apply_updates(params, updates), moments), loss

        rows = jax.random.randint(key, (num_steps, case.batch_size), first, first + size)
        state, losses = jax.lax.scan(one, state, rows)
        return state, jnp.mean(losses)

    params = model.init(jax.random.key(0), data.images[:1].astype(jnp.float32))
    held = {"state": (params, optimizer.init(params))}

    def call() -> jax.Array:
        held["state"], loss = steps(held["state"], jax.random.key(0), data.images, data.labels)
        return loss

    return call


def exact_fisher(model: Model, params: Params, x: jax.Array) -> Params:
    """1/n sum_i sum_c p_c(x_i) (d log p_c(x_i) / d theta)^2 from every example's whole Jacobian: `vmap(jacrev)`."""

    def one(x: jax.Array) -> Params:
        def log_p(p: Params) -> jax.Array:
            return log_probabilities(model.apply(p, x[None]), None)[0]

        weight = jnp.exp(log_p(params))
        return jax.tree.map(lambda j: jnp.tensordot(weight, jnp.square(j), axes=1), jax.jacrev(log_p)(params))

    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.vmap(one)(x))

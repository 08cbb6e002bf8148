"""Softmax regression: a model, and its gradients by hand in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.batch import Batch
from cl_jax.model import Model

INPUTS, OUTPUTS = 5, 4
MODEL = Model(
    init=lambda key, x: {"bias": jnp.zeros((OUTPUTS,)), "kernel": jax.random.normal(key, (INPUTS, OUTPUTS))},
    apply=lambda params, x: x @ params["kernel"] + params["bias"][None, :],
)
PARAMS = MODEL.init(jax.random.key(1), None)


def examples(numbers: Any, heads: Any = None) -> Batch:
    """Example i has inputs made of i and the label i mod 2 of the head `heads` (two outputs each), or i mod 4."""
    numbers = np.asarray(numbers)
    x = np.stack([np.sin(numbers), np.cos(numbers), np.sin(3 * numbers), np.cos(7 * numbers), numbers / 40], axis=1)
    if heads is None:
        return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(numbers % OUTPUTS, jnp.int32))
    heads = np.broadcast_to(heads, numbers.shape)
    active = np.arange(OUTPUTS)[None, :] // 2 == heads[:, None]
    y = 2 * heads + numbers % 2
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32), jnp.asarray(active))


def gradient(params: Any, batch: Batch) -> np.ndarray:
    """Of the mean cross entropy over the active outputs: float64 [P], the bias first, as `ravel_pytree` has it.

    d loss_i / d z = p - e_y, with p the softmax over the active outputs.
    """
    kernel, bias = np.asarray(params["kernel"], np.float64), np.asarray(params["bias"], np.float64)
    d_bias, d_kernel = np.zeros_like(bias), np.zeros_like(kernel)
    for i, (x, y) in enumerate(zip(np.asarray(batch.x, np.float64), np.asarray(batch.y), strict=True)):
        active = np.ones(OUTPUTS, bool) if batch.active is None else np.asarray(batch.active[i])
        p = np.where(active, np.exp(x @ kernel + bias), 0.0)
        by_output = p / p.sum() - np.eye(OUTPUTS)[y]
        d_bias += by_output
        d_kernel += np.outer(x, by_output)
    return flat({"bias": d_bias, "kernel": d_kernel}) / len(batch.y)


def flat(tree: Any) -> np.ndarray:
    """float64 [P]."""
    return np.concatenate([np.asarray(tree["bias"], np.float64), np.asarray(tree["kernel"], np.float64).ravel()])


def tree_of(vector: Any) -> Any:
    vector = jnp.asarray(np.asarray(vector), jnp.float32)
    return {"bias": vector[:OUTPUTS], "kernel": vector[OUTPUTS:].reshape(INPUTS, OUTPUTS)}

"""Kronecker-factored blocks of the Fisher information: one pair of small matrices for each layer.

Martens and Grosse 2015, arXiv 1503.05671 (dense layers); Grosse and Martens 2016, arXiv 1602.01073 (convolutions).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.errors import UserError, unknown
from cl_jax.layer_gradients import Arrays, backward, chunk_sizes, sum_over_cotangents, tapped
from cl_jax.model import Model, Params
from cl_jax.per_example import LABELS, check_whole, mean_over_examples, weighted_cotangents


class Factors(NamedTuple):
    """A layer's block of the Fisher is about activations (x) gradients, rows and columns ordered as its parameters are
    when the kernel [d_in, d_out], with the bias as a last row, is flattened.
    """

    activations: jax.Array  # float32 [d_in + 1, d_in + 1], A; without the last row and column where there is no bias
    gradients: jax.Array  # float32 [d_out, d_out], G


def kronecker_factors(
    key: jax.Array,
    model: Model,
    params: Params,
    examples: Any,
    *,
    kind: str = "exact",
    valid: jax.Array | None = None,
    samples: int = 1,
    num_active: int | None = None,
    chunk: int | None = None,
    render: Callable[[Any], Batch] = lambda examples: examples,
) -> dict[str, Factors]:
    """A = 1/n sum_i sum_p a_ip a_ip^T and G = 1/n sum_i sum_c q_i(c) 1/P sum_p g_icp g_icp^T, per layer with a kernel.

    a is what the layer received at a position, followed by a 1 where it has a bias (the homogeneous coordinate); g the
    derivative of log p_c by its output there. P, the number of positions, is 1 for a dense layer; for a convolution,
    whose a are patches, A is a sum over positions and G a mean, as Grosse and Martens have it: Omega and Gamma. No
    damping, no 1/2, sums over the n valid examples. q_i, whose labels count, and p are as in `diagonal_fisher`.

    A (x) G equals the layer's block of the Fisher where a and g are independent across examples and across positions;
    of a single example and a dense layer it always does.

    Args:
        kind: "exact", "sampled", "empirical" or "argmax".
        key, model, params, examples, valid, samples, num_active, chunk, render: see `diagonal_fisher`.

    Returns:
        By layer; layers that have no kernel, such as normalisation, have no factors. Zeros where no example is valid.

    Raises:
        UserError: an unknown kind; samples, num_active or chunk below 1; a model without a `tap`.
    """
    if kind not in LABELS:
        raise unknown("Fisher kind", kind, LABELS)
    check_whole(samples=samples, num_active=num_active, chunk=chunk)
    if model.tap is None:
        raise UserError(
            "Kronecker factors need a model with a `tap`, which tells what each layer received, and this one has none: "
            "use a model of cl_jax.models, or give yours a tap (see cl_jax.model.Model)"
        )

    def one_chunk(batch: Batch, index_B: jax.Array, weight_B: jax.Array) -> tuple[dict[str, Factors], jax.Array]:
        cotangents = weighted_cotangents(key, index_B, batch, weight_B, kind, samples, num_active)
        passed = backward(model, params, batch)
        names = [name for name in passed.inputs if "kernel" in params[name]]

        def add(sums: Arrays, g: Arrays, weight_B: jax.Array) -> Arrays:
            return {name: sums[name] + _second_moment(g[name], weight_B) / _positions(g[name]) for name in names}

        zeros = {name: _square_zeros(params[name]["kernel"].shape[1]) for name in names}
        gradients = sum_over_cotangents(passed, cotangents, zeros, add)
        received = {name: _homogeneous(params[name], passed.inputs[name]) for name in names}
        factors = {name: Factors(_second_moment(received[name], weight_B), gradients[name]) for name in names}
        return factors, jnp.sum(weight_B)

    inputs, _ = tapped(model, params, jax.eval_shape(render, examples).x)
    start = {}
    for name in inputs:
        if "kernel" in params[name]:
            d_in, d_out = params[name]["kernel"].shape
            start[name] = Factors(_square_zeros(d_in + ("bias" in params[name])), _square_zeros(d_out))
    sizes = chunk_sizes(model, params, examples, render) if chunk is None else {"default": chunk}
    return mean_over_examples(one_chunk, start, examples, valid, sizes, render)


def _square_zeros(size: int) -> jax.Array:
    return jnp.zeros((size, size), jnp.float32)


def _positions(g: jax.Array) -> int:
    return g[0].size // g.shape[-1]


def _homogeneous(layer: Params, a: jax.Array) -> jax.Array:
    if "bias" not in layer:
        return a
    return jnp.concatenate([a, jnp.ones((*a.shape[:-1], 1), a.dtype)], axis=-1)


def _second_moment(a: jax.Array, weight_B: jax.Array) -> jax.Array:
    """sum_b weight_b sum_p a_bp a_bp^T: float32 [D, D] from [B, ..., D]."""
    a = a.astype(jnp.float32).reshape(a.shape[0], -1, a.shape[-1])
    weighted = a * weight_B[:, None, None]
    return weighted.reshape(-1, a.shape[2]).T @ a.reshape(-1, a.shape[2])

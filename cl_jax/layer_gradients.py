"""Gradients of single examples through a model's `tap`: by layer, from one pass forward and S backward.

A probe is a zero added to a layer's output; the derivative with respect to it is that output's cotangent g, with which
every parameter's gradient is a product over what the layer received.

Shapes: B examples, C outputs, S cotangents of each example's logits.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.losses import log_probabilities
from cl_jax.model import Model, Params
from cl_jax.per_example import Cotangents, sizes_for

Sums = TypeVar("Sums")  # a tree of arrays
Arrays = dict[str, jax.Array]  # by layer
Shapes = dict[str, tuple[int, ...]]  # by layer
Magnitude = Callable[[jax.Array], jax.Array]  # elementwise, float32; of a product the product of magnitudes


class Backward(NamedTuple):
    """One pass forward, and what goes back from there."""

    log_p_BxC: jax.Array
    inputs: Arrays  # what each layer received
    pull_back: Callable[[jax.Array], Arrays]  # from cotangents of the logits [B, C] to those of the layers' outputs


def tapped(model: Model, params: Params, x: Any) -> tuple[Shapes, Shapes]:
    """Shapes of every tapped layer's input and output, batch first; nothing is computed."""
    if model.tap is None:
        return {}, {}
    _, inputs = jax.eval_shape(model.tap, params, {}, x)
    outputs = {}
    for name, received in inputs.items():
        layer, shape = params[name], received.shape
        if "kernel" in layer:
            shape = (*shape[:-1], layer["kernel"].shape[1])
        elif "embedding" in layer:
            shape = (*shape, layer["embedding"].shape[1])
        outputs[name] = shape
    return {name: received.shape for name, received in inputs.items()}, outputs


def backward(model: Model, params: Params, batch: Batch) -> Backward:
    """Runs the model once, with probes of zero."""
    assert model.tap is not None
    tap = model.tap
    _, shapes = tapped(model, params, batch.x)
    probes = {name: jnp.zeros(shape, jax.tree.leaves(params[name])[0].dtype) for name, shape in shapes.items()}

    logits, pull_back, inputs = jax.vjp(lambda probes: tap(params, probes, batch.x), probes, has_aux=True)
    log_p_BxC = log_probabilities(logits, batch.active)
    return Backward(log_p_BxC, inputs, lambda v_BxC: pull_back(v_BxC.astype(logits.dtype))[0])


def sum_over_cotangents(
    passed: Backward, cotangents: Cotangents, start: Sums, add: Callable[[Sums, Arrays, jax.Array], Sums]
) -> Sums:
    """Folds `add(sums, cotangents of the layers' outputs, weight [B])` over the S cotangents of the logits.

    The S are taken in turn: side by side (`vmap`) they fill S times the memory and took 2.4 times as long on a CPU.
    """

    def one(sums: Sums, item: tuple[jax.Array, jax.Array]) -> tuple[Sums, None]:
        v_BxC, weight_B = item
        return add(sums, passed.pull_back(v_BxC), weight_B), None

    return jax.lax.scan(one, start, cotangents(passed.log_p_BxC))[0]


def square(leaf: jax.Array) -> jax.Array:
    return jnp.square(leaf.astype(jnp.float32))


def absolute(leaf: jax.Array) -> jax.Array:
    return jnp.abs(leaf.astype(jnp.float32))


def gradient_magnitudes(
    model: Model, params: Params, batch: Batch, cotangents: Cotangents, magnitude: Magnitude = square
) -> Params:
    """sum_i sum_s w_is magnitude(gradient of v_is . logits(x_i)) for the tapped layers, float32 like params.

    `magnitude`, elementwise, is of a product the product of magnitudes. A dense layer's gradient is a_i g_is^T, so the
    sum is magnitude(a)^T b with b_i = sum_s w_is magnitude(g_is): no gradient is formed. Where a layer serves several
    positions an example's gradient is a sum over them, sum_p a_ip g_isp^T, and it is formed, one s at a time, first.
    A gate has no gradient, so its sum is 0.
    """
    passed = backward(model, params, batch)
    layers = {name: _without_gate(params[name]) for name in passed.inputs}
    dense = {name for name in layers if _is_dense(layers[name], passed.inputs[name].shape)}

    def zeros(name: str) -> Any:
        if name in dense:
            rows, d_out = passed.inputs[name].shape[0], layers[name]["kernel"].shape[1]
            return jnp.zeros((rows, d_out), jnp.float32)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), layers[name])

    def add(sums: dict[str, Any], g: Arrays, weight_B: jax.Array) -> dict[str, Any]:
        new = {}
        for name, before in sums.items():
            if name in dense:
                new[name] = before + weight_B[:, None] * magnitude(g[name])
            else:
                now = _sum_of_magnitudes(layers[name], passed.inputs[name], g[name], weight_B, magnitude)
                new[name] = jax.tree.map(jnp.add, before, now)
        return new

    sums = sum_over_cotangents(passed, cotangents, {name: zeros(name) for name in layers}, add)
    found = {}
    for name, total in sums.items():
        found[name] = total
        if name in dense:
            found[name] = _from_cotangents(layers[name], passed.inputs[name], total, magnitude)
        if "gate" in params[name]:
            found[name] = found[name] | {"gate": jnp.zeros(params[name]["gate"].shape, jnp.float32)}
    return found


def untapped(params: Params, tapped: Mapping[str, Any]) -> Params:
    """The parameters of which `tap` says nothing."""
    return {name: layer for name, layer in params.items() if name not in tapped} if tapped else params


def chunk_sizes(model: Model, params: Params, examples: Any, render: Callable[[Any], Batch]) -> dict[str, int]:
    """By platform, how many examples to take at once, by an estimate of what each of them holds."""
    one = jax.eval_shape(lambda examples: render(jax.tree.map(lambda leaf: leaf[:1], examples)), examples)
    inputs, outputs = tapped(model, params, one.x)
    floats = sum(math.prod(shape) for shape in inputs.values())
    floats += sum(3 * math.prod(shape) for shape in outputs.values())  # an activation, a cotangent, one under way
    formed = [params[name] for name in inputs if not _is_dense(params[name], inputs[name])]
    floats += max((2 * leaf.size for leaf in jax.tree.leaves(formed)), default=0)
    rest = sum(leaf.size for leaf in jax.tree.leaves(untapped(params, inputs)))
    sizes = sizes_for(4 * (floats + 2 * rest))  # twice, gradients and their squares
    # One gradient at a time is added up without ever being written down: on a CPU nine times as fast as eight at once.
    return sizes | {"cpu": 1} if rest else sizes


def _without_gate(layer: Params) -> Params:
    return {name: leaf for name, leaf in layer.items() if name != "gate"}


def _is_dense(layer: Params, received: tuple[int, ...]) -> bool:
    return "kernel" in layer and len(received) == 2


def _from_cotangents(layer: Params, a_BxI: jax.Array, s_BxO: jax.Array, magnitude: Magnitude) -> Params:
    sums = {"kernel": magnitude(a_BxI).T @ s_BxO}
    return sums | ({"bias": jnp.sum(s_BxO, axis=0)} if "bias" in layer else {})


def _sum_of_magnitudes(
    layer: Params, received: jax.Array, g: jax.Array, weight_B: jax.Array, magnitude: Magnitude
) -> Params:
    """sum_i weight_i magnitude(gradient of example i) of a layer's parameters, from its output's cotangents g."""
    sums = {}
    for name, leaf in layer.items():
        if name == "kernel":
            sums[name] = _kernel_magnitudes(received, g, weight_B, magnitude)
            continue
        if name == "embedding":
            hot = jax.nn.one_hot(received, leaf.shape[0], dtype=g.dtype)
            sums[name] = _kernel_magnitudes(hot, g, weight_B, magnitude)
            continue
        each = g * received if name == "scale" else g
        each = jnp.sum(each, axis=tuple(range(1, each.ndim - leaf.ndim)))
        sums[name] = jnp.tensordot(weight_B, magnitude(each), axes=1)
    return sums


def _kernel_magnitudes(a: jax.Array, g: jax.Array, weight_B: jax.Array, magnitude: Magnitude) -> jax.Array:
    """sum_b weight_b magnitude(sum_p a_bp g_bp^T): float32 [I, O] from a [B, ..., I] and g [B, ..., O]."""
    a, g = (leaf.reshape(leaf.shape[0], -1, leaf.shape[-1]) for leaf in (a, g))
    # The wider side last: up to twice as fast on a CPU.
    if a.shape[2] < g.shape[2]:
        return jnp.tensordot(weight_B, magnitude(jnp.einsum("bpi,bpo->bio", a, g)), axes=1)
    return jnp.tensordot(weight_B, magnitude(jnp.einsum("bpo,bpi->boi", g, a)), axes=1).T

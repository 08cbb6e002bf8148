"""A model is a pair of pure functions, with an optional third that makes its exact Fisher fast."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any  # a pytree of float arrays


class Model(NamedTuple):
    """`init(key, x) -> params`, `apply(params, x) -> logits`.

    Attributes:
        init: from a key and a batch of inputs [B, ...] to parameters.
        apply: from parameters and inputs [B, ...] to logits [B, C].
        tap: for models made of dense layers only: `(params, probes, x) -> (logits, inputs)`. Every layer is
            `params[name] = {"kernel": [d_in, d_out], "bias": [d_out]}`; `probes[name]` [B, d_out] is added to that
            layer's output and `inputs[name]` [B, d_in] is what it received. `None`: the general path is used.
    """

    init: Callable[[jax.Array, Any], Params]
    apply: Callable[[Params, Any], jax.Array]
    tap: Callable[[Params, dict[str, jax.Array], Any], tuple[jax.Array, dict[str, jax.Array]]] | None = None


def linen(module: Any) -> Model:
    """Wraps a Flax Linen module whose only collection is `params` (no batch statistics, no dropout)."""
    return Model(
        init=lambda key, x: module.init(key, x)["params"],
        apply=lambda params, x: module.apply({"params": params}, x),
    )


def nnx(module: Any) -> tuple[Model, Params]:
    """Wraps a Flax NNX module; returns the model and the module's present parameters.

    Imported only here: `flax.nnx` fails to import under some pairs of flax and jax versions.
    """
    from flax import nnx as flax_nnx

    graph, params, rest = flax_nnx.split(module, flax_nnx.Param, ...)
    pure = flax_nnx.to_pure_dict(params)

    def apply(values: Params, x: Any) -> jax.Array:
        state = jax.tree.map(lambda leaf: leaf, params)
        flax_nnx.replace_by_pure_dict(state, values)
        return flax_nnx.merge(graph, state, rest)(x)

    return Model(init=lambda key, x: pure, apply=apply), pure

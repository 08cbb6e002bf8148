"""A model is a pair of pure functions; others make its exact Fisher fast, train with dropout, and renew units."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any  # a pytree of float arrays


class Reader(NamedTuple):
    """How a model of sequences reads token by token, each once, as it has to when it writes.

    Attributes:
        empty: `(num, length) -> cache`, of `num` sequences of at most `length` tokens; no sizes are traced.
        step: `(params, cache, ids, place, first) -> (cache, logits)`: the logits float32 [B, V] that `Model.apply` has
            at position `place` (int32 []), where stand the tokens `ids` (int32 [B]), which see the positions from
            `first` (int32 [B]) on: where the present document began. Places come one after the other, from 0.
    """

    empty: Callable[[int, int], Any]
    step: Callable[[Params, Any, jax.Array, jax.Array, jax.Array], tuple[Any, jax.Array]]


class Model(NamedTuple):
    """`init(key, x) -> params`, `apply(params, x) -> logits`.

    Attributes:
        init: from a key and a batch of inputs [B, ...] to parameters.
        apply: from parameters and inputs [B, ...] to logits [B, C].
        tap: `(params, probes, x) -> (logits, inputs)`: how the parameters are used, so that gradients of single
            examples need not be formed where there is a shorter way. `inputs[name]` tells of `params[name]`, a layer
            used once; `probes[name]`, of the shape of the layer's output, is added to that output (no probes at all:
            `{}`). A layer is known by its parameters; `...` are positions, any number of axes:
                kernel [d_in, d_out]: inputs @ kernel, from inputs [B, ..., d_in]. A convolution gives its patches.
                scale [d]: inputs * scale, from inputs [B, ..., d].
                embedding [V, d]: embedding[inputs], from int32 inputs [B, ...].
                bias [d], or of any shape that the output ends in: + bias, beside one of these or alone; then inputs
                    [B, ..., d].
                gate [d_out]: output * gate, probe and bias included; a number without a gradient, which an adapter may
                    put beside a kernel. See `gates`.
            Layers missing from `inputs` take the general path. `None`: all of the model does.
        train: `(key, params, x) -> logits`, where training steps compute something else than `apply` (dropout).
            `None`: they do not.
        fresh: `(key, d_in, d_out) -> {"kernel": [d_in, d_out], "bias": [d_out]}`, a dense layer of any size as `init`
            begins the dense layers, for units that are born anew. `None`: it has none.
        gates: whether every layer heeds a `gate` among its parameters, as above. An adapter may then silence units by a
            gate of 0 (`cl_jax.adapters.xdg`), while the weights stay what they are.
        reader: how it writes, see `Reader` and `cl_jax.models.generate`. `None`: it does not.
    """

    init: Callable[[jax.Array, Any], Params]
    apply: Callable[[Params, Any], jax.Array]
    tap: Callable[[Params, dict[str, jax.Array], Any], tuple[jax.Array, dict[str, jax.Array]]] | None = None
    train: Callable[[jax.Array, Params, Any], jax.Array] | None = None
    fresh: Callable[[jax.Array, int, int], dict[str, jax.Array]] | None = None
    gates: bool = False
    reader: Reader | None = None


def training_logits(model: Model, key: jax.Array, params: Params, x: Any) -> jax.Array:
    """The logits [B, C] that a training step sees."""
    return model.apply(params, x) if model.train is None else model.train(key, params, x)


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

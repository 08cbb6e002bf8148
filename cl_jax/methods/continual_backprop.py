"""Continual backprop: now and then the least useful hidden unit is born anew, so that some can always learn."""

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.config import config, traced
from cl_jax.errors import UserError
from cl_jax.method import Method, Rewritten, StepInfo
from cl_jax.methods.context import Context
from cl_jax.model import Model, Params

_NO_CHAIN = (
    "continual_backprop replaces hidden units of dense layers that follow one another, and this model is none or does "
    "not tell: use model Mlp with a hidden layer, or give yours `tap` and `fresh` (see cl_jax.model.Model)"
)


class Units(NamedTuple):
    """The n units of a hidden layer."""

    utility: jax.Array  # float32 [n], running average that starts from 0, not corrected for that
    age: jax.Array  # int32 [n], steps since birth
    due: jax.Array  # float32 (), units to replace, with the fraction left over


class Hidden(NamedTuple):
    """Whose parameters make a hidden layer's units, and who receives what they compute."""

    layer: str  # dense: a unit's incoming weights are a column of its kernel
    norms: tuple[str, ...]  # normalisation between the two
    following: str  # dense: a unit's outgoing weights are a row of its kernel


def continual_backprop(
    model: Model,
    example: Any,
    replacement_rate: jax.Array | float,
    *,
    decay: jax.Array | float = 0.99,
    maturity: jax.Array | float = 100.0,
) -> Method:
    """After every step, in each hidden layer of n units, with h_i the mean of |activation of unit i| over the batch:

        a_i <- a_i + 1                                                     age
        u_i <- decay * u_i + (1 - decay) * h_i * sum_k |w_ik|               w_i its outgoing weights after the step
        due <- due + replacement_rate * #{i: a_i > maturity}
        if due >= 1: due <- due - 1, and the mature unit of least u_i / (1 - decay^a_i) is born anew:
            incoming weights and bias from the initialiser, outgoing weights 0, normalisation 1 and 0,
            u_i = a_i = 0, and the optimizer forgets its moments of all these.

    One unit of a layer is replaced in a step at most: a replacement_rate above 1 / n has no more effect than that.
    Activations are those that the step computed, without dropout; rows count as their batch weighs them. With 0 weights
    going out, a new unit does not change what the network computes, but for its part in a layer's normalisation, and it
    is safe until it is mature. An optimizer's count of steps is that of all weights: after Adam has forgotten, its bias
    correction is that of old moments, and a new weight's first step is (1 - beta1) / sqrt(1 - beta2) = 3.2 times as
    long as a first step; the authors' Adam counts for each weight.

    Utility is the paper's; the authors' code has the mean of |w_ik|, the same order, and for permuted MNIST subtracts
    from an activation its mean and divides by the mean of the incoming weights.

    Args:
        model: dense layers one after another, with normalisation between them at most: `tap` tells of them all.
        example: a batch of inputs [B, ...], or its shape and dtype, which is all that matters.
        replacement_rate: rho, the share of mature units that is replaced in a step; may be traced.
        decay: eta in [0, 1], may be traced.
        maturity: m, steps that a unit is safe for; may be traced.

    Raises:
        UserError: a model that is no such chain, or whose `tap` or `fresh` is missing.

    Source: Dohare et al. 2024, Nature 632, 768-774, algorithm 1; arXiv 2306.13812 (with the correction of u).
    """
    chain = hidden_layers(model, example)

    def init(key: jax.Array, params: Params, batch: Batch) -> dict[str, Units]:
        def newborn(n: int) -> Units:
            return Units(jnp.zeros((n,), jnp.float32), jnp.zeros((n,), jnp.int32), jnp.zeros((), jnp.float32))

        return {hidden.layer: newborn(params[hidden.layer]["kernel"].shape[1]) for hidden in chain}

    def after_step(key: jax.Array, state: dict[str, Units], info: StepInfo) -> dict[str, Units]:
        assert model.tap is not None
        _, inputs = model.tap(info.before, {}, info.batch.x)
        new = {}
        for hidden in chain:
            before = state[hidden.layer]
            outgoing = jnp.sum(jnp.abs(info.after[hidden.following]["kernel"]), axis=1)
            contribution = _mean_size(inputs[hidden.following], info.batch.weight) * outgoing
            utility = decay * before.utility + (1.0 - decay) * contribution
            new[hidden.layer] = Units(utility, before.age + 1, before.due)
        return new

    def rewrite(key: jax.Array, state: dict[str, Units], params: Params) -> Rewritten:
        params = {name: dict(layer) for name, layer in params.items()}
        forget = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)
        keys, new = jax.random.split(key, len(chain)), {}
        for i, hidden in enumerate(chain):
            unit, replaced, new[hidden.layer] = _chosen(state[hidden.layer], replacement_rate, decay, maturity)
            _born_anew(keys[i], model, hidden, params, forget, unit, replaced)
        return Rewritten(new, params, forget)

    return Method(init=init, after_step=after_step, rewrite=rewrite)


def _mean_size(h_BxN: jax.Array, weight_B: jax.Array | None) -> jax.Array:
    """sum_b weight_b |h_b| / sum_b weight_b: [N]."""
    if weight_B is None:
        return jnp.mean(jnp.abs(h_BxN), axis=0)
    return weight_B @ jnp.abs(h_BxN) / jnp.maximum(jnp.sum(weight_B), float(jnp.finfo(jnp.float32).tiny))


def _chosen(
    units: Units, rate: jax.Array | float, decay: jax.Array | float, maturity: jax.Array | float
) -> tuple[jax.Array, jax.Array, Units]:
    """Which unit would be replaced, int32 (), whether it is, bool (), and the units after that."""
    steps = units.age.astype(jnp.float32)
    mature = steps > maturity
    due = units.due + rate * jnp.sum(mature.astype(jnp.float32))
    seen = 1.0 - decay**steps
    corrected = units.utility / jnp.maximum(seen, float(jnp.finfo(jnp.float32).tiny))
    unit = jnp.argmin(jnp.where(mature, corrected, jnp.inf)).astype(jnp.int32)
    replaced = (due >= 1.0) & jnp.any(mature)
    gone = replaced & (jnp.arange(mature.shape[0], dtype=jnp.int32) == unit)
    utility, age = jnp.where(gone, 0.0, units.utility), jnp.where(gone, 0, units.age)
    return unit, replaced, Units(utility, age, due - replaced.astype(jnp.float32))


def _born_anew(
    key: jax.Array, model: Model, hidden: Hidden, params: Params, forget: Params, unit: jax.Array, replaced: jax.Array
) -> None:
    """Writes a new unit into `params`, and where into `forget`; the old one stays unless `replaced`."""
    assert model.fresh is not None

    def write(name: str, part: str, axis: int, value: jax.Array | float) -> None:
        if part not in params[name]:
            return
        leaf = params[name][part]
        old = jax.lax.dynamic_index_in_dim(leaf, unit, axis)
        new = jnp.where(replaced, jnp.broadcast_to(jnp.asarray(value, leaf.dtype), old.shape), old)
        params[name][part] = jax.lax.dynamic_update_index_in_dim(leaf, new, unit, axis)
        here = replaced & (jnp.arange(leaf.shape[axis], dtype=jnp.int32) == unit)
        here = jnp.expand_dims(here, [other for other in range(leaf.ndim) if other != axis])
        forget[name][part] |= jnp.broadcast_to(here, leaf.shape)

    fresh = model.fresh(key, params[hidden.layer]["kernel"].shape[0], 1)
    write(hidden.layer, "kernel", 1, fresh["kernel"])
    write(hidden.layer, "bias", 0, fresh["bias"])
    for name in hidden.norms:
        write(name, "scale", 0, 1.0)
        write(name, "bias", 0, 0.0)
    write(hidden.following, "kernel", 0, 0.0)


def hidden_layers(model: Model, example: Any) -> list[Hidden]:
    """The hidden layers of a chain of dense layers, first to last; see `continual_backprop` for the arguments.

    Raises:
        UserError: it is no such chain.
    """
    order: list[str] = []
    received: dict[str, tuple[int, ...]] = {}

    def look(x: Any) -> Params:
        params = model.init(jax.random.key(0), x)
        if model.tap is not None:
            _, inputs = model.tap(params, {}, x)
            order.extend(inputs)  # the order of use, which a traced dict would lose
            received.update({name: value.shape for name, value in inputs.items()})
        return params

    params = jax.eval_shape(look, example)
    dense = [i for i, name in enumerate(order) if "kernel" in params[name]]
    whole = set(order) == set(params) and all(len(shape) == 2 for shape in received.values())
    if model.fresh is None or not whole or dense[:1] != [0] or dense[-1:] != [len(order) - 1]:
        raise UserError(_NO_CHAIN)
    chain = [Hidden(order[a], tuple(order[a + 1 : b]), order[b]) for a, b in itertools.pairwise(dense)]
    if not chain or not all(_fits(hidden, params, received) for hidden in chain):
        raise UserError(_NO_CHAIN)
    return chain


def _fits(hidden: Hidden, params: Params, received: Mapping[str, tuple[int, ...]]) -> bool:
    n = params[hidden.layer]["kernel"].shape[1]
    scaled = all("scale" in params[name] for name in hidden.norms)
    return scaled and all(received[name][1] == n for name in (*hidden.norms, hidden.following))


@config
class ContinualBackprop:
    """See `continual_backprop`."""

    moves_weights: ClassVar[bool] = True

    replacement_rate: float = traced(1e-4, high=1.0)
    decay: float = traced(0.99, high=1.0)
    maturity: float = traced(100.0)

    def build(self, context: Context) -> Method:
        return continual_backprop(
            context.model, context.example, self.replacement_rate, decay=self.decay, maturity=self.maturity
        )

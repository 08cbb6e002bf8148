"""Which examples stand for a class, and classifying by them: pure functions of features. Knows no Method.

Features phi(x) are what a model's last dense layer receives (`Model.tap`), divided by their length.

Shapes: N examples, D features, C classes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.errors import UserError
from cl_jax.model import Model, Params

CHUNK = 256  # examples whose features are computed at once
TIE = 1e-6  # scores nearer than this differ by rounding alone: the first example wins, in every packing
NEVER = -1e9  # the bias of a class of which there is no example

Render = Callable[[Any], Batch]


def as_batch(examples: Any) -> Batch:
    """The default `render`: examples are a batch already."""
    return examples


def unit(vectors: jax.Array) -> jax.Array:
    """Each row divided by its length; a row of zeros stays one. float32 [..., D]."""
    length = jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True))
    return vectors / jnp.where(length > 0, length, 1.0)


def head_of(model: Model, params: Params, examples: Any, render: Render = as_batch) -> str:
    """The name of the layer that gives the logits: the last one that `Model.tap` tells of. Nothing is computed.

    Raises:
        UserError: there is no `tap`, or the last layer that it tells of is not a dense one with as many outputs as
            there are logits.
    """
    tap = model.tap
    if tap is None:
        raise UserError(
            "herding and the nearest mean need the features that the model's last layer receives, and the model has no "
            "`tap` to tell them: give it one (see cl_jax.model.Model), or use one of cl_jax.models"
        )
    order: list[str] = []

    def run(params: Params, examples: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits, inputs = tap(params, {}, render(jax.tree.map(lambda leaf: leaf[:1], examples)).x)
        order.extend(inputs)  # in the order of use; what a traced function returns is sorted
        return logits, inputs

    logits, inputs = jax.eval_shape(run, params, examples)
    name = order[-1]
    kernel = params[name].get("kernel")
    if kernel is None or len(inputs[name].shape) != 2 or kernel.shape[1] != logits.shape[-1]:
        raise UserError(
            f"herding and the nearest mean need a model that ends in a dense layer; the last one that its `tap` "
            f"tells of, {name!r}, receives {list(inputs[name].shape)} and the logits are {list(logits.shape)}"
        )
    return name


def features(
    model: Model, params: Params, examples: Any, valid: jax.Array, render: Render = as_batch
) -> tuple[jax.Array, jax.Array]:
    """phi(x), of length 1 (or 0), and the labels: float32 [N, D], int32 [N]. Rows not valid repeat a valid one.

    Args:
        model: with a `tap`.
        params: of the model.
        examples: pytree of arrays [N, ...]; `render` turns `CHUNK` rows at a time into a `Batch`.
        valid: bool [N]; the other rows are never rendered (row 0 is, where none is valid).

    Raises:
        UserError: see `head_of`.
    """
    name, tap, num = head_of(model, params, examples, render), model.tap, valid.shape[0]
    assert tap is not None
    size = min(CHUNK, num)
    padded = -(-num // size) * size
    held = jnp.concatenate([valid, jnp.zeros((padded - num,), bool)])
    rows = jnp.where(held, jnp.arange(padded, dtype=jnp.int32), jnp.argmax(valid).astype(jnp.int32))

    def chunk(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = render(jax.tree.map(lambda leaf: leaf[index], examples))
        return unit(tap(params, {}, batch.x)[1][name]), batch.y

    received, labels = jax.lax.map(chunk, rows.reshape(-1, size))
    return received.reshape(padded, -1)[:num], labels.reshape(padded)[:num]


def herd(features_NxD: jax.Array, member_N: jax.Array, num: jax.Array | int) -> jax.Array:
    """The order in which herding takes the members: each next one brings the mean of those taken nearest to theirs.

        p_k = argmin_i |mu - (phi_i + sum_{j<k} phi_{p_j}) / k|, mu the mean of the members, i not yet taken
            = argmax_i phi_i . v_k - |phi_i|^2 / 2,  v_1 = mu,  v_{k+1} = v_k + mu - phi_{p_k}

    Of examples whose scores differ by less than `TIE` the first is taken. mu is not divided by its length.

    Args:
        features_NxD: float32, of any lengths.
        member_N: bool, the examples of one class.
        num: how many to take, may be traced; all members where there are fewer.

    Returns:
        int32 [N]: k - 1 for the k-th taken, -1 for the others. The first m of them are what herding takes for m.

    Source: Rebuffi et al. 2017, arXiv 1611.07725, algorithm 4; Welling 2009, Herding dynamical weights to learn. The
        authors' code lets an example be taken again, which moves v but adds nothing; here, as in later code, it cannot.
    """
    assert features_NxD.ndim == 2 and member_N.ndim == 1
    mu_D = member_N.astype(jnp.float32) @ features_NxD / jnp.maximum(jnp.sum(member_N, dtype=jnp.float32), 1.0)
    half_N = 0.5 * jnp.sum(jnp.square(features_NxD), axis=1)

    def take(k: jax.Array, taken: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rank_N, v_D = taken
        left_N = member_N & (rank_N < 0)
        score_N = jnp.where(left_N, features_NxD @ v_D - half_N, -jnp.inf)
        best = jnp.argmax(left_N & (score_N >= jnp.max(score_N) - TIE))
        return rank_N.at[best].set(k), v_D + mu_D - features_NxD[best]

    num = jnp.minimum(jnp.asarray(num, jnp.int32), jnp.sum(member_N, dtype=jnp.int32))
    return jax.lax.fori_loop(0, num, take, (jnp.full(member_N.shape, -1, jnp.int32), mu_D))[0]


def members(labels_N: jax.Array, valid_N: jax.Array, num_classes: int) -> jax.Array:
    """bool [C, N]: which valid examples are of which class."""
    return (labels_N[None, :] == jnp.arange(num_classes, dtype=jnp.int32)[:, None]) & valid_N[None, :]


def nearest_mean(model: Model, params: Params, examples: Any, valid: jax.Array, render: Render = as_batch) -> Params:
    """The parameters with a last layer that classifies by the nearest class mean of the examples' features.

        argmin_c |phi(x) - mu_c| = argmax_c mu_c . phi(x) = argmax_c mu_c . f(x)

    since |phi| = |mu_c| = 1 (means are divided by their length too) and phi(x) = f(x) / |f(x)|, f(x) what the last
    layer receives. Its kernel becomes the means, its bias 0, or `NEVER` for a class without examples (its logit is 0
    where the layer has no bias). Only the order of the logits means something: their cross-entropy does not.

    Args: those of `features`. Where no example is valid the parameters are returned as they are.

    Source: Mensink et al. 2013, Distance-based image classification (nearest class mean); Rebuffi et al. 2017, arXiv
        1611.07725, algorithm 1 (of exemplars, lengths 1).
    """
    phi_NxD, labels_N = features(model, params, examples, valid, render)
    head = params[name := head_of(model, params, examples, render)]
    member_CxN = members(labels_N, valid, head["kernel"].shape[1])
    new = {"kernel": unit(member_CxN.astype(jnp.float32) @ phi_NxD).T}
    if "bias" in head:
        new["bias"] = jnp.where(jnp.any(member_CxN, axis=1), 0.0, NEVER)
    return {**params, name: {**head, **{k: jnp.where(jnp.any(valid), leaf, head[k]) for k, leaf in new.items()}}}

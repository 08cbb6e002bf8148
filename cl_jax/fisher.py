"""The diagonal of the Fisher information, per example, in every kind the field uses. Knows no Method.

Kirkpatrick et al. 2017, arXiv 1612.00796; Martens 2020, arXiv 1412.1193; Kunstner et al. 2019, arXiv 1905.12558 (what
the empirical kind is not); van de Ven 2025, arXiv 2502.11756 (the kinds compared); Hsu et al. 2018, arXiv 1810.12488
(argmax).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.errors import unknown
from cl_jax.layer_gradients import Magnitude, chunk_sizes, gradient_magnitudes, square, untapped
from cl_jax.losses import log_probabilities, task_loss
from cl_jax.model import Model, Params
from cl_jax.per_example import (
    LABELS,
    Cotangents,
    check_whole,
    mean_over_examples,
    weighted_cotangents,
)

KINDS = (*LABELS, "batched")


def diagonal_fisher(
    key: jax.Array,
    model: Model,
    params: Params,
    examples: Any,
    *,
    kind: str = "exact",
    valid: jax.Array | None = None,
    samples: int = 1,
    batch_size: int = 128,
    num_active: int | None = None,
    chunk: int | None = None,
    render: Callable[[Any], Batch] = lambda examples: examples,
) -> Params:
    """F = 1/n sum_i sum_c q_i(c) (d log p_c(x_i) / d theta)^2, elementwise, over the n valid examples.

    p is the model's softmax over the active outputs; natural logarithm, no 1/2, no penalty, no weight of the batch, no
    dropout or augmentation but what `model.apply` and `render` do. q_i, whose labels count, is by kind:
        exact: p(x_i), the Fisher information itself.
        sampled: the average of `samples` draws from p(x_i); its expectation is exact.
        empirical: the true label. Not a Fisher: it goes to 0 where the model fits its training labels.
        argmax: the most probable active label, the first one among equals.
    An example may be a sequence of L tokens. Its gradient is that of log p of all its counted targets together, given
    what stands before each, and F is 1 / L of the mean of its squares: by position, as the loss is, so that F means the
    same beside the loss whatever L is. "exact" is not to be had then; "sampled" draws every target anew.
    "batched" is the widespread shortcut, here for comparison: F = 1/m sum_b (d L_b / d theta)^2 with L_b the mean cross
    entropy of the true labels over the valid examples of batch b, `batch_size` consecutive rows, m the number of
    batches that have any. For independent gradients it is empirical / batch_size, so a strength tuned for it means
    something else at another batch size.

    Layers that the model's `tap` tells of go by what they are (`cl_jax.layer_gradients`); every other parameter, all
    of them where there is no `tap`, by each example's whole gradient.

    Args:
        key: of "sampled", which gives example i the key fold_in(key, i): chunks change nothing. Else unused.
        params: float; the model's tree.
        examples: pytree of arrays [N, ...]; `render` turns each chunk of it, never all N, into a `Batch`.
        valid: bool [N]; the other rows are never rendered. None: all.
        samples: draws per example of "sampled".
        batch_size: rows per batch of "batched".
        num_active: the most outputs that are active for any example, where the caller knows it: "exact" then takes
            one pass backward less than that, instead of C - 1. A task-incremental task has few.
        chunk: examples at once, for speed and memory only. None: by an estimate from the shapes, as many as take 8 MiB
            on a CPU and 64 MiB elsewhere (`cl_jax.per_example.CHUNK_BYTES`), at most 256; on a CPU one at a time where
            a parameter is not tapped.

    Returns:
        float32, a tree like params; zeros where no example is valid.

    Raises:
        UserError: an unknown kind; samples, batch_size, num_active or chunk below 1.
    """
    if kind not in KINDS:
        raise unknown("Fisher kind", kind, KINDS)
    check_whole(samples=samples, batch_size=batch_size, num_active=num_active, chunk=chunk)

    def batched(batch: Batch, index_B: jax.Array, weight_B: jax.Array) -> tuple[Params, jax.Array]:
        mean = batch._replace(weight=weight_B / jnp.maximum(jnp.sum(weight_B), 1.0))
        gradient = jax.grad(lambda p: task_loss(model, p, mean))(params)
        length = 1 if batch.counted is None else batch.counted.shape[-1]
        return jax.tree.map(lambda leaf: square(leaf) * float(length), gradient), jnp.max(weight_B)

    def per_example(batch: Batch, index_B: jax.Array, weight_B: jax.Array) -> tuple[Params, jax.Array]:
        cotangents = weighted_cotangents(key, index_B, batch, weight_B, kind, samples, num_active)
        return sum_of_magnitudes(model, params, batch, cotangents), jnp.sum(weight_B)

    one_chunk, size = (batched, batch_size) if kind == "batched" else (per_example, chunk)
    sizes = chunk_sizes(model, params, examples, render) if size is None else {"default": size}
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    return mean_over_examples(one_chunk, start, examples, valid, sizes, render)


def sum_of_magnitudes(
    model: Model, params: Params, batch: Batch, cotangents: Cotangents, magnitude: Magnitude = square
) -> Params:
    """sum_i sum_s w_is magnitude(gradient of v_is . logits(x_i)), elementwise, of any model: float32, like params.

    Args:
        batch: B examples; its labels and weights do not count.
        cotangents: gives v [S, B, C] and w [S, B].
        magnitude: `cl_jax.layer_gradients.square` or `absolute`.
    """
    if model.tap is None:
        return _whole(model.apply, params, batch, cotangents, magnitude)
    found = gradient_magnitudes(model, params, batch, cotangents, magnitude)
    rest = untapped(params, found)
    if rest:
        found |= _whole(lambda p, x: model.apply({**params, **p}, x), rest, batch, cotangents, magnitude)
    return {name: found[name] for name in params}


def _whole(
    apply: Callable[[Params, Any], jax.Array],
    params: Params,
    batch: Batch,
    cotangents: Cotangents,
    magnitude: Magnitude,
) -> Params:
    """Any model: each example's whole gradient is formed, and only then its magnitudes are summed.

    A single example, as on a CPU, is passed forward once for all of its cotangents. Several are passed forward again
    for each: their gradients are apart only under `vmap`, and what one pass leaves behind then holds the weights, too,
    once an example.
    """
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    if batch.y.shape[0] == 1:
        logits_1xC, pull_back = jax.vjp(lambda p: apply(p, batch.x), params)

        def alone(total: Params, item: tuple[jax.Array, jax.Array]) -> tuple[Params, None]:
            v_1xC, weight_1 = item
            (each,) = pull_back(v_1xC.astype(logits_1xC.dtype))
            return jax.tree.map(lambda t, g: t + weight_1[0] * magnitude(g), total, each), None

        return jax.lax.scan(alone, start, cotangents(log_probabilities(logits_1xC, batch.active)))[0]

    def along(p: Params, x: Any, v_C: jax.Array) -> jax.Array:
        logits_C = apply(p, jax.tree.map(lambda leaf: leaf[None], x))[0]
        return jnp.sum(v_C.astype(logits_C.dtype) * logits_C)

    def one(total: Params, item: tuple[jax.Array, jax.Array]) -> tuple[Params, None]:
        v_BxC, weight_B = item
        each = jax.vmap(jax.grad(along), in_axes=(None, 0, 0))(params, batch.x, v_BxC)
        return jax.tree.map(lambda t, g: t + jnp.tensordot(weight_B, magnitude(g), axes=1), total, each), None

    log_p_BxC = log_probabilities(apply(params, batch.x), batch.active)
    return jax.lax.scan(one, start, cotangents(log_p_BxC))[0]

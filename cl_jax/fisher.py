"""The diagonal of the Fisher information, per example, in every kind the field uses. Knows no Method.

Kirkpatrick et al. 2017, arXiv 1612.00796; Martens 2020, arXiv 1412.1193; Kunstner et al. 2019, arXiv 1905.12558 (what
the empirical kind is not); van de Ven 2025, arXiv 2502.11756 (the kinds compared); Hsu et al. 2018, arXiv 1810.12488
(argmax).

Shapes: N examples in all, B in one chunk, C outputs, S labels tried per example.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.errors import UserError, unknown
from cl_jax.losses import log_probabilities, task_loss
from cl_jax.model import Model, Params

KINDS = ("exact", "sampled", "empirical", "argmax", "batched")


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
    "batched" is the widespread shortcut, here for comparison: F = 1/m sum_b (d L_b / d theta)^2 with L_b the mean cross
    entropy of the true labels over the valid examples of batch b, `batch_size` consecutive rows, m the number of
    batches that have any. For independent gradients it is empirical / batch_size, so a strength tuned for it means
    something else at another batch size.

    Args:
        key: of "sampled", which gives example i the key fold_in(key, i): chunks change nothing. Else unused.
        params: float; the model's tree.
        examples: pytree of arrays [N, ...]; `render` turns each chunk of it, never all N, into a `Batch`.
        valid: bool [N]; the other rows are never rendered. None: all.
        samples: draws per example of "sampled".
        batch_size: rows per batch of "batched".
        chunk: examples at once, for speed and memory only. None: 256 where the model has a `tap`; else 8, because the
            general path holds that many gradients of the size of params.

    Returns:
        float32, a tree like params; zeros where no example is valid.

    Raises:
        UserError: an unknown kind; samples, batch_size or chunk below 1.
    """
    if kind not in KINDS:
        raise unknown("Fisher kind", kind, KINDS)
    one_pass = _general if model.tap is None else _dense
    if chunk is None:
        chunk = 8 if model.tap is None else 256
    for name, value in (("samples", samples), ("batch_size", batch_size), ("chunk", chunk)):
        if value < 1:
            raise UserError(f"Fisher {name} = {value}; allowed: 1 or more. Raise it, or leave it out for the default.")
    num = jax.tree.leaves(examples)[0].shape[0]
    size = min(batch_size if kind == "batched" else chunk, num)
    num_chunks = -(-num // size)
    valid = jnp.ones((num,), bool) if valid is None else valid
    valid = jnp.concatenate([valid, jnp.zeros((num_chunks * size - num,), bool)])
    # A valid row stands in for each invalid one, with weight 0: 0 * NaN is NaN, so what they hold must not be touched.
    rows = jnp.where(valid, jnp.arange(num_chunks * size, dtype=jnp.int32), jnp.argmax(valid).astype(jnp.int32))

    def one_chunk(sums: tuple[Params, jax.Array], item: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        index_B, valid_B = item
        batch = render(jax.tree.map(lambda leaf: leaf[index_B], examples))
        weight_B = valid_B.astype(jnp.float32)
        if kind == "batched":
            mean = batch._replace(weight=weight_B / jnp.maximum(jnp.sum(weight_B), 1.0))
            gradient = jax.grad(lambda p: task_loss(model, p, mean))(params)
            part, count = jax.tree.map(_square, gradient), jnp.max(weight_B)
        else:

            def labels(log_p_BxC: jax.Array) -> tuple[jax.Array, jax.Array]:
                labels_SxB, weights_SxB = _labels(key, index_B, log_p_BxC, batch.y, kind, samples)
                return labels_SxB, weights_SxB * weight_B[None, :]

            part, count = one_pass(model, params, batch, labels), jnp.sum(weight_B)
        return (jax.tree.map(jnp.add, sums[0], part), sums[1] + count), None

    start = (jax.tree.map(_zeros, params), jnp.zeros((), jnp.float32))
    items = (rows.reshape(num_chunks, size), valid.reshape(num_chunks, size))
    (total, count), _ = jax.lax.scan(one_chunk, start, items)
    # A product: a quotient by one number is compiled as either, by how many devices there are.
    share = 1.0 / jnp.maximum(count, 1.0)
    return jax.tree.map(lambda leaf: jnp.where(count > 0, leaf * share, 0.0), total)


def _zeros(leaf: jax.Array) -> jax.Array:
    return jnp.zeros(leaf.shape, jnp.float32)


def _square(leaf: jax.Array) -> jax.Array:
    return jnp.square(leaf.astype(jnp.float32))


def _labels(
    key: jax.Array, index_B: jax.Array, log_p_BxC: jax.Array, y_B: jax.Array, kind: str, samples: int
) -> tuple[jax.Array, jax.Array]:
    """q_i as labels int32 [S, B] and their weights float32 [S, B], S as small as the kind allows."""
    num_outputs = log_p_BxC.shape[1]
    every_CxB = jnp.broadcast_to(jnp.arange(num_outputs, dtype=jnp.int32)[:, None], log_p_BxC.T.shape)
    if kind == "exact":
        return every_CxB, jnp.exp(log_p_BxC.astype(jnp.float32)).T
    if kind == "sampled":

        def draw(row: jax.Array, log_p_C: jax.Array) -> jax.Array:
            return jax.random.categorical(jax.random.fold_in(key, row), log_p_C, shape=(samples,))

        drawn_SxB = jax.vmap(draw, out_axes=1)(index_B, log_p_BxC)
        if samples < num_outputs:
            return drawn_SxB, jnp.full(drawn_SxB.shape, 1.0 / samples, jnp.float32)
        # From here on it is cheaper to count the draws of each output.
        return every_CxB, jnp.mean(jax.nn.one_hot(drawn_SxB, num_outputs, dtype=jnp.float32), axis=0).T
    label_B = y_B if kind == "empirical" else jnp.argmax(log_p_BxC, axis=1)
    return label_B.astype(jnp.int32)[None, :], jnp.ones((1, *label_B.shape), jnp.float32)


Labels = Callable[[jax.Array], tuple[jax.Array, jax.Array]]  # log p [B, C] -> labels [S, B], weights [S, B]


def _dense(model: Model, params: Params, batch: Batch, labels: Labels) -> Params:
    """For layers y = a W + b: sum_i sum_c q_i(c) (a_i g_ic^T)^2 = (a^2)^T s with s_i = sum_c q_i(c) g_ic^2.

    One pass forward and S backward give every layer's output cotangents g, without one weight gradient. The S are
    taken in turn: side by side (`vmap`) they fill S times the memory and took 2.4 times as long on a CPU.
    """
    assert model.tap is not None
    tap = model.tap
    num = jax.tree.leaves(batch.x)[0].shape[0]
    probes = {name: jnp.zeros((num, *layer["bias"].shape), layer["bias"].dtype) for name, layer in params.items()}

    def log_p(probes: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits, inputs = tap(params, probes, batch.x)
        return log_probabilities(logits, batch.active), inputs

    log_p_BxC, pull_back, inputs = jax.vjp(log_p, probes, has_aux=True)

    def one_label(s: Params, item: tuple[jax.Array, jax.Array]) -> tuple[Params, None]:
        label_B, weight_B = item
        (g,) = pull_back(jax.nn.one_hot(label_B, log_p_BxC.shape[1], dtype=log_p_BxC.dtype))
        return jax.tree.map(lambda total, leaf: total + weight_B[:, None] * _square(leaf), s, g), None

    s, _ = jax.lax.scan(one_label, jax.tree.map(_zeros, probes), labels(log_p_BxC))
    return {name: {"kernel": _square(inputs[name]).T @ s[name], "bias": jnp.sum(s[name], axis=0)} for name in params}


def _general(model: Model, params: Params, batch: Batch, labels: Labels) -> Params:
    """Any model: each example's whole gradient is formed, and only then squared and summed."""

    def log_p_of(p: Params, x: Any, active: jax.Array | None, label: jax.Array) -> jax.Array:
        single = jax.tree.map(lambda leaf: leaf[None], (x, active))
        return log_probabilities(model.apply(p, single[0]), single[1])[0, label]

    def one_label(total: Params, item: tuple[jax.Array, jax.Array]) -> tuple[Params, None]:
        label_B, weight_B = item
        each = jax.vmap(jax.grad(log_p_of), in_axes=(None, 0, 0, 0))(params, batch.x, batch.active, label_B)
        return jax.tree.map(lambda t, g: t + jnp.tensordot(weight_B, _square(g), axes=1), total, each), None

    log_p_BxC = log_probabilities(model.apply(params, batch.x), batch.active)
    return jax.lax.scan(one_label, jax.tree.map(_zeros, params), labels(log_p_BxC))[0]

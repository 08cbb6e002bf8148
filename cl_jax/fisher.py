"""The diagonal of the Fisher information, per example, in every kind the field uses. Knows no method.

Kirkpatrick et al. 2017, arXiv 1612.00796; Martens 2020, arXiv 1412.1193; Kunstner et al. 2019, arXiv 1905.12558;
van de Ven 2025, arXiv 2502.11756 (the kinds compared).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.errors import unknown
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
    chunk: int = 256,
    render: Callable[[Any], Batch] = lambda examples: examples,
) -> Params:
    """F = mean_i sum_c q_i(c) (d log p_c(x_i) / d theta)^2, elementwise; natural log, no 1/2, no penalty in it.

    p is the model's softmax over the active outputs, and the label weights q_i are, by kind,
        exact: p(x_i); sampled: `samples` draws from p(x_i), averaged; empirical: the true label; argmax: the most
        probable label. "batched" is the widespread shortcut, for comparison: the mean over consecutive batches of the
        squared gradient of the batch-mean loss with true labels, which is smaller by up to a factor of the batch size.

    Args:
        key: of the sampled labels; example i uses fold_in(key, i), so chunking changes nothing.
        examples: pytree with leading axis N, turned into a `Batch` chunk by chunk by `render`.
        valid: bool [N]; the others contribute nothing. None: all.
        chunk: examples worked on at once.

    Returns:
        float32, a tree like params; zeros where nothing is valid.

    Raises:
        UserError: an unknown kind.
    """
    if kind not in KINDS:
        raise unknown("Fisher kind", kind, KINDS)
    num = jax.tree.leaves(examples)[0].shape[0]
    valid = jnp.ones((num,), bool) if valid is None else valid
    size = batch_size if kind == "batched" else min(chunk, num)
    num_chunks = -(-num // size)
    # Padding repeats row 0, marked invalid: it renders to finite values.
    rows = jnp.arange(num_chunks * size, dtype=jnp.int32)
    valid = jnp.where(rows < num, valid[jnp.minimum(rows, num - 1)], False)
    rows = jnp.where(rows < num, rows, 0)

    def add(sums: tuple[Params, jax.Array], item: tuple[jax.Array, jax.Array]) -> tuple[tuple[Params, jax.Array], None]:
        index, use = item
        batch = render(jax.tree.map(lambda leaf: leaf[index], examples))
        weight = use.astype(jnp.float32)
        if kind == "batched":
            batch = batch._replace(weight=weight / jnp.maximum(jnp.sum(weight), 1.0))
            gradient = jax.grad(lambda p: task_loss(model, p, batch))(params)
            part, count = jax.tree.map(jnp.square, gradient), jnp.any(use).astype(jnp.float32)
        else:
            one_pass = _dense if model.tap is not None else _general
            labels = _label_weights(key, index, model.apply(params, batch.x), batch, kind, samples)
            part, count = one_pass(model, params, batch, labels * weight[:, None]), jnp.sum(weight)
        return (jax.tree.map(jnp.add, sums[0], part), sums[1] + count), None

    start = (jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))
    items = (rows.reshape(num_chunks, size), valid.reshape(num_chunks, size))
    (total, count), _ = jax.lax.scan(add, start, items)
    return jax.tree.map(lambda leaf: leaf / jnp.maximum(count, 1.0), total)


def _label_weights(
    key: jax.Array, index: jax.Array, logits: jax.Array, batch: Batch, kind: str, samples: int
) -> jax.Array:
    """q_i(c): float32 [B, C]."""
    num_outputs = logits.shape[-1]
    log_p = log_probabilities(logits, batch.active)
    if kind == "exact":
        return jnp.exp(log_p)
    if kind == "empirical":
        return jax.nn.one_hot(batch.y, num_outputs, dtype=jnp.float32)
    if kind == "argmax":
        return jax.nn.one_hot(jnp.argmax(log_p, axis=-1), num_outputs, dtype=jnp.float32)

    def draw(row: jax.Array, log_p_C: jax.Array) -> jax.Array:
        drawn = jax.random.categorical(jax.random.fold_in(key, row), log_p_C, shape=(samples,))
        return jnp.mean(jax.nn.one_hot(drawn, num_outputs, dtype=jnp.float32), axis=0)

    return jax.vmap(draw)(index, log_p)


def _dense(model: Model, params: Params, batch: Batch, labels_BxC: jax.Array) -> Params:
    """For layers y = a W + b: sum_i sum_c q_i(c) (a_i g_ic^T)^2 = (a^2)^T s with s = sum_c q_i(c) g_ic^2.

    One pass forward and C backward give every layer's output cotangents g, without one per-example weight gradient.
    """
    assert model.tap is not None
    tap = model.tap
    size = batch.y.shape[0]
    probes = {name: jnp.zeros((size, layer["bias"].shape[0]), jnp.float32) for name, layer in params.items()}

    def log_p(probes: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits, inputs = tap(params, probes, batch.x)
        return log_probabilities(logits, batch.active), inputs

    log_p_BxC, pull_back, inputs = jax.vjp(log_p, probes, has_aux=True)

    def one_label(label: jax.Array) -> dict[str, jax.Array]:
        cotangent = jnp.broadcast_to(jax.nn.one_hot(label, log_p_BxC.shape[1], dtype=jnp.float32), log_p_BxC.shape)
        (g,) = pull_back(cotangent)
        return jax.tree.map(lambda leaf: labels_BxC[:, label, None] * leaf**2, g)

    each = jax.vmap(one_label)(jnp.arange(log_p_BxC.shape[1], dtype=jnp.int32))
    s = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), each)
    return {
        name: {"kernel": (inputs[name] ** 2).T @ s[name], "bias": jnp.sum(s[name], axis=0)} for name in params
    }  # the layout that `Model.tap` promises


def _general(model: Model, params: Params, batch: Batch, labels_BxC: jax.Array) -> Params:
    """Any model: the gradient of each example for each label, squared, then summed."""

    def one(example: Batch, labels_C: jax.Array) -> Params:
        def log_p(p: Params) -> jax.Array:
            single = jax.tree.map(lambda leaf: leaf[None], example)
            return log_probabilities(model.apply(p, single.x), single.active)[0]

        jacobian = jax.jacrev(log_p)(params)
        return jax.tree.map(lambda leaf: jnp.tensordot(labels_C, leaf**2, axes=1), jacobian)

    each = jax.vmap(one)(batch, labels_BxC)
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), each)

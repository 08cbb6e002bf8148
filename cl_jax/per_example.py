"""Means over examples, and over the labels that a model gives them: what every kind of curvature here is.

Shapes: N examples in all, B in one chunk, C outputs, S cotangents per example.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.batch import Batch
from cl_jax.errors import UserError
from cl_jax.shuffle import shuffled_index

LABELS = ("exact", "sampled", "empirical", "argmax")
# What a chunk may take, by platform. On a CPU it should stay near the cores; elsewhere it should fill the device, and
# many members may do so side by side.
CHUNK_BYTES = {"cpu": 2**23, "default": 2**26}
LARGEST_CHUNK = 256

# log p [B, C] -> v [S, B, C], weights [S, B]; of sequences log p [B, L, C] -> v [S, B, L, C], weights [S, B].
Cotangents = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
Sums = TypeVar("Sums")  # a tree of arrays
EXACT_OF_TEXT = (
    "the exact Fisher sums over every label, and of text every token is one at every position: use kind 'sampled', "
    "whose expectation it is, or 'empirical'"
)


def check_whole(**given: int | None) -> None:
    """Raises UserError for a number below 1."""
    for name, value in given.items():
        if value is not None and value < 1:
            raise UserError(f"Fisher {name} = {value}; allowed: 1 or more. Raise it, or leave it out for the default.")


def sizes_for(bytes_per_example: int) -> dict[str, int]:
    """By platform, how many examples at once take no more than `CHUNK_BYTES`: 1 to `LARGEST_CHUNK`."""
    return {
        platform: max(1, min(LARGEST_CHUNK, budget // max(bytes_per_example, 1)))
        for platform, budget in CHUNK_BYTES.items()
    }


def subset(key: jax.Array, examples: Any, valid: jax.Array, num: int | None) -> tuple[Any, jax.Array]:
    """`num` of the valid examples, drawn without replacement, and which of the rows are valid; None: all, as they are.

    Args:
        examples: pytree of arrays [N, ...], the valid rows first.
        valid: bool [N].
    """
    if num is None or num >= valid.shape[0]:
        return examples, valid
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.int32), 1)
    position = jnp.arange(num, dtype=jnp.int32)
    rows = shuffled_index(key, jnp.zeros_like(position), position % count, count)
    return jax.tree.map(lambda leaf: leaf[rows], examples), valid[rows] & (position < count)


def mean_over_examples(
    one_chunk: Callable[[Batch, jax.Array, jax.Array], tuple[Sums, jax.Array]],
    start: Sums,
    examples: Any,
    valid: jax.Array | None,
    sizes: Mapping[str, int],
    render: Callable[[Any], Batch],
) -> Sums:
    """1/n sum over chunks, n the sum of their counts; zeros where that is 0.

    Args:
        one_chunk: from a batch, its rows' numbers int32 [B] and weights float32 [B], 1 for valid rows and 0 for the
            others, to the chunk's sums and count.
        start: zeros of the sums' shapes.
        examples: pytree of arrays [N, ...]; `render` turns each chunk of it, never all N, into a `Batch`.
        valid: bool [N]; the other rows are never rendered. None: all.
        sizes: B by platform, "default" the rest. Which it is, is known when the program is compiled, not here.
    """
    examples = jax.tree.map(jnp.asarray, examples)
    num = jax.tree.leaves(examples)[0].shape[0]
    runs = {size: partial(_mean, one_chunk, start, examples, valid, size, render) for size in sizes.values()}
    if len(runs) == 1 or num == 1:
        return next(iter(runs.values()))()
    return lax.platform_dependent(**{platform: runs[size] for platform, size in sizes.items()})


def _mean(
    one_chunk: Callable[[Batch, jax.Array, jax.Array], tuple[Sums, jax.Array]],
    start: Sums,
    examples: Any,
    valid: jax.Array | None,
    size: int,
    render: Callable[[Any], Batch],
) -> Sums:
    num = jax.tree.leaves(examples)[0].shape[0]
    size = min(size, num)
    num_chunks = -(-num // size)
    valid = jnp.ones((num,), bool) if valid is None else valid
    valid = jnp.concatenate([valid, jnp.zeros((num_chunks * size - num,), bool)])
    # A valid row stands in for each invalid one, with weight 0: 0 * NaN is NaN, so what they hold must not be touched.
    rows = jnp.where(valid, jnp.arange(num_chunks * size, dtype=jnp.int32), jnp.argmax(valid).astype(jnp.int32))

    def one(sums: tuple[Sums, jax.Array], item: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        index_B, valid_B = item
        batch = render(jax.tree.map(lambda leaf: leaf[index_B], examples))
        return jax.tree.map(jnp.add, sums, one_chunk(batch, index_B, valid_B.astype(jnp.float32))), None

    items = (rows.reshape(num_chunks, size), valid.reshape(num_chunks, size))
    (total, count), _ = lax.scan(one, (start, jnp.zeros((), jnp.float32)), items)
    # A product: a quotient by one number is compiled as either, by how many devices there are.
    share = 1.0 / jnp.maximum(count, 1.0)
    return jax.tree.map(lambda leaf: jnp.where(count > 0, leaf * share, 0.0), total)


def weighted_cotangents(
    key: jax.Array,
    index_B: jax.Array,
    batch: Batch,
    weight_B: jax.Array,
    kind: str,
    samples: int,
    num_active: int | None = None,
) -> Cotangents:
    """From log p to cotangents v of the logits z and weights w with sum_s w_s v_s v_s^T = sum_c q(c) u_c u_c^T.

    Of a sequence v holds u at every position whose target counts, 0 elsewhere, and w is 1 / L of what it is else: the
    gradient is that of log p of the whole sequence, and a mean over examples one by position, as the loss is.

    u_c = d log p_c / d z = e_c - p, and q says which labels count (`cl_jax.fisher.diagonal_fisher`). S is as small as
    the kind allows: a pass backward each. Exact, the sum is diag(p) - p p^T, of rank C - 1, and the v_s are the columns
    of its Cholesky factor (Tanabe and Sagae 1992), one binary choice after another: output s, or a later one?

    Args:
        key: of "sampled", which gives the example of number i the key fold_in(key, i).
        index_B: int32 [B], the examples' numbers.
        batch: B examples; only their labels and active outputs matter.
        weight_B: float32 [B], multiplies the weights.
        kind, samples, num_active: see `cl_jax.fisher.diagonal_fisher`.
    """

    def cotangents(log_p_BxC: jax.Array) -> tuple[jax.Array, jax.Array]:
        num_outputs = log_p_BxC.shape[1]
        p_BxC = jnp.exp(log_p_BxC.astype(jnp.float32))
        if kind == "exact":
            if p_BxC.ndim > 2:
                raise UserError(EXACT_OF_TEXT)
            return _binary_choices(p_BxC, num_outputs if num_active is None else min(num_active, num_outputs))
        if kind == "sampled":

            def draw(row: jax.Array, log_p_C: jax.Array) -> jax.Array:
                return jax.random.categorical(
                    jax.random.fold_in(key, row), log_p_C, shape=(samples, *log_p_C.shape[:-1])
                )

            label_SxB = jax.vmap(draw, out_axes=1)(index_B, log_p_BxC)
            if samples >= num_outputs and p_BxC.ndim == 2:  # cheaper to count the draws of each output
                drawn_CxB = jnp.mean(jax.nn.one_hot(label_SxB, num_outputs, dtype=jnp.float32), axis=0).T
                every_CxB = jnp.arange(num_outputs, dtype=jnp.int32)[:, None] + jnp.zeros_like(index_B)[None]
                return _from_labels(every_CxB, p_BxC), drawn_CxB
        elif kind == "empirical":
            label_SxB = batch.y[None]
        else:
            label_SxB = jnp.argmax(log_p_BxC, axis=-1)[None]
        return _from_labels(label_SxB, p_BxC), jnp.full(label_SxB.shape[:2], 1.0 / len(label_SxB), jnp.float32)

    def weighted(log_p_BxC: jax.Array) -> tuple[jax.Array, jax.Array]:
        v_SxBxC, weight_SxB = cotangents(log_p_BxC)
        if batch.active is not None:
            v_SxBxC = jnp.where(batch.active[None], v_SxBxC, 0.0)
        if batch.counted is not None:
            v_SxBxC = v_SxBxC * batch.counted[None, :, :, None]
            weight_SxB = weight_SxB * (1.0 / batch.counted.shape[-1])
        return v_SxBxC, weight_SxB * weight_B[None, :]

    return weighted


def _from_labels(label_SxB: jax.Array, p_BxC: jax.Array) -> jax.Array:
    return jax.nn.one_hot(label_SxB, p_BxC.shape[-1], dtype=jnp.float32) - p_BxC[None]


def _binary_choices(p_BxC: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """v_s = e_s - P(. | later than s), w_s = P(s) P(later than s) / P(s or later), of the `num` likeliest outputs."""
    num_outputs, order_BxC = p_BxC.shape[1], None
    if num < num_outputs:
        p_BxC, order_BxC = lax.top_k(p_BxC, num)
    reach_BxC = lax.cumsum(p_BxC, axis=1, reverse=True)  # P(s or later): sums of positive terms keep their digits
    p_BxS, reach_BxS, later_BxS = p_BxC[:, :-1], reach_BxC[:, :-1], reach_BxC[:, 1:]

    def inverse(whole: jax.Array) -> jax.Array:
        smallest = float(jnp.finfo(jnp.float32).tiny)
        return jnp.where(whole >= smallest, 1.0 / jnp.maximum(whole, smallest), 0.0)

    weight_SxB = (p_BxS * (later_BxS * inverse(reach_BxS))).T
    is_later = jnp.triu(jnp.ones((num, num), bool), 1)[:-1, None, :]
    given_later = jnp.where(is_later, p_BxC[None] * inverse(later_BxS).T[:, :, None], 0.0)
    v_SxBxC = jnp.eye(num, dtype=jnp.float32)[:-1, None, :] - given_later
    if order_BxC is not None:
        v_SxBxC = jnp.einsum("sbk,bkc->sbc", v_SxBxC, jax.nn.one_hot(order_BxC, num_outputs, dtype=jnp.float32))
    return v_SxBxC, weight_SxB

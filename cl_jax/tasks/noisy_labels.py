"""Noisy labels: some training examples carry a wrong one (symmetric: van Rooyen et al. 2015, arXiv 1505.07634)."""

from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.config import child, config, traced
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.method import stream_key
from cl_jax.shuffle import shuffled_index
from cl_jax.tasks.split import Split
from cl_jax.tasks.stream import Stream, Tables, with_tables


@config
class NoisyLabels:
    """Another stream with wrong labels on a share of the training rows.

    round(share * N) of the N training rows, drawn by the seed, have one of the K - 1 other labels of their task, drawn
    uniformly by the seed: K labels a task. So exactly that share is wrong, where noise over all K labels would leave a
    K-th of it right. A row is wrong in the same way whenever and in whichever task it is shown, the rows of a smaller
    share are among those of a larger one, and the labels of validation and test rows are the true ones.

    Attributes:
        stream: the other stream.
        share: of the training rows whose label is wrong.
    """

    stream: Any = child(Split)
    share: float = traced(0.2, high=1.0)

    @property
    def num_tasks(self) -> int:
        return self.stream.num_tasks

    def build(self, data: Data) -> Stream:
        stream: Stream = self.stream.build(data)
        rows, others = data.sizes[0], stream.classes_per_task - 1
        if others < 1:
            raise UserError(
                "stream: NoisyLabels gives a row another label of its task, and with one class a task there is none: "
                "use fewer tasks"
            )

        def relabel(tables: Tables, row: jax.Array, label: jax.Array) -> jax.Array:
            own, words = tables
            if stream.relabel is not None:
                label = stream.relabel(own, row, label)
            key = jax.random.wrap_key_data(words)
            training = row < rows
            place = jnp.where(training, row, 0)
            rank = shuffled_index(jax.random.fold_in(key, 0), jnp.zeros_like(place), place, jnp.int32(rows))
            wrong = training & (rank < jnp.round(self.share * jnp.float32(rows)).astype(jnp.int32))
            shift = 1 + _below(jax.random.fold_in(key, 1), place, others)
            return jnp.where(wrong, (label + shift) % (others + 1), label)

        return with_tables(stream, lambda key, data: jax.random.key_data(stream_key(key, "label noise")))._replace(
            relabel=relabel
        )


def _below(key: jax.Array, row: jax.Array, count: int) -> jax.Array:
    """Uniform in 0 ... count - 1, one number a row: int32 like `row`."""

    def one(row: jax.Array) -> jax.Array:
        return jax.random.randint(jax.random.fold_in(key, row), (), 0, count, jnp.int32)

    return jnp.vectorize(one)(row)

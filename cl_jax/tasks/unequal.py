"""Unequal tasks: training sets shrink or grow from task to task (long-tailed: Liu et al. 2022, arXiv 2210.00266)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.config import child, config, static
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.method import stream_key
from cl_jax.tasks.permuted import Permuted
from cl_jax.tasks.stream import Stream, Tables, with_tables


@config
class Unequal:
    """Another stream whose tasks keep a share of their training rows each, from all down to `ratio`.

    The shares are ratio^(k / (T - 1)), k = 0 ... T - 1, and round(share * rows) rows are kept, at least one, the same
    for every seed. Validation and test rows stay as they are. Every task is trained for the same number of steps: a
    small task sees its examples more often, unless `passes` bounds all by the smallest.

    Attributes:
        stream: the other stream.
        ratio: the smallest share, in (0, 1]: the imbalance factor of the long-tailed sets (Cao et al. 2019, arXiv
            1906.07413) is 1 / ratio.
        order: of the shares over the tasks: "falling", "rising", or "random" by the seed.
    """

    stream: Any = child(Permuted)
    ratio: float = static(0.1)
    order: str = static("falling", choices=("falling", "rising", "random"))

    @property
    def num_tasks(self) -> int:
        return self.stream.num_tasks

    def build(self, data: Data) -> Stream:
        if not 0 < self.ratio <= 1:
            raise UserError(f"stream.ratio: was given {self.ratio}; allowed are shares above 0, up to 1")
        stream: Stream = self.stream.build(data)
        shares = (self.ratio ** (np.arange(stream.num_tasks) / max(stream.num_tasks - 1, 1))).astype(np.float32)
        if self.order == "rising":
            shares = shares[::-1]

        def in_order(key: jax.Array, data: Data) -> Tables:
            if self.order != "random":
                return jnp.asarray(shares)
            return jax.random.permutation(stream_key(key, "task sizes"), jnp.asarray(shares))

        def share(tables: Tables) -> jax.Array:
            own, drawn = tables
            return drawn if stream.share is None else drawn * stream.share(own)

        return with_tables(stream, in_order)._replace(share=share, least_share=stream.least_share * float(shares.min()))

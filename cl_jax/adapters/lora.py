"""Low-rank adaptation in parameter space (Hu et al. 2021, arXiv 2106.09685): knows no model."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.adapters.adapter import Adapter, Trainable, path_name
from cl_jax.config import config, static, traced
from cl_jax.errors import UserError
from cl_jax.method import stream_key
from cl_jax.model import Params


class LoraState(NamedTuple):
    """What trains: a full copy that moves in the first task only (or nothing), and the factors."""

    first: Params  # the model's parameters while the first task trains them; () otherwise
    factors: dict[str, dict[str, jax.Array]]  # path -> {"a": [d_in, r], "b": [r, d_out]}


def lora(
    rank: int,
    alpha: jax.Array | float = 16.0,
    targets: str = "kernel",
    *,
    merge: bool = False,
    first_task: str = "lora",
) -> Adapter:
    """W_effective = W + (alpha / r) A B for every matrix whose path matches; the original weights stay frozen.

    A [d_in, r] starts N(0, 1 / d_in), B [r, d_out] zero: an exact no-op at the start.

    Args:
        rank: r.
        alpha: scale, may be traced.
        targets: regular expression searched for in the paths of the two-dimensional leaves.
        merge: at each boundary add the product to W and start new factors; otherwise the same factors train on.
        first_task: "lora" adapts from the initial weights on (they should be pre-trained ones); "full" trains all
            parameters in the first task, which stands for the pre-training, and only the factors after it.
    """

    def matches(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim == 2 and re.search(targets, path_name(path)) is not None

    def factors(key: jax.Array, params: Params) -> dict[str, dict[str, jax.Array]]:
        made = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if matches(path, leaf):
                d_in, d_out = leaf.shape
                noise = jax.random.normal(stream_key(key, path_name(path)), (d_in, rank), leaf.dtype)
                made[path_name(path)] = {"a": noise * d_in**-0.5, "b": jnp.zeros((rank, d_out), leaf.dtype)}
        return made

    def add(params: Params, products: dict[str, dict[str, jax.Array]]) -> Params:
        def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            part = products.get(path_name(path))
            return leaf if part is None else leaf + (alpha / rank) * (part["a"] @ part["b"])

        return jax.tree_util.tree_map_with_path(one, params)

    def init(key: jax.Array, params: Params) -> tuple[Params, Trainable]:
        made = factors(key, params)
        return ((), LoraState(params, made)) if first_task == "full" else (params, LoraState((), made))

    def effective(base: Params, trainable: Trainable, task: jax.Array) -> Params:
        return add(trainable.first if first_task == "full" else base, trainable.factors)

    def mask(base: Params, task: jax.Array, updates: Trainable) -> Trainable:
        if first_task != "full":
            return updates
        first = jax.tree.map(lambda u: jnp.where(task > 0, jnp.zeros_like(u), u), updates.first)
        later = jax.tree.map(lambda u: jnp.where(task > 0, u, jnp.zeros_like(u)), updates.factors)
        return LoraState(first, later)

    def end_task(key: jax.Array, base: Params, trainable: Trainable, task: jax.Array) -> tuple[Params, Trainable]:
        if not merge:
            return base, trainable
        merged = effective(base, trainable, task)
        fresh = factors(key, merged)
        return ((), LoraState(merged, fresh)) if first_task == "full" else (merged, LoraState((), fresh))

    return Adapter(init=init, effective=effective, mask=mask, end_task=end_task, identity=False)


@config
class Lora:
    """See `lora`. The default trains the first task fully: image models here start from random weights."""

    rank: int = static(4, low=1)
    alpha: float = traced(16.0)
    targets: str = static("kernel")
    merge: bool = static(False)
    first_task: str = static("full", choices=("full", "lora"))

    @property
    def needs_boundaries(self) -> bool:
        return self.merge or self.first_task == "full"

    def build(self, num_tasks: int = 1) -> Adapter:
        return lora(self.rank, self.alpha, self.targets, merge=self.merge, first_task=self.first_task)

    def check(self, params: Params) -> None:
        """Raises UserError when no matrix matches, or the rank is larger than a matched matrix allows."""
        leaves = jax.tree_util.tree_leaves_with_path(params)
        matrices = {path_name(path): leaf.shape for path, leaf in leaves if len(leaf.shape) == 2}
        try:
            matched = {name: shape for name, shape in matrices.items() if re.search(self.targets, name)}
        except re.error as error:
            raise UserError(f"adapter.targets: {self.targets!r} is not a regular expression: {error}") from error
        if not matched:
            raise UserError(f"adapter.targets: {self.targets!r} matches none of the matrices {', '.join(matrices)}")
        name, shape = min(matched.items(), key=lambda item: min(item[1]))
        if self.rank > min(shape):
            raise UserError(
                f"adapter.rank: was given {self.rank}, larger than the matrix {name} {list(shape)} allows; the most "
                f"allowed is {min(shape)}: lower the rank or leave the matrix out of adapter.targets"
            )

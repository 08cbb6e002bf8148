"""Low-rank adaptation in parameter space (Hu et al. 2021, arXiv 2106.09685): knows no model."""

import re

import jax
import jax.numpy as jnp

from cl_jax.adapters.adapter import Adapter, Trainable, path_name
from cl_jax.adapters.factors import (
    FIRST_TASKS,
    Factors,
    LoraState,
    check_factors,
    new_factors,
    plus_products,
    whole_leaves,
)
from cl_jax.config import child, config, static, traced
from cl_jax.errors import UserError
from cl_jax.model import Params


def lora(
    rank: int,
    alpha: jax.Array | float = 16.0,
    targets: str = "kernel",
    *,
    merge: bool = False,
    first_task: str = "lora",
    used: jax.Array | float | None = None,
    whole: str | None = None,
) -> Adapter:
    """W_effective = W + (alpha / r) A B for every matrix whose path matches; the original weights stay frozen.

    A [d_in, r] starts N(0, 1 / d_in), B [r, d_out] zero: an exact no-op at the start.

    Args:
        rank: r.
        alpha: scale, may be traced.
        targets: regular expression searched for in the paths of the matrices, or of stacks of them.
        merge: at each boundary add the product to W and start new factors; otherwise the same factors train on.
        first_task: "lora" adapts from the initial weights on (they should be pre-trained ones); "full" trains all
            parameters in the first task, which stands for the pre-training, and only the factors after it.
        used: how many of the r columns of A count, in place of r in alpha / r too; may be traced, so that ranks are
            swept within one program. Rounded, and at least 1. None: all.
        whole: regular expression of the paths of what trains itself, without factors, such as the new head of
            pre-trained weights; of first_task "lora". None: nothing.
    """
    count = None if used is None else jnp.clip(jnp.round(jnp.asarray(used, jnp.float32)), 1.0, float(rank))
    columns = None if count is None else (jnp.arange(rank, dtype=jnp.float32) < count).astype(jnp.float32)
    scale = alpha / (rank if count is None else count)

    def new(key: jax.Array, params: Params) -> Factors:
        return new_factors(key, params, rank, targets) | ({} if whole is None else whole_leaves(params, whole))

    def init(key: jax.Array, params: Params) -> tuple[Params, Trainable]:
        made = new(key, params)
        return ((), LoraState(params, made)) if first_task == "full" else (params, LoraState((), made))

    def effective(base: Params, trainable: Trainable, task: jax.Array) -> Params:
        return plus_products(trainable.first if first_task == "full" else base, trainable.factors, scale, columns)

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
        fresh = new(key, merged)
        return ((), LoraState(merged, fresh)) if first_task == "full" else (merged, LoraState((), fresh))

    return Adapter(init=init, effective=effective, mask=mask, end_task=end_task, identity=False)


@config
class Used:
    """A rank below that of the factors: `Lora(rank=16, used=Used(rank=4))` trains as rank 4, in the program of 16."""

    rank: float = traced(1.0, low=1.0)


@config
class Lora:
    """See `lora`. The default trains the first task fully: image models here start from random weights."""

    rank: int = static(4, low=1)
    alpha: float = traced(16.0)
    targets: str = static("kernel")
    merge: bool = static(False)
    first_task: str = static("full", choices=FIRST_TASKS)
    used: Used | None = child(optional=Used, later=True)
    whole: str | None = static(None, later=True)

    @property
    def needs_boundaries(self) -> bool:
        return self.merge or self.first_task == "full"

    def build(self, num_tasks: int = 1) -> Adapter:
        return lora(
            self.rank, self.alpha, self.targets, merge=self.merge, first_task=self.first_task,
            used=None if self.used is None else self.used.rank, whole=self.whole,
        )  # fmt: skip

    def check(self, params: Params) -> None:
        """Raises UserError when no matrix matches, or the rank is larger than a matched matrix allows; or where `whole`
        names nothing, or has a first task that trains everything.
        """
        check_factors(params, self.rank, self.targets)
        if self.whole is not None:
            self._check_whole(params, self.whole)

    def _check_whole(self, params: Params, pattern: str) -> None:
        if self.first_task != "lora":
            raise UserError(
                f"adapter.whole: was given {pattern!r} beside first_task {self.first_task!r}, in which all parameters "
                f"train; use first_task='lora', or leave whole out"
            )
        try:
            if whole_leaves(params, pattern):
                return
        except (re.error, TypeError) as error:
            raise UserError(f"adapter.whole: {pattern!r} is not a regular expression: {error}") from error
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise UserError(f"adapter.whole: {pattern!r} matches none of the parameters {', '.join(names)}")

"""LoRA per task: one pair of low-rank factors for each task, or one more with each task.

Hu et al. 2021, arXiv 2106.09685; the sum over tasks as in Wang et al. 2023, arXiv 2310.14152.
"""

import jax
import jax.numpy as jnp

from cl_jax.adapters.adapter import Adapter, Trainable
from cl_jax.adapters.factors import FIRST_TASKS, Factors, LoraState, check_factors, new_factors, plus_products
from cl_jax.config import config, static, traced
from cl_jax.model import Params


def task_lora(
    rank: int,
    num_tasks: int,
    alpha: jax.Array | float = 16.0,
    targets: str = "kernel",
    *,
    cumulative: bool = False,
    first_task: str = "lora",
) -> Adapter:
    """W_t = W + (alpha / r) A_t B_t for every matrix whose path matches; task t trains A_t and B_t alone.

    Cumulative: W_t = W + (alpha / r) sum_{i <= t} A_i B_i, so that a task builds on those before it.

    Either way a task's own weights never change after it: nothing is forgotten, and its number has to be known at
    test time. A_t [d_in, r] starts N(0, 1 / d_in), B_t [r, d_out] zero.

    Args:
        rank: r.
        num_tasks: T; the factors are stacked, [T, d_in, r] and [T, r, d_out].
        alpha: scale, may be traced.
        targets: regular expression searched for in the paths of the two-dimensional leaves.
        cumulative: see above. Memory is the same; a step multiplies matrices of rank T r.
        first_task: "lora" adapts from the initial weights on (they should be pre-trained ones); "full" trains all
            parameters in the first task, which stands for the pre-training, and its factors never.
    """

    def init(key: jax.Array, params: Params) -> tuple[Params, Trainable]:
        def one_task(task: jax.Array) -> Factors:
            return new_factors(jax.random.fold_in(key, task), params, rank, targets)

        made = jax.vmap(one_task)(jnp.arange(num_tasks, dtype=jnp.int32))
        return ((), LoraState(params, made)) if first_task == "full" else (params, LoraState((), made))

    def effective(base: Params, trainable: Trainable, task: jax.Array) -> Params:
        chosen = up_to(trainable.factors, task) if cumulative else jax.tree.map(lambda f: f[task], trainable.factors)
        return plus_products(trainable.first if first_task == "full" else base, chosen, alpha / rank)

    def mask(base: Params, task: jax.Array, updates: Trainable) -> Trainable:
        trains = jnp.arange(num_tasks, dtype=jnp.int32) == task
        if first_task == "full":
            trains = trains & (task > 0)
        first = jax.tree.map(lambda u: jnp.where(task > 0, jnp.zeros_like(u), u), updates.first)
        return LoraState(first, jax.tree.map(lambda u: jnp.where(trains[:, None, None], u, 0.0), updates.factors))

    return Adapter(init=init, effective=effective, mask=mask, identity=False, per_task=True)


def up_to(factors: Factors, task: jax.Array) -> Factors:
    """Factors of rank T r whose product is the sum of those of tasks 0 to `task`."""

    def joined(a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
        counts = jnp.arange(len(a), dtype=jnp.int32) <= task
        a = jnp.where(counts[:, None, None], a, 0.0)
        return {"a": jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1), "b": b.reshape(-1, b.shape[2])}

    return {name: joined(**pair) for name, pair in factors.items()}


@config
class TaskLora:
    """See `task_lora`. The default trains the first task fully: image models here start from random weights."""

    rank: int = static(4, low=1)
    alpha: float = traced(16.0)
    targets: str = static("kernel")
    cumulative: bool = static(False)
    first_task: str = static("full", choices=FIRST_TASKS)

    def build(self, num_tasks: int = 1) -> Adapter:
        return task_lora(
            self.rank, num_tasks, self.alpha, self.targets, cumulative=self.cumulative, first_task=self.first_task
        )

    def check(self, params: Params) -> None:
        """Raises UserError when no matrix matches, or the rank is larger than a matched matrix allows."""
        check_factors(params, self.rank, self.targets)

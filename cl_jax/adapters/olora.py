"""O-LoRA: each task's low-rank update lives in a subspace orthogonal to those before it.

Wang et al. 2023, arXiv 2310.14152.
"""

import jax
import jax.numpy as jnp

from cl_jax.adapters.adapter import Adapter, Trainable
from cl_jax.adapters.factors import FIRST_TASKS, check_factors
from cl_jax.adapters.task_lora import task_lora
from cl_jax.config import config, static, traced
from cl_jax.model import Params


def olora(
    rank: int,
    num_tasks: int,
    strength: jax.Array | float = 0.5,
    alpha: jax.Array | float = 16.0,
    targets: str = "kernel",
    *,
    first_task: str = "lora",
) -> Adapter:
    """W_t = W + (alpha / r) sum_{i <= t} A_i B_i; task t trains A_t and B_t with the task loss plus

        strength * sum over matrices sum_{i < t} |A_i^T A_t|^2,    the squared Frobenius norm, no 1/2.

    An input's change of output is x A_i B_i: where the columns of A_t are orthogonal to those of A_i, no direction of
    inputs is read by both. All tasks are evaluated with the one sum, so a task's number need not be known at test time.

    The penalty is of the factors, of which W_t knows only the products, so it is the adapter's and no method's. The
    authors' code sums absolute values of A_i^T A_t where the paper's equation has squares, which is meant here, and can
    add a norm of A_t and B_t, which is not here.

    Args:
        rank: r.
        num_tasks: T; the factors are stacked, [T, d_in, r] and [T, r, d_out].
        strength: the paper's lambda_1, may be traced; 0 adds up unconstrained factors.
        alpha, targets: as in `lora`.
        first_task: "lora" or "full", see `cl_jax.adapters.task_lora.task_lora`; the fully trained first task takes no
            subspace.
    """
    adapter = task_lora(rank, num_tasks, alpha, targets, cumulative=True, first_task=first_task)

    def penalty(base: Params, trainable: Trainable, task: jax.Array) -> jax.Array:
        number = jnp.arange(num_tasks, dtype=jnp.int32)
        before = (number < task) & (number >= int(first_task == "full"))

        def overlap(a: jax.Array) -> jax.Array:
            products = jnp.einsum("tdr,ds->trs", jax.lax.stop_gradient(a), a[task])
            return jnp.sum(jnp.where(before[:, None, None], products**2, 0.0))

        return strength * sum((overlap(pair["a"]) for pair in trainable.factors.values()), jnp.zeros(()))

    return adapter._replace(penalty=penalty, per_task=False)


@config
class Olora:
    """See `olora`. The default trains the first task fully: image models here start from random weights."""

    rank: int = static(4, low=1)
    strength: float = traced(0.5)
    alpha: float = traced(16.0)
    targets: str = static("kernel")
    first_task: str = static("full", choices=FIRST_TASKS)

    def build(self, num_tasks: int = 1) -> Adapter:
        return olora(self.rank, num_tasks, self.strength, self.alpha, self.targets, first_task=self.first_task)

    def check(self, params: Params) -> None:
        """Raises UserError when no matrix matches, or the rank is larger than a matched matrix allows."""
        check_factors(params, self.rank, self.targets)

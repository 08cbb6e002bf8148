"""Memory aware synapses: a weight is important if the outputs depend on it; no label is needed.

Aljundi, Babiloni, Elhoseiny, Rohrbach and Tuytelaars 2018, arXiv 1711.09601. Conventions read in their code
(rahafaljundi/MAS-Memory-Aware-Synapses).
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch, Task
from cl_jax.config import config, static, traced
from cl_jax.fisher import sum_of_magnitudes
from cl_jax.layer_gradients import absolute, chunk_sizes
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.model import Model, Params
from cl_jax.per_example import mean_over_examples, subset
from cl_jax.quadratic import weighted_distance


class MasState(NamedTuple):
    """All like params."""

    importance: Params  # float32, Omega of all finished tasks; 0 before the first boundary
    anchor: Params  # weights at the last boundary


def output_sensitivity(
    model: Model,
    params: Params,
    examples: Any,
    *,
    valid: jax.Array | None = None,
    render: Callable[[Any], Batch] = lambda examples: examples,
) -> Params:
    """1/n sum_i |d (sum_c f_c(x_i)^2) / d theta|, elementwise, over the n valid examples.

    f are the logits; an example's inactive outputs do not count. The absolute value is of each example's own gradient.
    Labels and weights of the batch do not matter.

    Args:
        params: float; the model's tree.
        examples: pytree of arrays [N, ...]; `render` turns each chunk of it, never all N, into a `Batch`.
        valid: bool [N]; the other rows are never rendered. None: all.

    Returns:
        float32, a tree like params; zeros where no example is valid.
    """

    def one_chunk(batch: Batch, index_B: jax.Array, weight_B: jax.Array) -> tuple[Params, jax.Array]:
        f_BxC = model.apply(params, batch.x)
        if batch.active is not None:
            f_BxC = jnp.where(batch.active, f_BxC, jnp.zeros_like(f_BxC))

        def derivative(log_p_BxC: jax.Array) -> tuple[jax.Array, jax.Array]:
            return 2.0 * f_BxC[None], weight_B[None]

        return sum_of_magnitudes(model, params, batch, derivative, absolute), jnp.sum(weight_B)

    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    return mean_over_examples(
        one_chunk, start, examples, valid, chunk_sizes(model, params, examples, render), render
    )  # fmt: skip


def mas(
    model: Model,
    strength: jax.Array | float,
    *,
    decay: jax.Array | float = 1.0,
    num_examples: int | None = None,
    render: Callable[[Any], Batch] = lambda examples: examples,
) -> Method:
    """penalty = strength * sum_i Omega_i (theta_i - anchor_i)^2, without a 1/2, as in the authors' code.

    At the boundary of task k, with Omega_k the `output_sensitivity` on its training inputs,

        Omega <- decay * Omega + Omega_k,  anchor <- theta

    which for a decay of 1 is the sum over tasks. This is the paper's global variant. Where the absolute value is taken
    of a whole batch's gradient, as many implementations do, gradients of opposite signs cancel; those of Avalanche and
    FACIL besides use the norm of the output, not its square, an average of old and new, and a 1/2.

    Args:
        model: whose logits are f.
        strength: lambda, may be traced.
        decay: in [0, 1], may be traced.
        num_examples: use that many of the task's examples, drawn without replacement; None: all.
        render: turns `Task.examples` into a `Batch`.

    Source: Aljundi et al. 2018, arXiv 1711.09601, equations 2 and 3.
    """

    def init(key: jax.Array, params: Params, batch: Batch) -> MasState:
        return MasState(jax.tree.map(jnp.zeros_like, params), params)

    def penalty(state: MasState, params: Params, batch: Batch) -> jax.Array:
        return strength * weighted_distance(state.importance, params, state.anchor)

    def end_task(key: jax.Array, state: MasState, params: Params, task: Task) -> MasState:
        examples, valid = subset(key, task.examples, task.valid, num_examples)
        new = output_sensitivity(model, params, examples, valid=valid, render=render)
        return MasState(jax.tree.map(lambda old, add: decay * old + add, state.importance, new), params)

    return Method(init=init, penalty=penalty, end_task=end_task)


@config
class Mas:
    """See `mas`."""

    needs_labels: ClassVar[bool] = True
    waits_for_boundary: ClassVar[bool] = True  # no importance before it

    strength: float = traced(1.0)
    decay: float = traced(1.0, high=1.0)
    num_examples: int | None = static(None, low=1)

    def build(self, context: Context) -> Method:
        return mas(
            context.model, self.strength, decay=self.decay, num_examples=self.num_examples, render=context.render_task
        )

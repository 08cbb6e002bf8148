"""Synaptic intelligence: importance is a weight's share in the fall of the loss on its path.

Zenke, Poole and Ganguli 2017, arXiv 1703.04200. Conventions read in their code (ganguli-lab/pathint) and in those that
the published comparisons used: GMvandeVen/continual-learning, GT-RIPL/Continual-Learning-Benchmark, aimagelab/mammoth.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cl_jax import errors
from cl_jax.batch import Batch, Task
from cl_jax.config import config, static, traced
from cl_jax.method import Method, StepInfo
from cl_jax.methods.context import Context
from cl_jax.model import Params
from cl_jax.quadratic import weighted_distance

CLIPS = ("sum", "task", "none")
GRADIENTS = ("task", "total")


class SiState(NamedTuple):
    """All like params, float32."""

    importance: Params  # Omega, of all finished tasks; 0 before the first boundary
    path: Params  # omega, of the present task so far
    anchor: Params  # weights at the last boundary; at first the initial ones


def si(
    strength: jax.Array | float, *, xi: jax.Array | float = 0.1, clip: str = "sum", gradient: str = "task"
) -> Method:
    """penalty = strength * sum_i Omega_i (theta_i - anchor_i)^2, without a 1/2: `strength` is the paper's c.

    Along the steps t of task k, and at its boundary, where `anchor` is still that of the boundary before (for the first
    task the initial weights):

        omega_i = -sum_t g_i(t) (theta_i(t + 1) - theta_i(t))
        Omega_i <- max(0, Omega_i + omega_i / ((theta_i - anchor_i)^2 + xi))
        anchor <- theta, omega <- 0

    g is the gradient of the task loss at theta(t), on the batch that was trained on, and the change is the one that was
    made, whatever optimizer, learning rate, penalty or projection made it.

    Args:
        strength: c, may be traced.
        xi: bounds Omega where a weight hardly moved; above 0, may be traced.
        clip: "sum": max(0, .) of the sum, as written above (Zenke's code). "task": of each task's term, Omega_i +
            max(0, omega_i / (...)). "none": neither, so Omega, and with it the penalty, may be negative (GMvandeVen,
            GT-RIPL and Mammoth).
        gradient: "task": as said. "total": g also has the gradient of this penalty, 2 c Omega (theta - anchor), as in
            GMvandeVen's code, which reads what the optimizer was given.

    Raises:
        UserError: an unknown clip or gradient.

    Source: Zenke et al. 2017, arXiv 1703.04200, equations 3 to 5.
    """
    if clip not in CLIPS:
        raise errors.unknown("SI clip", clip, CLIPS)
    if gradient not in GRADIENTS:
        raise errors.unknown("SI gradient", gradient, GRADIENTS)

    def init(key: jax.Array, params: Params, batch: Batch) -> SiState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return SiState(importance=zeros, path=zeros, anchor=params)

    def penalty(state: SiState, params: Params, batch: Batch) -> jax.Array:
        return strength * weighted_distance(state.importance, params, state.anchor)

    def after_step(key: jax.Array, state: SiState, info: StepInfo) -> SiState:
        def one(
            path: jax.Array, g: jax.Array, before: jax.Array, after: jax.Array, importance: jax.Array, anchor: jax.Array
        ) -> jax.Array:
            if gradient == "total":
                g = g + 2.0 * strength * importance * (before - anchor)
            return path - g * (after - before)

        path = jax.tree.map(
            one, state.path, info.gradient, info.before, info.after, state.importance, state.anchor
        )  # fmt: skip
        return state._replace(path=path)

    def end_task(key: jax.Array, state: SiState, params: Params, task: Task) -> SiState:
        def one(importance: jax.Array, path: jax.Array, p: jax.Array, anchor: jax.Array) -> jax.Array:
            new = path / ((p - anchor) ** 2 + xi)
            if clip == "task":
                return importance + jnp.maximum(new, 0.0)
            return importance + new if clip == "none" else jnp.maximum(importance + new, 0.0)

        importance = jax.tree.map(one, state.importance, state.path, params, state.anchor)
        return SiState(importance, jax.tree.map(jnp.zeros_like, params), params)

    return Method(init=init, penalty=penalty, after_step=after_step, end_task=end_task)


@config
class Si:
    """See `si`."""

    # No `waits_for_boundary`: task 1 trains as fine-tuning does, but its path is in the state, which thus has to be
    # carried through that task.

    strength: float = traced(0.1)
    xi: float = traced(0.1, low=1e-12)
    clip: str = static("sum", choices=CLIPS)
    gradient: str = static("task", choices=GRADIENTS)

    def build(self, context: Context) -> Method:
        return si(self.strength, xi=self.xi, clip=self.clip, gradient=self.gradient)

"""Weight interpolation: a point on the line from the weights before a task to those after it (WiSE-FT)."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch, Task
from cl_jax.config import config, static, traced
from cl_jax.method import Method, StepInfo
from cl_jax.methods.context import Context
from cl_jax.model import Params


class InterpolationState(NamedTuple):
    """Where the task began."""

    start: Params  # theta_0 of the task in training, like params
    before: Any  # theta_0 of the task that has just ended, like params; () where it goes on from the interpolated ones
    at_boundary: jax.Array  # bool (): no step since the last boundary
    present: jax.Array  # bool (): a boundary has been passed


def interpolation(tau: jax.Array | float, *, continue_from: bool = False) -> Method:
    """Evaluates theta_0 + tau * (theta - theta_0), theta_0 the weights at the last boundary; the first task has none,
    and shows theta.

    Small tau keeps what was known, tau 1 is what trains, and more extrapolates. Unless `continue_from`, training does
    not depend on tau and neither does the state, so one training gives the whole curve of old tasks against new:
    `jax.vmap(lambda tau: accuracy(interpolation(tau).evaluated(state, params)))(taus)`.

    Args:
        tau: may be traced.
        continue_from: the next task starts from the interpolated weights, which are then its theta_0.

    Source: Wortsman et al. 2022, arXiv 2109.01903, where theta_0 are pre-trained weights and tau is called alpha.
    """

    def mixed(tau: jax.Array | float, origin: Params, params: Params) -> Params:
        return jax.tree.map(lambda o, p: (1.0 - tau) * o + tau * p, origin, params)

    def init(key: jax.Array, params: Params, batch: Batch) -> InterpolationState:
        no = jnp.zeros((), bool)
        return InterpolationState(params, () if continue_from else params, no, no)

    def after_step(key: jax.Array, state: InterpolationState, info: StepInfo) -> InterpolationState:
        return state._replace(at_boundary=jnp.zeros((), bool))

    def end_task(key: jax.Array, state: InterpolationState, params: Params, task: Task) -> InterpolationState:
        yes = jnp.ones((), bool)
        if continue_from:
            return InterpolationState(mixed(_tau(tau, state.present), state.start, params), (), yes, yes)
        before = jax.tree.map(lambda s, p: jnp.where(state.present, s, p), state.start, params)
        return InterpolationState(params, before, yes, yes)

    def restart(key: jax.Array, state: InterpolationState, params: Params) -> Params:
        return state.start

    def evaluated(state: InterpolationState, params: Params) -> Params:
        within = _tau(tau, state.present)
        shown = mixed(within, state.start, params)
        ended = state.start if continue_from else mixed(within, state.before, params)
        return jax.tree.map(lambda e, s: jnp.where(state.at_boundary, e, s), ended, shown)

    method = Method(init=init, after_step=after_step, end_task=end_task, evaluated=evaluated)
    return method._replace(restart=restart) if continue_from else method


def _tau(tau: jax.Array | float, present: jax.Array) -> jax.Array:
    """1 before the first boundary."""
    return jnp.where(present, jnp.asarray(tau, jnp.float32), 1.0)


@config
class Interpolation:
    """See `interpolation`."""

    waits_for_boundary: ClassVar[bool] = True  # the first task has no theta_0
    evaluates_others: ClassVar[bool] = True

    tau: float = traced(0.5)
    continue_from: bool = static(False)

    @property
    def moves_weights(self) -> bool:
        return self.continue_from

    def build(self, context: Context) -> Method:
        return interpolation(self.tau, continue_from=self.continue_from)

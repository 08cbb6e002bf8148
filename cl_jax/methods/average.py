"""Weight averaging: what is evaluated is a running mean of the weights, what trains does not notice."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch, Task
from cl_jax.config import config, static, traced
from cl_jax.method import Method, StepInfo
from cl_jax.methods.context import Context
from cl_jax.model import Params


class AverageState(NamedTuple):
    """The mean so far."""

    mean: Params  # like params
    total: jax.Array  # float32 (): what the steps so far weigh together, the newest one 1; 0: the next is the first


def average(decay: jax.Array | float, *, reset: bool = False) -> Method:
    """mean_t = sum_s decay^(t - s) theta_s / sum_s decay^(t - s), theta_s the weights after step s = 1 ... t.

    That is the exponential moving average m <- decay * m + (1 - decay) * theta from m = 0 with Adam's bias correction,
    m / (1 - decay^t): the initial weights have no part in it, however early it is looked at. decay 0 shows theta
    itself, decay 1 the plain mean of all steps. Kept as n <- decay * n + 1, mean <- (1 - 1 / n) * mean + 1 / n * theta,
    which holds for decay 1 too. Before any step the mean is the initial weights.

    Args:
        decay: in [0, 1], may be traced; the mean reaches back over about 1 / (1 - decay) steps.
        reset: forget the steps of a task after its boundary, so that every task's mean is of its own steps alone.

    Source: Polyak and Juditsky 1992, SIAM Journal on Control and Optimization 30 (decay 1); Tarvainen and Valpola 2017,
    arXiv 1703.01780 (exponential); Soutif-Cormerais et al. 2023, arXiv 2306.16817 (continual learning).
    """

    def init(key: jax.Array, params: Params, batch: Batch) -> AverageState:
        return AverageState(params, jnp.zeros((), jnp.float32))

    def after_step(key: jax.Array, state: AverageState, info: StepInfo) -> AverageState:
        total = decay * state.total + 1.0
        share = 1.0 / total
        # Not mean + share * (theta - mean): a share of 1 has to give theta itself.
        mean = jax.tree.map(lambda m, p: (1.0 - share) * m + share * p, state.mean, info.after)
        return AverageState(mean, total)

    def end_task(key: jax.Array, state: AverageState, params: Params, task: Task) -> AverageState:
        return state._replace(total=jnp.zeros_like(state.total)) if reset else state

    def evaluated(state: AverageState, params: Params) -> Params:
        return state.mean

    return Method(init=init, after_step=after_step, end_task=end_task, evaluated=evaluated)


@config
class Average:
    """See `average`."""

    evaluates_others: ClassVar[bool] = True

    decay: float = traced(0.999, high=1.0)
    reset: bool = static(False)

    @property
    def needs_boundaries(self) -> bool:
        return self.reset

    def build(self, context: Context) -> Method:
        return average(self.decay, reset=self.reset)

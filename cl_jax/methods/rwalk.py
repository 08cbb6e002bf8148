"""Riemannian walk: the Fisher, plus what a weight gained per distance that the model moved.

Chaudhry, Dokania, Ajanthan and Torr 2018, arXiv 1801.10112. Conventions read in their code (facebookresearch/agem).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cl_jax import errors
from cl_jax.batch import Batch, Task
from cl_jax.config import config, static, traced
from cl_jax.fisher import KINDS, diagonal_fisher
from cl_jax.layer_gradients import square
from cl_jax.method import Method, StepInfo
from cl_jax.methods.context import Context
from cl_jax.model import Model, Params
from cl_jax.quadratic import weighted_distance


class RwalkState(NamedTuple):
    """Trees are like params."""

    importance: Params  # what the penalty weighs by; 0 before the first boundary
    anchor: Params  # weights at the last boundary
    fisher: Params  # F, the running average
    score: Params  # s, averaged over the finished tasks
    task_score: Params  # of the present task's finished intervals, not clipped
    start: Params  # weights where the present interval starts
    squares: Params  # sum of the Fishers of its steps
    fall: Params  # of the loss, by its steps
    steps: jax.Array  # int32 (), of the present interval
    has_fisher: jax.Array  # bool (), whether any interval has finished
    has_score: jax.Array  # bool (), whether any task has


def rwalk(
    model: Model,
    strength: jax.Array | float,
    *,
    alpha: jax.Array | float = 0.9,
    interval: int = 10,
    damping: jax.Array | float = 1e-3,
    normalize: bool = True,
    kind: str = "batched",
    num_active: int | None = None,
) -> Method:
    """penalty = strength * sum_i (F_i + s_i) (theta_i - anchor_i)^2, without a 1/2 (equation 8).

    F and s are those of the last boundary, there brought to [0, 1] each, (x - min) / (max - min) over all parameters,
    if `normalize`. At the end of every `interval` steps, from t to t + D, and of a task's rest:

        (6)   F <- alpha mean_t F(t) + (1 - alpha) F                          the first time F = mean_t F(t)
        (7)   fall_i = -sum_t g_i(t) (theta_i(t + 1) - theta_i(t))
              s_i[task] += fall_i / (F_i / 2 (theta_i(t + D) - theta_i(t))^2 + damping)

    and at a boundary s <- (s + max(0, s[task])) / 2, in the first task s = max(0, s[task]). g is the gradient of the
    task loss alone; the changes are those that were made. F / 2 times a squared change is the divergence between the
    models before and after it, to second order.

    The authors' code has no 1/2 before that F, uses in the score the F from before the interval, takes max(0, .) of
    each interval's term, drops a task's rest, does not empty its sum of squares after an interval, and adds to the
    score half of it and of the new one.

    Args:
        model: of which F is the Fisher; only used by a kind other than "batched".
        strength: lambda, may be traced.
        alpha: weight of the new in F, in [0, 1], may be traced.
        interval: D, in steps.
        damping: the paper's epsilon, above 0, may be traced.
        normalize: as said; the paper's F and s differ by orders of magnitude.
        kind: of the Fisher F(t) of a step. "batched", the published one: (d L / d theta)^2 of the batch's mean loss,
            which is at hand. Others, of `cl_jax.fisher.diagonal_fisher`: of the step's incoming examples, one by one,
            for some more passes backward in each step.
        num_active: see `cl_jax.fisher.diagonal_fisher`.

    Raises:
        UserError: an unknown kind; interval below 1.

    Source: Chaudhry et al. 2018, arXiv 1801.10112, section 4; numbers of equations as in its ECCV version.
    """
    if kind not in KINDS:
        raise errors.unknown("Fisher kind", kind, KINDS)
    if interval < 1:
        raise errors.UserError(f"rwalk interval = {interval}; allowed: 1 or more steps")

    def init(key: jax.Array, params: Params, batch: Batch) -> RwalkState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        no = jnp.zeros((), bool)
        return RwalkState(zeros, params, zeros, zeros, zeros, params, zeros, zeros, jnp.zeros((), jnp.int32), no, no)

    def penalty(state: RwalkState, params: Params, batch: Batch) -> jax.Array:
        return strength * weighted_distance(state.importance, params, state.anchor)

    def step_fisher(key: jax.Array, info: StepInfo) -> Params:
        if kind == "batched":
            return jax.tree.map(square, info.gradient)
        weight = info.incoming.weight
        valid = None if weight is None else weight > 0
        return diagonal_fisher(
            key, model, info.before, info.incoming, kind=kind, valid=valid, num_active=num_active
        )  # fmt: skip

    def after_step(key: jax.Array, state: RwalkState, info: StepInfo) -> RwalkState:
        def fall(sums: jax.Array, g: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
            return sums - g * (after - before)

        state = state._replace(
            squares=jax.tree.map(jnp.add, state.squares, step_fisher(key, info)),
            fall=jax.tree.map(fall, state.fall, info.gradient, info.before, info.after),
            steps=state.steps + 1,
        )
        return _where(state.steps == interval, finish_interval(state, info.after), state)

    def finish_interval(state: RwalkState, params: Params) -> RwalkState:
        share = 1.0 / jnp.maximum(state.steps, 1).astype(jnp.float32)
        rate = jnp.where(state.has_fisher, alpha, 1.0)

        def score(sums: jax.Array, fall: jax.Array, f: jax.Array, p: jax.Array, start: jax.Array) -> jax.Array:
            return sums + fall / (0.5 * f * (p - start) ** 2 + damping)

        fisher = jax.tree.map(
            lambda old, squares: rate * (share * squares) + (1.0 - rate) * old, state.fisher, state.squares
        )
        zeros = jax.tree.map(jnp.zeros_like, params)
        return state._replace(
            fisher=fisher,
            task_score=jax.tree.map(score, state.task_score, state.fall, fisher, params, state.start),
            start=params,
            squares=zeros,
            fall=zeros,
            steps=jnp.zeros((), jnp.int32),
            has_fisher=jnp.ones((), bool),
        )

    def end_task(key: jax.Array, state: RwalkState, params: Params, task: Task) -> RwalkState:
        state = _where(state.steps > 0, finish_interval(state, params), state)
        kept = jnp.where(state.has_score, 0.5, 0.0)
        score = jax.tree.map(
            lambda old, new: kept * old + (1.0 - kept) * jnp.maximum(new, 0.0), state.score, state.task_score
        )
        parts = (_scaled(state.fisher), _scaled(score)) if normalize else (state.fisher, score)
        return state._replace(
            importance=jax.tree.map(jnp.add, *parts),
            anchor=params,
            score=score,
            task_score=jax.tree.map(jnp.zeros_like, params),
            start=params,
            has_score=jnp.ones((), bool),
        )

    return Method(init=init, penalty=penalty, after_step=after_step, end_task=end_task)


def _where(condition: jax.Array, yes: RwalkState, no: RwalkState) -> RwalkState:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _scaled(tree: Params) -> Params:
    """(x - min) / (max - min) over all leaves; 0 where they are all equal."""
    leaves = jax.tree.leaves(tree)
    low = jnp.min(jnp.stack([jnp.min(leaf) for leaf in leaves]))
    width = jnp.max(jnp.stack([jnp.max(leaf) for leaf in leaves])) - low
    share = jnp.where(width > 0, 1.0 / jnp.where(width > 0, width, 1.0), 0.0)
    return jax.tree.map(lambda leaf: share * (leaf - low), tree)


@config
class Rwalk:
    """See `rwalk`."""

    # No `waits_for_boundary`: the Fisher and the score of task 1 build up in the state from the first step on.

    strength: float = traced(1.0)
    alpha: float = traced(0.9, high=1.0)
    interval: int = static(10, low=1)
    damping: float = traced(1e-3, low=1e-12)
    normalize: bool = static(True)
    kind: str = static("batched", choices=KINDS)

    def build(self, context: Context) -> Method:
        return rwalk(
            context.model, self.strength, alpha=self.alpha, interval=self.interval, damping=self.damping,
            normalize=self.normalize, kind=self.kind, num_active=context.num_active,
        )  # fmt: skip

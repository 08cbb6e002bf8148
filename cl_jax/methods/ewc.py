"""Elastic weight consolidation: weights that matter to old tasks are held by springs.

Kirkpatrick et al. 2017, arXiv 1612.00796 (one penalty per task); Schwarz et al. 2018, arXiv 1805.06370, and
Huszar 2018, arXiv 1712.03847 (online).
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch, Task
from cl_jax.config import config, static, traced
from cl_jax.fisher import KINDS, diagonal_fisher
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.model import Model, Params
from cl_jax.per_example import subset
from cl_jax.quadratic import weighted_distance

ANCHORS = ("per_task", "online")


class EwcState(NamedTuple):
    """One quadratic, whatever the number of tasks."""

    fisher: Params  # float32, like params: total precision, without the strength
    anchor: Params  # like params: where the quadratic has its minimum
    offset: jax.Array  # float32 (): height of the minimum, so that the penalty's value is exact


def ewc(
    model: Model,
    strength: jax.Array | float,
    *,
    anchors: str = "per_task",
    decay: jax.Array | float = 1.0,
    kind: str = "exact",
    samples: int = 1,
    batch_size: int = 128,
    num_active: int | None = None,
    num_examples: int | None = None,
    proximal: bool = False,
    render: Callable[[Any], Batch] = lambda examples: examples,
) -> Method:
    """penalty = strength / 2 * sum_i F_i (theta_i - anchor_i)^2, with the 1/2, F the mean over a task's examples.

    per_task: strength / 2 * sum_k sum_i F_k,i (theta_i - theta*_k,i)^2, one spring per finished task k. A sum of
        quadratics is one quadratic: precision F = sum_k F_k, anchor = sum_k F_k theta*_k / F, plus an offset. It is
        kept as that, updated at each boundary by anchor += F_k / (F + F_k) (theta* - anchor): equal to the list of
        all springs, in memory and time that do not grow with the number of tasks.
    online: F <- decay * F + F_k, anchor <- theta* (the newest weights are the anchor of all).

    Args:
        model: gives the predictive distribution of which F is the Fisher information.
        strength: lambda, may be traced.
        anchors: "per_task" or "online".
        decay: online's gamma in [0, 1].
        kind, samples, batch_size, num_active: see `cl_jax.fisher.diagonal_fisher`.
        num_examples: use that many of the task's examples, drawn without replacement; None: all.
        proximal: instead of a penalty take, after the optimizer's step of size e, the exact minimiser of
            1/2 |theta - theta'|^2 + e * penalty(theta), theta = theta' - c / (1 + c) (theta' - anchor) with
            c = e * strength * F: stable at any strength, where a gradient step diverges once e * strength * F > 2.
        render: turns `Task.examples` into a `Batch`.
    """

    def init(key: jax.Array, params: Params, batch: Batch) -> EwcState:
        return EwcState(jax.tree.map(jnp.zeros_like, params), params, jnp.zeros((), jnp.float32))

    def penalty(state: EwcState, params: Params, batch: Batch) -> jax.Array:
        return 0.5 * strength * (weighted_distance(state.fisher, params, state.anchor) + state.offset)

    def proximal_step(state: EwcState, params: Params, step_size: jax.Array) -> Params:
        def one(p: jax.Array, f: jax.Array, a: jax.Array) -> jax.Array:
            c = step_size * strength * f
            return p - c / (1.0 + c) * (p - a)

        return jax.tree.map(one, params, state.fisher, state.anchor)

    def end_task(key: jax.Array, state: EwcState, params: Params, task: Task) -> EwcState:
        key_rows, key_labels = jax.random.split(key)
        examples, valid = subset(key_rows, task.examples, task.valid, num_examples)
        new = diagonal_fisher(
            key_labels, model, params, examples,
            kind=kind, valid=valid, samples=samples, batch_size=batch_size, num_active=num_active, render=render,
        )  # fmt: skip
        if anchors == "online":
            fisher = jax.tree.map(lambda old, add: decay * old + add, state.fisher, new)
            return EwcState(fisher, params, state.offset)
        return _add_spring(state, new, params)

    if proximal:
        return Method(init=init, proximal=proximal_step, end_task=end_task)
    return Method(init=init, penalty=penalty, end_task=end_task)


def _add_spring(state: EwcState, fisher: Params, params: Params) -> EwcState:
    """The sum of the state's quadratic and sum_i fisher_i (theta_i - params_i)^2, as one quadratic."""
    total = jax.tree.map(jnp.add, state.fisher, fisher)

    def share(add: jax.Array, both: jax.Array) -> jax.Array:
        return jnp.where(both > 0, add / jnp.where(both > 0, both, 1.0), 0.0)

    def anchor(add: jax.Array, both: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
        return old + share(add, both) * (new - old)

    def height(add: jax.Array, both: jax.Array, before: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.sum(before * share(add, both) * (new - old) ** 2)

    heights = jax.tree.map(height, fisher, total, state.fisher, state.anchor, params)
    return EwcState(
        fisher=total,
        anchor=jax.tree.map(anchor, fisher, total, state.anchor, params),
        offset=state.offset + sum(jax.tree.leaves(heights), jnp.zeros(())),
    )


@config
class Ewc:
    """See `ewc`."""

    waits_for_boundary: ClassVar[bool] = True  # no anchor before it

    strength: float = traced(1.0)
    decay: float = traced(1.0, high=1.0)
    anchors: str = static("per_task", choices=ANCHORS)
    kind: str = static("exact", choices=KINDS)
    samples: int = static(1, low=1)
    batch_size: int = static(128, low=1)
    num_examples: int | None = static(None, low=1)
    proximal: bool = static(False)

    def build(self, context: Context) -> Method:
        return ewc(
            context.model, self.strength, anchors=self.anchors, decay=self.decay, kind=self.kind,
            samples=self.samples, batch_size=self.batch_size, num_active=context.num_active,
            num_examples=self.num_examples, proximal=self.proximal, render=context.render_task,
        )  # fmt: skip

"""Online Laplace: springs between a layer's weights too, by Kronecker factors (KFAC-EWC).

Ritter, Botev and Barber 2018, arXiv 1805.07810; Kao et al. 2021, arXiv 2106.08085 (`nearest`, as in
GMvandeVen/continual-learning). The factors: Martens and Grosse 2015, arXiv 1503.05671.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax import errors
from cl_jax.batch import Batch, Task
from cl_jax.config import config, static, traced
from cl_jax.fisher import diagonal_fisher
from cl_jax.kfac import Factors, kronecker_factors
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.model import Model, Params
from cl_jax.per_example import LABELS, subset
from cl_jax.quadratic import weighted_distance

ACCUMULATIONS = ("pooled", "nearest", "per_task")


class LaplaceState(NamedTuple):
    """One Gaussian around the newest weights; its precision without the strength."""

    factors: dict[str, Factors]  # by layer, [K, ...]: their products' sum over K, which is 1 or the number of tasks
    rest: Params  # float32, diagonal Fisher of the layers that have no factors; {} where all have
    anchor: Params  # weights at the last boundary
    weight: jax.Array  # float32 (), sum of the finished tasks' weights


def laplace(
    model: Model,
    strength: jax.Array | float,
    *,
    accumulation: str = "pooled",
    num_tasks: int | None = None,
    decay: jax.Array | float = 1.0,
    kind: str = "exact",
    samples: int = 1,
    num_active: int | None = None,
    num_examples: int | None = None,
    render: Callable[[Any], Batch] = lambda examples: examples,
) -> Method:
    """penalty = strength / 2 * sum over layers vec(D)^T H vec(D), D = theta - anchor, anchor = the newest boundary's.

    D is a layer's kernel [d_in, d_out] with the bias as a last row, so vec(D)^T (A (x) G) vec(D) = sum(D * (A D G)).
    H is the sum over tasks k of decay^age A_k (x) G_k, with the factors of `cl_jax.kfac.kronecker_factors`: means over
    the task's examples, as the loss is one, so that for tasks of equal size a strength of 1 is the Laplace
    approximation itself. A sum of Kronecker products is none; what is kept of it is, by `accumulation`:

        pooled: (1/n sum_k w_k A_k) (x) (sum_k w_k G_k), w_k = decay^age, n = sum_k w_k: factors of all tasks' examples
            together. Exact where all A_k are equal, or all G_k; the approximation that makes factors of one task's
            examples is made once more.
        nearest: (A + A_k / c) (x) (G + c G_k), c^2 = tr(G) tr(A_k) / (tr(G_k) tr(A)), A and G the old ones, A times
            decay: H and two mixed terms, of the least possible trace; for two equal tasks twice their H.
        per_task: the sum itself, in memory and time that grow with `num_tasks`.

    Layers without factors (normalisation, what the model's tap leaves out) have the diagonal Fisher as their H.

    Args:
        model: gives the predictive distribution; needs a `tap`.
        strength: lambda, may be traced.
        accumulation: "pooled", "nearest" or "per_task".
        num_tasks: for "per_task": the most tasks that end; further ones would be left out.
        decay: in [0, 1], may be traced.
        kind, samples, num_active: see `cl_jax.fisher.diagonal_fisher`; not "batched".
        num_examples: use that many of the task's examples, drawn without replacement; None: all.
        render: turns `Task.examples` into a `Batch`.

    Raises:
        UserError: an unknown accumulation or kind; "per_task" without the number of tasks. At `init`: a model that
            has no `tap`.
    """
    if accumulation not in ACCUMULATIONS:
        raise errors.unknown("Laplace accumulation", accumulation, ACCUMULATIONS)
    if kind not in LABELS:
        raise errors.unknown("Fisher kind", kind, LABELS)
    if accumulation == "per_task" and (num_tasks is None or num_tasks < 1):
        raise errors.UserError(f"laplace num_tasks = {num_tasks}: per_task needs the number of tasks, 1 or more")
    rows = num_tasks if accumulation == "per_task" else 1

    def init(key: jax.Array, params: Params, batch: Batch) -> LaplaceState:
        shapes = jax.eval_shape(partial(kronecker_factors, key, model, params, kind="empirical"), batch)
        factors = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), jnp.float32), shapes)
        rest = {name: jax.tree.map(jnp.zeros_like, params[name]) for name in params if name not in factors}
        return LaplaceState(factors, rest, params, jnp.zeros((), jnp.float32))

    def penalty(state: LaplaceState, params: Params, batch: Batch) -> jax.Array:
        now, then = ({name: tree[name] for name in state.rest} for tree in (params, state.anchor))
        total = 0.5 * weighted_distance(state.rest, now, then)
        for name, factors in state.factors.items():
            total = total + _half_square(factors, _matrix(params[name]) - _matrix(state.anchor[name]))
        return strength * total

    def end_task(key: jax.Array, state: LaplaceState, params: Params, task: Task) -> LaplaceState:
        key_rows, key_labels, key_rest = jax.random.split(key, 3)
        examples, valid = subset(key_rows, task.examples, task.valid, num_examples)
        options: Any = dict(kind=kind, valid=valid, samples=samples, num_active=num_active, render=render)
        new = kronecker_factors(key_labels, model, params, examples, **options)
        weight = decay * state.weight + 1.0
        factors = {name: add(state.factors[name], new[name], weight, task.number) for name in new}
        rest = state.rest
        if rest:
            fisher = diagonal_fisher(key_rest, model, params, examples, **options)
            rest = jax.tree.map(lambda old, one: decay * old + one, rest, {name: fisher[name] for name in rest})
        return LaplaceState(factors, rest, params, weight)

    def add(old: Factors, new: Factors, weight: jax.Array, number: jax.Array) -> Factors:
        if accumulation == "per_task":
            gradients = decay * old.gradients
            return Factors(
                old.activations.at[number].set(new.activations), gradients.at[number].set(new.gradients)
            )  # fmt: skip
        new = Factors(new.activations[None], new.gradients[None])
        if accumulation == "nearest":
            return _nearest(old._replace(activations=decay * old.activations), new)
        activations = old.activations + (new.activations - old.activations) / weight
        return Factors(activations, decay * old.gradients + new.gradients)

    return Method(init=init, penalty=penalty, end_task=end_task)


def _matrix(layer: Params) -> jax.Array:
    """[d_in + 1, d_out], or [d_in, d_out] where there is no bias."""
    kernel = layer["kernel"]
    return jnp.concatenate([kernel, layer["bias"][None]]) if "bias" in layer else kernel


def _half_square(factors: Factors, d: jax.Array) -> jax.Array:
    """1/2 sum_k sum(d * (A_k d G_k)), factors [K, ...]."""
    moved = jnp.einsum("kij,jo->kio", factors.activations, lax.stop_gradient(d))
    slope = jnp.einsum("kio,kop->ip", moved, factors.gradients)
    # The factors are symmetric, so this product is the gradient already: derived, it would be made once more.
    return jnp.sum(slope * d) - 0.5 * jnp.sum(slope * lax.stop_gradient(d))


def _nearest(old: Factors, new: Factors) -> Factors:
    """The Kronecker product that exceeds the sum of two by the least trace; [1, ...] each."""

    def trace(matrix: jax.Array) -> jax.Array:
        return jnp.trace(matrix[0])

    above = trace(old.gradients) * trace(new.activations)
    below = trace(new.gradients) * trace(old.activations)
    both = (above > 0) & (below > 0)  # else one of the two is 0, and the sum is the other
    ratio = jnp.where(both, jnp.sqrt(jnp.where(both, above, 1.0) / jnp.where(both, below, 1.0)), 1.0)
    return Factors(old.activations + new.activations / ratio, old.gradients + ratio * new.gradients)


@config
class Laplace:
    """See `laplace`."""

    waits_for_boundary: ClassVar[bool] = True  # no precision before it

    strength: float = traced(1.0)
    accumulation: str = static("pooled", choices=ACCUMULATIONS)
    decay: float = traced(1.0, high=1.0)
    kind: str = static("exact", choices=LABELS)
    samples: int = static(1, low=1)
    num_examples: int | None = static(None, low=1)

    def build(self, context: Context) -> Method:
        return laplace(
            context.model, self.strength, accumulation=self.accumulation, num_tasks=context.num_tasks,
            decay=self.decay, kind=self.kind, samples=self.samples, num_active=context.num_active,
            num_examples=self.num_examples, render=context.render_task,
        )  # fmt: skip

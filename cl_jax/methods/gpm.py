"""Gradient projection memory: no layer may change what it answers to the inputs that earlier tasks gave it.

Saha, Garg and Roy 2021, arXiv 2103.09762.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.batch import Batch, Task
from cl_jax.config import config, static, traced
from cl_jax.decompositions import eigh
from cl_jax.errors import UserError
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.methods.episodic_memory import random_rows
from cl_jax.model import Model, Params

EXACT = lax.Precision.HIGHEST  # an accelerator's default may keep three digits
LEAST = 1e-6  # of a layer's energy: a direction that holds less is float32's rounding


class GpmState(NamedTuple):
    """The inputs that each layer has to go on answering alike."""

    projector: dict[str, jax.Array]  # float32 [d_in, d_in] by layer: M M^T, M the orthonormal columns of the memory
    finished: jax.Array  # int32 (), tasks


def gpm(
    model: Model,
    *,
    threshold: jax.Array | float | Mapping[str, jax.Array | float] = 0.97,
    increase: jax.Array | float = 0.0,
    num_examples: int = 300,
    separate_heads: bool = False,
    render: Callable[[Any], Batch] = lambda examples: examples,
) -> Method:
    """dL/dW <- dL/dW - M M^T dL/dW for every kernel W [d_in, d_out] of the model, y = x W.

    The columns of M [d_in, r] are an orthonormal basis of what a layer mostly received in the tasks so far. At the end
    of a task let R [d_in, n P] be its inputs from n examples of the task (of a convolution the patches at all P
    positions) and R' = R - M M^T R what the memory misses of them. With the left singular vectors u_i of R' and its
    singular values s_1 >= s_2 >= ... the k first u_i join M, k the least number with

        |R|^2 - |R'|^2 + s_1^2 + ... + s_k^2 >= threshold |R|^2

    so that the memory holds that share of this task's energy too. (The authors' code takes one direction less than
    this after the first task, then as many as this.) Directions of less than 1e-6 of the energy are left out, whatever
    the threshold. For task t, from 0, it is threshold + t * increase.

    Biases, normalisation parameters, and all else that is no kernel told of by `Model.tap`, are free in the first task
    and frozen from then on: as the authors do with theirs; their networks have no biases. Where every task has outputs
    of its own, the last layer that `tap` tells of is left free, since what other tasks use of it has no gradient.

    Only plain gradient descent moves along the projected gradient: Adam, weight decay, or momentum from before the
    boundary leave the complement. Memory is a d_in x d_in matrix a layer, whatever the number of tasks.

    Args:
        model: with a `tap`.
        threshold: in [0, 1], may be traced; or one for each layer by name (the authors, permuted MNIST: 0.95 for the
            first, 0.99 for the others).
        increase: of the threshold from task to task, may be traced (the authors, split CIFAR-100: 0.97 and 0.003).
        num_examples: n, drawn without replacement.
        separate_heads: whether every task has outputs of its own.
        render: turns `Task.examples` into a `Batch`.

    Raises:
        UserError: a model without a `tap`, or one that tells of no kernel; num_examples below 1; no threshold for a
            layer.
    """
    if model.tap is None:
        raise UserError(
            "gpm needs to know what each layer of the model receives, and this model has no `tap`: give it one (see "
            "`cl_jax.model.Model`), take a model that has one, such as mlp or cnn, or use ogd, which needs none"
        )
    if num_examples < 1:
        raise UserError(f"gpm num_examples {num_examples}: must be at least 1; for none leave gpm out")
    tap = model.tap

    def init(key: jax.Array, params: Params, batch: Batch) -> GpmState:
        names = kernel_layers(model, params, batch)
        if not names:
            raise UserError("gpm projects the gradients of kernels, and the model's `tap` tells of no layer with one")
        if isinstance(threshold, Mapping) and (missing := [name for name in names if name not in threshold]):
            raise UserError(f"gpm has no threshold for layer {missing[0]!r}: give one for each of {', '.join(names)}")
        held = names[:-1] if separate_heads else names
        sizes = {name: params[name]["kernel"].shape[0] for name in held}
        empty = {name: jnp.zeros((size, size), jnp.float32) for name, size in sizes.items()}
        return GpmState(empty, jnp.zeros((), jnp.int32))

    def gradients(key: jax.Array, state: GpmState, values: Params, params: Params, batch: Batch) -> Params:
        frozen = jax.tree.map(lambda leaf: jnp.where(state.finished > 0, jnp.zeros_like(leaf), leaf), values)
        new = dict(frozen)
        for name, projector in state.projector.items():
            kernel = values[name]["kernel"]
            new[name] = {**frozen[name], "kernel": kernel - jnp.matmul(projector, kernel, precision=EXACT)}
        if separate_heads:
            head = kernel_layers(model, params, batch)[-1]
            new[head] = values[head]
        return new

    def end_task(key: jax.Array, state: GpmState, params: Params, task: Task) -> GpmState:
        rows, valid = random_rows(key, task, num_examples)
        batch = render(jax.tree.map(lambda leaf: leaf[rows], task.examples))
        _, received = tap(params, {}, batch.x)
        later = state.finished.astype(jnp.float32) * increase
        new = {}
        for name, projector in state.projector.items():
            share = threshold[name] if isinstance(threshold, Mapping) else threshold
            new[name] = enlarged(projector, _second_moment(received[name], valid), share + later)
        return GpmState(new, state.finished + 1)

    return Method(init=init, gradients=gradients, end_task=end_task)


def enlarged(projector: jax.Array, moment: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """The projector [d, d] on the memory's directions and those that `gpm` adds, from M M^T and R R^T.

    The u_i and s_i^2 are the eigenvectors and eigenvalues of R' R'^T = (I - M M^T) R R^T (I - M M^T).
    """
    outside = jnp.eye(len(projector), dtype=projector.dtype) - projector
    missed = jnp.matmul(jnp.matmul(outside, moment, precision=EXACT), outside, precision=EXACT)
    energies, directions = eigh((missed + missed.T) / 2)
    energies, directions = jnp.maximum(energies[::-1], 0.0), directions[:, ::-1]
    total = jnp.trace(moment)
    held = jnp.maximum(total - jnp.sum(energies), 0.0)
    so_far = held + jnp.cumsum(energies) - energies  # before each of them
    joins = (so_far < threshold * total) & (energies > LEAST * total)

    # What rounding left of the memory in them would be counted twice.
    directions = jnp.matmul(outside, directions, precision=EXACT)
    lengths = jnp.sqrt(jnp.sum(directions**2, axis=0))
    directions = jnp.where(joins[None, :], directions / jnp.where(lengths > 0, lengths, 1.0)[None, :], 0.0)
    return projector + jnp.matmul(directions, directions.T, precision=EXACT)


def kernel_layers(model: Model, params: Params, batch: Batch) -> list[str]:
    """The names of the layers with a kernel that `tap` tells of, in the order in which it does."""
    names: list[str] = []

    def run(params: Params, x: Any) -> None:
        assert model.tap is not None
        names.extend(model.tap(params, {}, x)[1])  # what leaves a traced function has its keys sorted

    jax.eval_shape(run, params, batch.x)
    return [name for name in names if "kernel" in params[name]]


def _second_moment(received: jax.Array, valid: jax.Array) -> jax.Array:
    """R R^T: float32 [d, d], the sum over the valid examples and all positions, from [B, ..., d] and bool [B]."""
    each = received.astype(jnp.float32).reshape(received.shape[0], -1, received.shape[-1])
    each = jnp.where(valid[:, None, None], each, 0.0).reshape(-1, received.shape[-1])
    return jnp.matmul(each.T, each, precision=EXACT)


@config
class Gpm:
    """See `gpm`."""

    waits_for_boundary: ClassVar[bool] = True  # every direction is open before it

    threshold: float = traced(0.97, high=1.0)
    increase: float = traced(0.0, high=1.0)
    num_examples: int = static(300, low=1)

    def build(self, context: Context) -> Method:
        return gpm(
            context.model,
            threshold=self.threshold,
            increase=self.increase,
            num_examples=self.num_examples,
            separate_heads=context.head_size < context.num_outputs,
            render=context.render_task,
        )

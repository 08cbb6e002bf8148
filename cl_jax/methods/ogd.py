"""Orthogonal gradient descent: steps at right angles to the gradients of what the model says of old examples.

Farajtabar, Azizan, Mott and Li 2020, arXiv 1910.07104 (the variant OGD-GTL).
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from cl_jax.batch import Batch, Task
from cl_jax.config import config, static
from cl_jax.errors import UserError
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.methods.episodic_memory import random_rows
from cl_jax.model import Model, Params

EXACT = lax.Precision.HIGHEST  # an accelerator's default may keep three digits
# A vector that lost all but this share of its length to those before it is their combination: the rest is rounding.
DEPENDENT = 1e-4


class OgdState(NamedTuple):
    """The directions that are closed."""

    basis: jax.Array  # float32 [(T - 1) K, P], orthonormal rows; zeros where there is none (yet)
    finished: jax.Array  # int32 (), tasks


def ogd(
    model: Model,
    num_tasks: int,
    num_examples: int = 200,
    *,
    render: Callable[[Any], Batch] = lambda examples: examples,
) -> Method:
    """g <- g - B^T B g, B the orthonormal rows that span the stored gradients; all parameters as one vector [P].

    At the end of a task the gradients d f_y(x) / d theta of K of its examples are stored, f_y the logit of the true
    label, before the softmax, and x drawn without replacement: a plain step g then leaves these logits as they are, to
    first order. They are orthonormalised against B and each other (Gram and Schmidt, twice over); one that has less
    than 1e-4 of its length left is dropped. (OGD-GTL of the paper; OGD-ALL stores every logit's gradient.)

    Only plain gradient descent moves along the projected gradient: Adam, weight decay, or momentum from before the
    boundary leave the complement. Parameters are projected all alike, heads too.

    Memory is (T - 1) K P floats a member, and a step reads it twice: 0.65 GB for an MLP 784-100-100-10 and 10 tasks of
    200 examples. What belongs to the last of `num_tasks` or to later tasks is not kept.

    Args:
        model: gives the logits, without dropout.
        num_tasks: T.
        num_examples: K.
        render: turns `Task.examples` into a `Batch`.

    Raises:
        UserError: num_examples below 1.
    """
    if num_examples < 1:
        raise UserError(f"ogd num_examples {num_examples}: must be at least 1; for none leave ogd out")

    def init(key: jax.Array, params: Params, batch: Batch) -> OgdState:
        flat, _ = ravel_pytree(params)
        rows = max(num_tasks - 1, 1) * num_examples
        return OgdState(jnp.zeros((rows, flat.size), flat.dtype), jnp.zeros((), jnp.int32))

    def gradients(key: jax.Array, state: OgdState, values: Params, params: Params, batch: Batch) -> Params:
        flat, tree_of = ravel_pytree(values)
        return tree_of(flat - _combination(state.basis, _products(state.basis, flat)))

    def end_task(key: jax.Array, state: OgdState, params: Params, task: Task) -> OgdState:
        rows, valid = random_rows(key, task, num_examples)
        batch = render(jax.tree.map(lambda leaf: leaf[rows], task.examples))
        new = jnp.where(valid[:, None], logit_gradients(model, params, batch), 0.0)
        new = orthonormalized(new, state.basis)
        place = state.finished * num_examples + jnp.arange(len(new), dtype=jnp.int32)
        basis = state.basis.at[place].set(new, mode="drop")
        return OgdState(basis, state.finished + 1)

    return Method(init=init, gradients=gradients, end_task=end_task)


def logit_gradients(model: Model, params: Params, batch: Batch) -> jax.Array:
    """d f_y(x) / d theta of each example, flattened: float32 [B, P]."""

    def one(x: Any, y: jax.Array) -> jax.Array:
        def logit(p: Params) -> jax.Array:
            return model.apply(p, jax.tree.map(lambda leaf: leaf[None], x))[0, y]

        return ravel_pytree(jax.grad(logit)(params))[0]

    return jax.vmap(one)(batch.x, batch.y)


def orthonormalized(vectors: jax.Array, basis: jax.Array) -> jax.Array:
    """Vectors [K, P] made orthonormal, in their order, to the rows of a basis [R, P] and to each other.

    Rows of zeros, in either, count as absent; a vector that depends on the others becomes one. Everything is done
    twice, after which rounding leaves no angle (Giraud et al. 2005: twice is enough).
    """
    lengths = jnp.sqrt(jnp.sum(vectors**2, axis=1))
    for smallest in (DEPENDENT * lengths, jnp.full_like(lengths, 0.5)):  # lengths are 1 the second time
        vectors = vectors - jnp.matmul(jnp.matmul(vectors, basis.T, precision=EXACT), basis, precision=EXACT)
        vectors = _gram_schmidt(vectors, smallest)
    return vectors


def _gram_schmidt(vectors: jax.Array, smallest: jax.Array) -> jax.Array:
    """Each vector, less its projection on those before it, at length 1; at 0 where it is not longer than `smallest`."""

    def one(done: jax.Array, item: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        vector, least, number = item
        vector = vector - _combination(done, _products(done, vector))
        length = jnp.sqrt(jnp.sum(vector**2))
        unit = jnp.where(length > least, vector / jnp.where(length > 0, length, 1.0), 0.0)
        return done.at[number].set(unit), None

    numbers = jnp.arange(len(vectors), dtype=jnp.int32)
    return lax.scan(one, jnp.zeros_like(vectors), (vectors, smallest, numbers))[0]


def _products(basis: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.matmul(basis, vector, precision=EXACT)


def _combination(basis: jax.Array, amounts: jax.Array) -> jax.Array:
    return jnp.matmul(amounts, basis, precision=EXACT)


@config
class Ogd:
    """See `ogd`."""

    needs_labels: ClassVar[bool] = True
    waits_for_boundary: ClassVar[bool] = True  # every direction is open before it

    num_examples: int = static(200, low=1)

    def build(self, context: Context) -> Method:
        return ogd(context.model, context.num_tasks, self.num_examples, render=context.render_task)

"""How far the weights have moved since each task was learned, by layer: plain, and in the norm of that task's Fisher.

With theta the weights now, theta_j those after task j and F_j the exact diagonal Fisher there, on the task's probe:

    distance          ||theta - theta_j||_2
    fisher_distance   sqrt(sum_i F_j,i (theta_i - theta_j,i)^2); half its square is the rise of the task's loss, in
                      nats, that EWC's quadratic expects
    distance_from_start   ||theta - theta_0||_2, theta_0 the initial weights

The first two are of every task but the last one trained, for which they are 0.

Source: Kirkpatrick et al. 2017, arXiv 1612.00796 (the norm).
"""

import jax
import jax.numpy as jnp

from cl_jax.diagnostics.diagnostic import WHOLE, Boundary, Value, of_layers, of_tasks
from cl_jax.diagnostics.fisher_overlap import fisher_on
from cl_jax.diagnostics.layers import difference, inner, layer_names, per_layer
from cl_jax.model import Params


def distance(moved: Params) -> jax.Array:
    """sqrt(sum d^2)."""
    return jnp.sqrt(inner(moved, moved))


def fisher_distance(moved: Params, fisher: Params) -> jax.Array:
    """sqrt(sum F d^2)."""
    return jnp.sqrt(inner(fisher, jax.tree.map(jnp.square, moved)))


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""
    model, first = boundary.model, jnp.zeros((), jnp.int32)
    start = boundary.earlier(first, boundary.last)
    names = layer_names(model, start, boundary.probe(boundary.last).x)

    def since(task: jax.Array) -> tuple[jax.Array, jax.Array]:
        learned = boundary.earlier(task + 1, task)
        moved = difference(boundary.params(task), learned)
        fisher = fisher_on(boundary, learned, boundary.probe(task, present=task))
        return per_layer(names, distance, moved), per_layer(names, fisher_distance, moved, fisher)

    plain, weighted = boundary.over_tasks(lambda task: (task + 1 < boundary.after) & boundary.known(task + 1), since)
    from_start = per_layer(names, distance, difference(boundary.params(boundary.last), start))
    from_start = jnp.where(boundary.known(first), from_start, jnp.nan)
    layers = (WHOLE, *names)
    return [
        of_tasks("distance", plain, layers),
        of_tasks("fisher_distance", weighted, layers),
        of_layers("distance_from_start", from_start, layers),
    ]

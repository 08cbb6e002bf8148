"""Whether two tasks use the same weights, by layer: the overlap of their Fisher information.

    fisher_overlap   1 - d^2 with d^2 = 1/2 tr(A + B - 2 (A B)^(1/2)) = 1/2 ||A^(1/2) - B^(1/2)||^2, the squared Frechet
                     distance of the two diagonal Fishers, each divided by its trace; so 1 - d^2 = sum_i sqrt(A_i B_i)

0: the tasks depend on different weights; 1: their Fishers are proportional. One is that of the task trained last, the
other that of each earlier task, both exact and on their probes, at the weights as they are now: it asks which weights
the present network uses for both. Normalised within each layer, so that layers compare.

Source: Kirkpatrick et al. 2017, arXiv 1612.00796, figure 2C and appendix 4.3.
"""

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch
from cl_jax.diagnostics.diagnostic import WHOLE, Boundary, Value, of_tasks, weight_of
from cl_jax.diagnostics.layers import layer_names, per_layer, total
from cl_jax.fisher import diagonal_fisher
from cl_jax.model import Params


def overlap(one: Params, other: Params) -> jax.Array:
    """sum sqrt(A B) of two diagonals divided by their traces; NaN where one of them is 0."""
    # Root by root: a product of Fishers may be too small for a float32.
    both = jax.tree.map(lambda a, b: jnp.sum(jnp.sqrt(a) * jnp.sqrt(b)), one, other)
    traces = [jnp.sqrt(total(jax.tree.map(jnp.sum, each))) for each in (one, other)]
    return total(both) / (traces[0] * traces[1])


def fisher_on(boundary: Boundary, params: Params, batch: Batch) -> Params:
    """The exact diagonal Fisher on a probe; of text a sample of it."""
    return diagonal_fisher(
        boundary.key, boundary.model, params, batch._replace(weight=None), valid=weight_of(batch) > 0,
        num_active=boundary.num_active, kind="exact" if batch.counted is None else "sampled",
    )  # fmt: skip


def present_fisher(boundary: Boundary, task: jax.Array) -> Params:
    """That of a task at the weights as they are now."""
    return fisher_on(boundary, boundary.params(task), boundary.probe(task))


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""
    last = boundary.last
    names = layer_names(boundary.model, boundary.params(last), boundary.probe(last).x)
    own = present_fisher(boundary, last)
    overlaps = boundary.over_tasks(
        lambda task: task < last,
        lambda task: per_layer(names, overlap, own, present_fisher(boundary, task)),
    )
    return [of_tasks("fisher_overlap", overlaps, (WHOLE, *names))]

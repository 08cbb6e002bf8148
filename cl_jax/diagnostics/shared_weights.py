"""How much the tasks so far share: weights that matter to several of them, and features that several of them use.

The importance of weight i to task j is its share of the trace of its layer's Fisher, a_ij = F_ij / sum_i F_ij, exact,
on the task's probe, at the weights as they are now; the use that task j makes of feature k is its share of the energy,
e_kj = mean h_k^2 / sum_k mean h_k^2. Over the tasks trained so far, from the second on:

    shared_weights         of the weights that are important to some task (a_ij above its layer's mean), the share that
                           is so to two or more
    weight_participation   the number of tasks that a unit of importance is shared by: the mean over weights of
                           (sum_j a_ij)^2 / sum_j a_ij^2, weighted by sum_j a_ij; 1: every weight belongs to one task
    feature_participation  the same of features, the mean over those that are not 0 of (sum_j e_kj)^2 / sum_j e_kj^2

A weight or feature that many tasks share cannot change for one without changing for the others: the root of forgetting.
A participation is between 1 and the number of tasks.

Sources: the participation ratio is that of Bell and Dean 1970 (localisation); importance as in Kirkpatrick et al. 2017,
arXiv 1612.00796.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.diagnostics.diagnostic import WHOLE, Boundary, Value, of_layers, weight_of
from cl_jax.diagnostics.fisher_overlap import present_fisher
from cl_jax.diagnostics.layers import features, layer_names, per_layer, total
from cl_jax.model import Params


class Importance(NamedTuple):
    """Sums over tasks, trees like the parameters, float32."""

    sums: Params  # sum_j a_ij
    squares: Params  # sum_j a_ij^2
    counts: Params  # tasks to which the weight is important


def shares(fisher: Params, names: tuple[str, ...]) -> Params:
    """Each layer's Fisher divided by its trace; zeros where that is 0."""

    def of_layer(layer: Params) -> Params:
        trace = total(jax.tree.map(jnp.sum, layer))
        return jax.tree.map(lambda leaf: leaf / jnp.where(trace > 0, trace, 1.0), layer)

    return {name: of_layer(fisher[name]) for name in names} if names else of_layer(fisher)


def added(so_far: Importance, share: Params, names: tuple[str, ...]) -> Importance:
    """With one more task."""

    def important(layer: Params) -> Params:
        mean = total(jax.tree.map(jnp.sum, layer)) / sum(leaf.size for leaf in jax.tree.leaves(layer))
        return jax.tree.map(lambda leaf: (leaf > mean).astype(jnp.float32), layer)

    marks = {name: important(share[name]) for name in names} if names else important(share)
    return Importance(
        jax.tree.map(jnp.add, so_far.sums, share),
        jax.tree.map(lambda before, leaf: before + leaf * leaf, so_far.squares, share),
        jax.tree.map(jnp.add, so_far.counts, marks),
    )


def shared(counts: Params) -> jax.Array:
    """Of the weights that count for some task, the share that counts for two or more; NaN where none counts."""
    some, several = (
        total(jax.tree.map(lambda leaf, least=least: jnp.sum((leaf >= least).astype(jnp.float32)), counts))
        for least in (1, 2)
    )
    return several / some


def weight_participation(sums: Params, squares: Params) -> jax.Array:
    """sum_i s_i (s_i^2 / q_i) / sum_i s_i from s = sum_j a_j and q = sum_j a_j^2; NaN where all are 0."""

    def cubes(s: jax.Array, q: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(q > 0, s * (s * s / jnp.where(q > 0, q, 1.0)), 0.0))

    return total(jax.tree.map(cubes, sums, squares)) / total(jax.tree.map(jnp.sum, sums))


def feature_participation(energy_TxD: jax.Array) -> jax.Array:
    """Mean over features that are used of (sum_j e_j)^2 / sum_j e_j^2, e_j the share of the task's energy.

    Args:
        energy_TxD: mean squares of the features; zeros in the rows of other tasks.
    """
    whole_T = jnp.sum(energy_TxD, axis=1, keepdims=True)
    share_TxD = energy_TxD / jnp.where(whole_T > 0, whole_T, 1.0)
    sums_D, squares_D = jnp.sum(share_TxD, axis=0), jnp.sum(share_TxD * share_TxD, axis=0)
    used_D = squares_D > 0
    ratio_D = jnp.where(used_D, sums_D * sums_D / jnp.where(used_D, squares_D, 1.0), 0.0)
    return jnp.sum(ratio_D) / jnp.sum(used_D.astype(jnp.float32))


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""
    model, params = boundary.model, boundary.params(boundary.last)
    names, several = layer_names(model, params, boundary.probe(boundary.last).x), boundary.after > 1
    like = {name: params[name] for name in names} if names else params
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), like)

    def one(so_far: Importance, task: jax.Array) -> tuple[Importance, None]:
        def more(so_far: Importance) -> Importance:
            return added(so_far, shares(present_fisher(boundary, task), names), names)

        return lax.cond((task < boundary.after) & several, more, lambda so_far: so_far, so_far), None

    tasks = jnp.arange(boundary.num_tasks, dtype=jnp.int32)
    found, _ = lax.scan(one, Importance(zeros, zeros, zeros), tasks)
    layers = (WHOLE, *names)
    weights = per_layer(names, shared, found.counts), per_layer(names, weight_participation, found.sums, found.squares)
    values = [
        of_layers(quantity, jnp.where(several, numbers, jnp.nan), layers)
        for quantity, numbers in zip(("shared_weights", "weight_participation"), weights, strict=True)
    ]
    return values + _of_features(boundary)


def _of_features(boundary: Boundary) -> list[Value]:
    model, last = boundary.model, boundary.last
    names = () if model.tap is None else tuple(features(model, boundary.params(last), boundary.probe(last).x))
    if not names:
        return []

    def energy(task: jax.Array) -> dict[str, jax.Array]:
        batch = boundary.probe(task)
        found = features(model, boundary.params(task), batch.x)
        return {name: jnp.sum(weight_of(batch)[:, None] * each * each, axis=0) for name, each in found.items()}

    found = boundary.over_tasks(lambda task: task < boundary.after, energy)
    numbers = jnp.stack([feature_participation(jnp.nan_to_num(found[name])) for name in names])
    numbers = jnp.where(boundary.after > 1, numbers, jnp.nan)
    return [of_layers("feature_participation", numbers, names)]

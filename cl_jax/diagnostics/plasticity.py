"""What is left to learn with: dead units, effective rank of the features, norm of the weights, by layer.

On the probe of the task trained last (before any training, of the first):

    dead_units      share of the features that are 0 for every example: units after ReLU that nothing wakes
    effective_rank  exp(-sum_k p_k ln p_k) with p_k = sigma_k / sum sigma, of the singular values of the features
                    [n, d], not centred; between 1 and min(n, d), 0 where all features are 0
    weight_norm     sqrt(sum theta^2)

Features are named by the layer that receives them, see `cl_jax.diagnostics.layers.features`.

Sources: Dohare et al. 2024, Nature 632 (loss of plasticity); effective rank: Roy and Vetterli 2007, EUSIPCO.
"""

import jax
import jax.numpy as jnp

from cl_jax.decompositions import singular_values
from cl_jax.diagnostics.diagnostic import WHOLE, Boundary, Value, of_layers, weight_of
from cl_jax.diagnostics.layers import features, inner, layer_names, per_layer


def dead_units(features_BxD: jax.Array, valid_B: jax.Array) -> jax.Array:
    """Share of the features that are 0 in every valid row."""
    largest_D = jnp.max(jnp.where(valid_B[:, None], jnp.abs(features_BxD), 0.0), axis=0)
    return jnp.mean((largest_D == 0).astype(jnp.float32))


def effective_rank(features_BxD: jax.Array, valid_B: jax.Array) -> jax.Array:
    """exp(entropy) of the singular values of the valid rows, as shares of their sum; 0 if all are 0."""
    sigma = singular_values(jnp.where(valid_B[:, None], features_BxD, 0.0))
    whole = jnp.sum(sigma)
    p = sigma / jnp.where(whole > 0, whole, 1.0)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))
    return jnp.where(jnp.isnan(whole), jnp.nan, jnp.where(whole > 0, jnp.exp(entropy), 0.0))


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""
    params, batch = boundary.params(boundary.last), boundary.probe(boundary.last)
    names = layer_names(boundary.model, params, batch.x)
    norms = per_layer(names, lambda layer: jnp.sqrt(inner(layer, layer)), params)
    values = [of_layers("weight_norm", norms, (WHOLE, *names))]
    found = {} if boundary.model.tap is None else features(boundary.model, params, batch.x)
    if found:
        valid = weight_of(batch) > 0
        for quantity, function in (("dead_units", dead_units), ("effective_rank", effective_rank)):
            numbers = [function(each, valid) for each in found.values()]
            values.append(of_layers(quantity, numbers, tuple(found)))
    return values

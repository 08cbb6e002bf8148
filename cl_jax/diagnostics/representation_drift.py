"""Whether a task is still seen as when it was learned, by layer: linear CKA between its features then and now.

    feature_similarity   ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F), X [n, d] the features of the task's probe just after
                         it was learned, Y those now, columns centred

1: the same up to rotation and scale, whatever later layers make of it; towards 0: another representation. Of every task
but the last one trained. With n below the number of features it is too high, as all estimates of this kind.

Features are named by the layer that receives them, see `cl_jax.diagnostics.layers.features`.

Source: Kornblith et al. 2019, arXiv 1905.00414, equation 4 with linear kernels.
"""

import jax
import jax.numpy as jnp

from cl_jax.diagnostics.diagnostic import Boundary, Value, of_tasks, weight_of
from cl_jax.diagnostics.layers import features


def linear_cka(x_BxD: jax.Array, y_BxE: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Linear CKA of two sets of features of the same examples; NaN where one of them is constant.

    Args:
        weight_B: float32, sums to 1: of each example.
    """

    def gram(features: jax.Array) -> jax.Array:
        centred = features - jnp.sum(weight_B[:, None] * features, axis=0, keepdims=True)
        rows = jnp.sqrt(weight_B)[:, None] * centred
        return jnp.matmul(rows, rows.T, precision="highest")

    one, other = gram(x_BxD), gram(y_BxE)
    norms = jnp.sqrt(jnp.sum(one * one)) * jnp.sqrt(jnp.sum(other * other))
    return jnp.sum(one * other) / norms


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""
    model, last = boundary.model, boundary.last
    names = tuple(features(model, boundary.params(last), boundary.probe(last).x))
    if not names:
        return []

    def similarity(task: jax.Array) -> jax.Array:
        batch = boundary.probe(task)
        then = features(model, boundary.earlier(task + 1, task), batch.x)
        now = features(model, boundary.params(task), batch.x)
        return jnp.stack([linear_cka(then[name], now[name], weight_of(batch)) for name in names])

    found = boundary.over_tasks(lambda task: (task + 1 < boundary.after) & boundary.known(task + 1), similarity)
    return [of_tasks("feature_similarity", found, names)]

"""Whether the next task pulls against an earlier one, by layer: the cosine between their gradients.

    gradient_cosine   g_j . g_next / (||g_j|| ||g_next||), both gradients of the mean cross-entropy of a task's probe at
                      the weights that the next task starts from, over the outputs that compete in its training

Below 0, the first steps of the next task raise the loss of task j: by learning rate times ||g_j|| ||g_next|| times the
cosine a step of plain gradient descent. No penalty and no replay is in it. Undefined after the last task.

Sources: Lopez-Paz and Ranzato 2017, arXiv 1706.08840; Riemer et al. 2019, arXiv 1810.11910 (transfer and interference).
"""

import jax
import jax.numpy as jnp

from cl_jax.diagnostics.diagnostic import WHOLE, Boundary, Value, of_tasks
from cl_jax.diagnostics.layers import inner, layer_names, per_layer
from cl_jax.losses import task_loss
from cl_jax.model import Params


def cosine(one: Params, other: Params) -> jax.Array:
    """one . other / (||one|| ||other||); NaN where one of them is 0."""
    # Root by root: the product of two squared norms may be too small for a float32.
    return inner(one, other) / (jnp.sqrt(inner(one, one)) * jnp.sqrt(inner(other, other)))


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""
    model = boundary.model
    following = jnp.minimum(boundary.after, boundary.num_tasks - 1)

    def gradient(task: jax.Array) -> Params:
        batch = boundary.probe(task, present=following, training=True)
        return jax.grad(lambda params: task_loss(model, params, batch))(boundary.params(task))

    names = layer_names(model, boundary.params(following), boundary.probe(following).x)
    new = gradient(following)
    cosines = boundary.over_tasks(
        lambda task: (task < boundary.after) & (boundary.after < boundary.num_tasks),
        lambda task: per_layer(names, cosine, gradient(task), new),
    )
    return [of_tasks("gradient_cosine", cosines, (WHOLE, *names))]

"""Whether the network has left the basin in which a task was learned: that task's loss along the straight line.

    path_loss   1/n sum_x cross-entropy at (1 - a) theta_j + a theta, a = 0, 0.1, ..., 1, on the validation probe of
                task j; theta_j the weights after task j, theta those now; of every task but the last one trained

A flat line: the two are linearly connected, and forgetting is nothing but what stands at its end. A hill between the
ends: another basin; its height above the straight line between the ends is the barrier.

Sources: Frankle et al. 2020, arXiv 1912.05671 (linear mode connectivity); Mirzadeh et al. 2021, arXiv 2010.04495
(between task optima).
"""

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.diagnostics.diagnostic import WHOLE, Boundary, Value
from cl_jax.losses import task_loss

PLACES = tuple(number / 10 for number in range(11))


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""

    def along(task: jax.Array) -> jax.Array:
        batch = boundary.probe(task, split="validation")
        one, other = boundary.earlier(task + 1, task), boundary.params(task)

        def at(place: jax.Array) -> jax.Array:
            between = jax.tree.map(lambda a, b: (1.0 - place) * a + place * b, one, other)
            return task_loss(boundary.model, between, batch)

        return lax.map(at, jnp.array(PLACES, jnp.float32))

    losses = boundary.over_tasks(lambda task: (task + 1 < boundary.after) & boundary.known(task + 1), along)
    return [Value("path_loss", losses[None], (WHOLE,), PLACES, True)]

"""What the first steps of the next task do to the earlier ones: accuracy step by step, and its minimum.

A copy of the member trains the first `STEPS` steps of the next task (all of it, where it is shorter) on the batches and
with the random numbers that it trains with anyway; the member itself is left as it is. On the validation probe of each
task so far:

    accuracy_at_step   share of right answers after s steps, s = 0, 1, 2, 3, 5, 8, ...
    minimum_accuracy   the least after any of these steps, the first to the last

A dip that closes again within the task is the stability gap, which the accuracy matrix cannot show. Undefined before
the first and after the last task. In class-incremental streams the outputs of the next task compete from step 0 on.

Source: De Lange, van de Ven and Tuytelaars 2023, arXiv 2205.13452 (continual evaluation; min-ACC).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cl_jax.batch import Batch, target_weights
from cl_jax.diagnostics.diagnostic import WHOLE, Boundary, Value, of_tasks
from cl_jax.model import Model, Params

STEPS = 100


def shown_steps(most: int) -> tuple[int, ...]:
    """0, 1, 2, 3, 5, 8, ... below `most`, and `most`."""
    found, one, two = [0], 1, 2
    while one < most:
        found.append(one)
        one, two = two, one + two
    return (*found, most)


def accuracy(model: Model, params: Params, batch: Batch) -> jax.Array:
    """sum_i weight_i [the most probable active output of example i is right]; of text by counted tokens."""
    logits = model.apply(params, batch.x)
    if batch.active is not None:
        logits = jnp.where(batch.active, logits, -jnp.inf)
    right = jnp.argmax(logits, axis=-1).astype(jnp.int32) == batch.y
    return jnp.sum(target_weights(batch) * right.astype(jnp.float32))


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""
    steps = min(STEPS, boundary.steps)
    shown = np.array(shown_steps(steps))
    following = jnp.minimum(boundary.after, boundary.num_tasks - 1)

    def look(params: Callable[[jax.Array], Params]) -> jax.Array:
        def of_task(task: jax.Array) -> jax.Array:
            batch = boundary.probe(task, split="validation", present=following)
            return accuracy(boundary.model, params(task), batch)

        return boundary.over_tasks(lambda task: task < boundary.after, of_task)

    def walk(after: jax.Array) -> jax.Array:
        return jnp.concatenate([look(boundary.params)[None], boundary.next_steps(steps, look)])

    def nothing(after: jax.Array) -> jax.Array:
        return jnp.full((steps + 1, boundary.num_tasks), jnp.nan, jnp.float32)

    between = (boundary.after > 0) & (boundary.after < boundary.num_tasks)
    found_SxT = lax.cond(between, walk, nothing, boundary.after)
    least_T = jnp.min(found_SxT[1:], axis=0)
    return [
        Value("accuracy_at_step", found_SxT[shown].T[None], (WHOLE,), tuple(map(float, shown)), True),
        of_tasks("minimum_accuracy", least_T[:, None]),
    ]

"""GEM: no step may raise, to first order, the loss on the examples kept from any earlier task.

Lopez-Paz and Ranzato 2017, arXiv 1706.08840.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from cl_jax.batch import Batch
from cl_jax.buffer import POLICIES
from cl_jax.config import config, static, traced
from cl_jax.errors import unknown
from cl_jax.losses import task_loss
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.methods.episodic_memory import EpisodicMemory, episodic_memory, past_slots
from cl_jax.methods.replay import as_batch, whole_examples
from cl_jax.model import Model, Params
from cl_jax.quadratic_program import nonnegative_minimum

INSERTIONS = ("step", "boundary")  # each task has to have a memory of its own
EXACT = lax.Precision.HIGHEST  # an accelerator's default may keep three digits


def gem(
    model: Model,
    num_tasks: int,
    capacity: int,
    *,
    margin: jax.Array | float = 0.5,
    ridge: jax.Array | float = 1e-3,
    insert: str = "step",
    policy: str = "ring",
    num_classes: int | None = None,
    present: jax.Array | None = None,
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
    task_items: Callable[[Any], Any] | None = None,
) -> Method:
    """g <- z, the minimiser of 1/2 |z - g|^2 with z . g_k >= 0 for every finished task k, where any g . g_k < 0.

    g is the gradient of all that is added up; g_k that of the mean cross entropy of all of task k's stored examples,
    each over its own active outputs (its task's head, if tasks have heads), without dropout and without penalties. With
    the t finished tasks' g_k as rows of G the dual problem is

        v = argmin over v >= margin of 1/2 v^T (G G^T + ridge I) v + (G g)^T v,        z = g + G^T v

    and where no product g . g_k is negative, z = g. A margin adds each old task's gradient at least `margin` times
    once any of them is hurt, in favour of the old tasks. It bounds v, as in the authors' code (`memory_strength`) and
    those after it; their text adds it to v. So is the ridge theirs, not relative to the size of G. See
    `cl_jax.quadratic_program.nonnegative_minimum` for the solution, to about 1e-5 of |g_k|^2.

    Each step costs a gradient of `capacity // num_tasks` examples for each finished task, and (T - 1) P floats for G.
    Hsu et al. 2018 (arXiv 1810.12488), reporting GEM, also train on the stored examples: chain it with replay for that.

    Args:
        model: gives the reference gradients.
        num_tasks, capacity, insert, policy, num_classes, store, load, task_items: see
            `cl_jax.methods.episodic_memory.episodic_memory`, whose "shared" is not for GEM; state is its
            `EpisodicMemory`. The authors keep a ring of 256 a task, filled step by step.
        margin: gamma, may be traced.
        ridge: on the dual's diagonal, may be traced.
        present: int32 (), the number of the task in training, of members side by side if they share it: then tasks
            to come cost nothing. None: it is in the state.

    Raises:
        UserError: see `episodic_memory`.
    """
    if insert not in INSERTIONS:
        raise unknown("gem insertion", insert, INSERTIONS)
    memory = episodic_memory(
        num_tasks, capacity, insert=insert, policy=policy, num_classes=num_classes, store=store, load=load,
        task_items=task_items,
    )  # fmt: skip
    most = max(num_tasks - 1, 1)  # the last task is never a finished one in training

    def gradients(key: jax.Array, state: EpisodicMemory, values: Params, params: Params, batch: Batch) -> Params:
        flat, tree_of = ravel_pytree(values)
        open_tasks = state.finished if present is None else present

        def one(_: None, item: tuple[Any, jax.Array, jax.Array]) -> tuple[None, jax.Array]:
            items, past, number = item
            share = past.astype(jnp.float32)
            weight = share / jnp.maximum(jnp.sum(share), 1.0)

            def reference() -> jax.Array:
                stored = load(items)._replace(weight=weight)
                return ravel_pytree(jax.grad(lambda p: task_loss(model, p, stored))(params))[0]

            return None, lax.cond(number < open_tasks, reference, lambda: jnp.zeros_like(flat))

        past = past_slots(state)[:most]
        items = jax.tree.map(lambda leaf: leaf[:most], state.buffers.items)
        _, references = lax.scan(one, None, (items, past, jnp.arange(most, dtype=jnp.int32)))
        return tree_of(nearest_without_conflict(flat, references, jnp.any(past, axis=1), margin, ridge))

    return memory._replace(gradients=gradients)


def nearest_without_conflict(
    gradient: jax.Array,
    references: jax.Array,
    valid: jax.Array,
    margin: jax.Array | float,
    ridge: jax.Array | float,
) -> jax.Array:
    """z of `gem`: float32 [P] from g [P], G [K, P] and which of its rows count, bool [K]."""
    gram = jnp.matmul(references, references.T, precision=EXACT)
    products = jnp.matmul(references, gradient, precision=EXACT)
    valid = valid & (jnp.diagonal(gram) > 0)
    hurt = jnp.any(valid & (products < 0))

    # Rows that do not count get a one on the diagonal and nothing to gain, so that they stay at zero.
    mask = valid.astype(gram.dtype)
    gram = gram * mask[:, None] * mask[None, :]
    diagonal = jnp.where(valid, jnp.diagonal(gram) + ridge, 1.0)
    matrix = jnp.where(jnp.eye(len(mask), dtype=bool), diagonal[:, None], gram)
    linear = mask * (products + margin * jnp.matmul(matrix, mask, precision=EXACT))
    above = nonnegative_minimum(matrix, jnp.where(hurt, linear, 0.0))
    v = mask * (above + margin)
    return jnp.where(hurt, gradient + jnp.matmul(v, references, precision=EXACT), gradient)


@config
class Gem:
    """See `gem`. `capacity` counts the slots of all tasks together."""

    mixes_tasks: ClassVar[bool] = True

    margin: float = traced(0.5)
    ridge: float = traced(1e-3)
    capacity: int = static(1000, low=1)
    insert: str = static("step", choices=INSERTIONS)
    policy: str = static("ring", choices=POLICIES)

    @property
    def waits_for_boundary(self) -> bool:
        """Whether nothing is stored before the first boundary."""
        return self.insert != "step"

    def build(self, context: Context) -> Method:
        return gem(
            context.model,
            context.num_tasks,
            self.capacity,
            margin=self.margin,
            ridge=self.ridge,
            insert=self.insert,
            policy=self.policy,
            num_classes=context.classes_per_task,
            present=context.present,
            store=lambda batch: batch.reference,
            load=context.render,
        )

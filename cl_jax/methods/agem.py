"""A-GEM: no step may raise, to first order, the average loss on examples kept from earlier tasks.

Chaudhry, Ranzato, Rohrbach and Elhoseiny 2019, arXiv 1812.00420.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cl_jax import errors
from cl_jax.batch import Batch
from cl_jax.buffer import POLICIES
from cl_jax.config import config, static
from cl_jax.losses import task_loss
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.methods.episodic_memory import INSERTIONS, EpisodicMemory, episodic_memory, sample_past
from cl_jax.methods.replay import as_batch, whole_examples
from cl_jax.model import Model, Params


def agem(
    model: Model,
    num_tasks: int,
    capacity: int,
    *,
    batch_size: int = 256,
    insert: str = "step",
    policy: str = "ring",
    num_classes: int | None = None,
    offered: int | None = None,
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
    task_items: Callable[[Any], Any] | None = None,
) -> Method:
    """g <- g - (g . r / r . r) r where g . r < 0, else g.

    g is the gradient of all that is added up, over all parameters at once. r is the gradient of the mean cross entropy
    of up to `batch_size` examples of finished tasks, drawn anew for each step without replacement, each over its own
    active outputs, without dropout and without penalties. Before the first boundary, and while nothing is stored,
    r = 0 and g stays.

    The authors' code keeps a ring for each class of each task, filled step by step: insert="step" and
    policy="class_ring" with the number of classes of one task (permuted MNIST: 25 slots a class, 250 a task). Mammoth
    (Buzzega et al. 2020, arXiv 2004.07211) instead offers one training batch at each boundary to one reservoir:
    insert="shared", policy="reservoir", `offered` the batch size, and a reference batch of the training batch's size.
    (Its A-GEM-R, a reservoir that also holds the present task, is not this method.) There the reference gradient sees
    dropout; here it does not.

    Args:
        model: gives the reference gradient.
        num_tasks, capacity, insert, policy, num_classes, offered, store, load, task_items: see
            `cl_jax.methods.episodic_memory.episodic_memory`; state is its `EpisodicMemory`.
        batch_size: examples of the reference gradient.

    Raises:
        UserError: batch_size below 1; see `episodic_memory`.
    """
    if batch_size < 1:
        raise errors.UserError(f"agem batch_size {batch_size}: must be at least 1")
    memory = episodic_memory(
        num_tasks, capacity, insert=insert, policy=policy, num_classes=num_classes, offered=offered, store=store,
        load=load, task_items=task_items,
    )  # fmt: skip

    def gradients(key: jax.Array, state: EpisodicMemory, values: Params, params: Params, batch: Batch) -> Params:
        items, valid = sample_past(key, state, min(batch_size, state.buffers.occupied.size))
        share = valid.astype(jnp.float32)
        past = load(items)._replace(weight=share / jnp.maximum(jnp.sum(share), 1.0))
        return without_conflict(values, jax.grad(lambda p: task_loss(model, p, past))(params))

    return memory._replace(gradients=gradients)


def without_conflict(gradient: Params, reference: Params) -> Params:
    """g - (g . r / r . r) r where g . r < 0, else g: the nearest point to g that has no negative product with r."""
    product, square = _dot(gradient, reference), _dot(reference, reference)
    amount = jnp.where((product < 0) & (square > 0), product / jnp.where(square > 0, square, 1.0), 0.0)
    return jax.tree.map(lambda g, r: g - amount * r, gradient, reference)


def _dot(one: Params, two: Params) -> jax.Array:
    # A sum of products and not a matrix product, which an accelerator may round to fewer digits.
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), one, two)), jnp.zeros(()))


@config
class Agem:
    """See `agem`. `capacity` counts the slots of all tasks together."""

    mixes_tasks: ClassVar[bool] = True

    capacity: int = static(200, low=1)
    batch_size: int = static(256, low=1)
    insert: str = static("step", choices=INSERTIONS)
    policy: str = static("ring", choices=POLICIES)

    @property
    def waits_for_boundary(self) -> bool:
        """Whether nothing is stored before the first boundary."""
        return self.insert != "step"

    def build(self, context: Context) -> Method:
        return agem(
            context.model,
            context.num_tasks,
            self.capacity,
            batch_size=self.batch_size,
            insert=self.insert,
            policy=self.policy,
            num_classes=context.classes_per_task,
            offered=context.batch_size if self.insert == "shared" else None,
            store=lambda batch: batch.reference,
            load=context.render,
        )

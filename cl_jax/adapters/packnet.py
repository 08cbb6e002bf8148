"""PackNet: each task prunes its weights, and the pruned ones are the next task's to train.

Mallya and Lazebnik 2018, arXiv 1711.05769.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.adapters.adapter import Adapter, Trainable, layers_of, path_name
from cl_jax.config import config, static, traced
from cl_jax.errors import UserError
from cl_jax.model import Params

NOTHING = -1.0  # no magnitude is that small


class Ownership(NamedTuple):
    """Which task trains what."""

    # int16, a tree like the trainable parameters: of a packed kernel the task of each weight, of a free one the next
    # task; of a stacked head its tasks [T, 1, ...]; of all else the first task, [].
    owner: Params


def packnet(num_tasks: int, share: jax.Array | float = 0.75, *, retrain: float = 0.5, own_head: bool = True) -> Adapter:
    """W_t = W where owner <= t, else 0, for every kernel; task t trains the weights of owner t alone.

    A task begins with all free weights as its own; the first has all. Later within the task, in every kernel, the k of
    them that are smallest in magnitude, k = round(share * their number), are set to 0 and freed for the task after it
    (all that are as large as the k-th, so a few more where there are ties); the others train on. The last task frees
    none. So no task changes what an earlier one computes: nothing is forgotten, and a task's number has to be known at
    test time. Task t, from 0, begins with share^t of a kernel.

    Biases, and whatever else is no kernel, train in the first task and are then common to all, as in the paper. The
    paper's tasks have a head each; `own_head=False` packs the head as any other layer instead. The authors retrain
    with a tenth of the learning rate and a fresh optimizer; here both go on.

    Pruning needs `train.during` before each step. Where no step pruned, the boundary does.

    Args:
        num_tasks: T.
        share: of a task's weights that it frees, in [0, 1]; may be traced.
        retrain: steps after pruning for each before it: it prunes before step round(steps / (1 + retrain)). The paper
            trains for 20 epochs and retrains for 10. 0: prunes at the boundary, without retraining.
        own_head: the last layer, with its bias, is kept once for each task, [T, ...], and never pruned; all start from
            the one initial head.

    Returns:
        An adapter whose trainable parameters are the model's, but for the head, and whose base is `Ownership`: two
        bytes a weight.

    Raises:
        UserError: by `init`, a model without a kernel to pack.
    """

    def init(key: jax.Array, params: Params) -> tuple[Params, Trainable]:
        packed, head = packed_kernels(params, own_head), layers_of(params)[-1] + "/"

        def owner(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            name = path_name(path)
            if name in packed:
                return jnp.zeros(leaf.shape, jnp.int16)
            if own_head and name.startswith(head):
                return jnp.arange(num_tasks, dtype=jnp.int16).reshape(-1, *[1] * leaf.ndim)
            return jnp.zeros((), jnp.int16)

        def stacked(leaf: jax.Array, owner: jax.Array) -> jax.Array:
            return jnp.stack([leaf] * num_tasks) if owner.ndim > leaf.ndim else leaf

        owners = jax.tree_util.tree_map_with_path(owner, params)
        return Ownership(owners), jax.tree.map(stacked, params, owners)

    def effective(base: Ownership, trainable: Trainable, task: jax.Array) -> Params:
        def seen(leaf: jax.Array, owner: jax.Array) -> jax.Array:
            if owner.ndim > 0 and owner.shape != leaf.shape:
                return leaf[task]
            return jnp.where(owner <= task.astype(owner.dtype), leaf, 0.0)

        return jax.tree.map(seen, trainable, base.owner)

    def mask(base: Ownership, task: jax.Array, updates: Trainable) -> Trainable:
        def own(update: jax.Array, owner: jax.Array) -> jax.Array:
            return jnp.where(owner == task.astype(owner.dtype), update, 0.0)

        return jax.tree.map(own, updates, base.owner)

    def limits(base: Ownership, trainable: Trainable, task: jax.Array) -> Params:
        freeing = jnp.where(task < num_tasks - 1, jnp.asarray(share, jnp.float32), 0.0)
        return jax.tree.map(lambda leaf, owner: limit(leaf, owner, task, freeing), trainable, base.owner)

    def during(
        base: Ownership, trainable: Trainable, task: jax.Array, step: jax.Array, steps: int
    ) -> tuple[Ownership, Trainable]:
        def prune() -> tuple[Ownership, Trainable]:
            return pruned(base, trainable, task, limits(base, trainable, task))

        return jax.lax.cond(step == round(steps / (1 + retrain)), prune, lambda: (base, trainable))

    def end_task(key: jax.Array, base: Ownership, trainable: Trainable, task: jax.Array) -> tuple[Ownership, Trainable]:
        def unless_done(limit: jax.Array, owner: jax.Array) -> jax.Array:
            return jnp.where(jnp.any(owner > task.astype(owner.dtype)), NOTHING, limit)

        limit = jax.tree.map(unless_done, limits(base, trainable, task), base.owner)
        return pruned(base, trainable, task, limit)

    return Adapter(
        init=init, effective=effective, mask=mask, during=during, end_task=end_task, identity=False, per_task=True
    )


def limit(leaf: jax.Array, owner: jax.Array, task: jax.Array, share: jax.Array) -> jax.Array:
    """The magnitude up to which a task's own weights of a packed kernel are freed, float32 (); else `NOTHING`."""
    if owner.shape != leaf.shape or leaf.ndim == 0:
        return jnp.float32(NOTHING)
    own = owner == task.astype(owner.dtype)
    count = jnp.round(share * jnp.sum(own, dtype=jnp.float32)).astype(jnp.int32)
    ascending = jnp.sort(jnp.where(own, jnp.abs(leaf), jnp.inf).ravel())
    return jnp.where(count > 0, ascending[jnp.maximum(count - 1, 0)].astype(jnp.float32), NOTHING)


def pruned(base: Ownership, trainable: Trainable, task: jax.Array, limits: Params) -> tuple[Ownership, Trainable]:
    """Sets a task's own weights up to the limits to 0 and gives them to the next task."""

    def freed(leaf: jax.Array, owner: jax.Array, limit: jax.Array) -> jax.Array:
        if owner.shape != leaf.shape or leaf.ndim == 0:
            return jnp.zeros((), bool)
        return (owner == task.astype(owner.dtype)) & (jnp.abs(leaf) <= limit)

    free = jax.tree.map(freed, trainable, base.owner, limits)
    following = (task + 1).astype(jnp.int16)
    owners = jax.tree.map(lambda gone, owner: jnp.where(gone, following, owner), free, base.owner)
    return Ownership(owners), jax.tree.map(lambda gone, leaf: jnp.where(gone, 0.0, leaf), free, trainable)


def packed_kernels(params: Params, own_head: bool) -> list[str]:
    """The paths of the kernels that tasks share out among them. Raises UserError: there is none."""
    layers = layers_of(params)
    packed = layers[:-1] if own_head else layers
    if not packed:
        raise UserError(
            f"adapter.own_head: the model's one layer, {layers[0]}, is its head, and nothing is left to share out "
            f"among tasks: give the model a hidden layer, or set own_head=False"
        )
    return [f"{name}/kernel" for name in packed]


@config
class Packnet:
    """See `packnet`."""

    share: float = traced(0.75, high=1.0)
    retrain: float = static(0.5)
    own_head: bool = static(True)

    def build(self, num_tasks: int = 1) -> Adapter:
        return packnet(num_tasks, self.share, retrain=self.retrain, own_head=self.own_head)

    def check(self, params: Params) -> None:
        """Raises UserError when nothing is left to share out, or the retraining is negative."""
        if self.retrain < 0:
            raise UserError(
                f"adapter.retrain: was given {self.retrain}; allowed are 0 (no retraining) or more steps after pruning "
                f"for each before it"
            )
        packed_kernels(params, self.own_head)

"""ER-ACE: replay where new examples compete with new classes only, and leave old ones in place.

Asymmetric cross-entropy, Caccia, Aljundi, Asadi, Tuytelaars, Pineau & Belilovsky 2022, arXiv 2104.05025.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cl_jax import buffer as buffers
from cl_jax.batch import Batch, row_weights
from cl_jax.config import config, static
from cl_jax.errors import unknown
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.methods.replay import ReplayState, as_batch, replay, whole_examples
from cl_jax.model import Params

COMPETING = ("batch", "task")


def er_ace(
    capacity: int,
    num_outputs: int,
    *,
    competing: str = "batch",
    old_outputs: jax.Array | None = None,
    num_classes: int | None = None,
    policy: str = "reservoir",
    batch_size: int | None = None,
    store: Callable[[Batch], Any] = whole_examples,
    load: Callable[[Any], Batch] = as_batch,
) -> Method:
    """Task loss = 1/B sum_i ce(z_i, y_i; new) + 1/R sum_j ce(z_j, y_j; seen), incoming rows i and replayed rows j.

    ce(z, y; S) = -z_y + log sum_{c in S} exp z_c. `seen` is what competes for the row anyway (`Batch.active`: set the
    engine's training mask to "seen" for the paper's classes so far; None: all outputs). `new` is, within that,

        batch: the classes that occur in the incoming batch, in rows of weight > 0 (the paper);
        task:  the outputs that no finished task has, or all where none is left (domain-incremental learning).

    So the logits of old classes have no gradient from incoming rows. The first sum has the batch's own weights if it
    has some; the second is 0 while nothing is stored. Replay is as in `cl_jax.methods.replay.replay`, from the
    first step on and of the present task too, as in the paper's task-free setting. The authors' code
    (pclucas14/AML) lets outputs from the highest class seen so far on compete for incoming rows as well; here outputs
    that were never trained only do so with "task" where they are in `Batch.active`.

    Args:
        num_outputs: C.
        competing: `batch` or `task`.
        old_outputs: bool [C], for `task`: outputs of finished tasks. None: none. It changes from task to task: build
            the method anew for each, as the engine does.
        capacity, num_classes, policy, batch_size (R), store, load: as `replay`'s.

    Raises:
        UserError: an unknown value of `competing`; and as `replay`.

    Source: Caccia et al. 2022, arXiv 2104.05025.
    """
    if competing not in COMPETING:
        raise unknown("ER-ACE competing", competing, COMPETING)
    base = replay(
        capacity, num_classes=num_classes, policy=policy, batch_size=batch_size, weighting="sum", store=store, load=load
    )
    unfinished = jnp.ones((num_outputs,), bool)
    if old_outputs is not None:
        unfinished = ~old_outputs | jnp.all(old_outputs)

    def draw(key: jax.Array, state: ReplayState, params: Params, batch: Batch) -> Batch:
        joined, num = base.draw(key, state, params, batch), batch.y.shape[0]
        active = joined.active
        if active is None:
            active = jnp.ones((joined.y.shape[0], num_outputs), bool)
        new = unfinished
        if competing == "batch":
            occurs = jax.nn.one_hot(batch.y, num_outputs, dtype=bool) & (row_weights(batch) > 0)[:, None]
            new = jnp.any(occurs, axis=0)
        return joined._replace(active=jnp.concatenate([active[:num] & new[None, :], active[num:]]))

    return base._replace(draw=draw)


@config
class ErAce:
    """See `er_ace`. The replayed batch is `ratio` times as large as the incoming one."""

    needs_labels: ClassVar[bool] = True
    mixes_tasks: ClassVar[bool] = True

    capacity: int = static(200, low=1)
    competing: str = static("batch", choices=COMPETING)
    policy: str = static("reservoir", choices=buffers.POLICIES)
    ratio: int = static(1, low=1)

    @property
    def needs_boundaries(self) -> bool:
        return self.competing == "task"

    def build(self, context: Context) -> Method:
        return er_ace(
            self.capacity,
            context.num_outputs,
            competing=self.competing,
            old_outputs=context.old_outputs,
            num_classes=context.num_outputs,
            policy=self.policy,
            batch_size=self.ratio * context.batch_size,
            store=lambda batch: batch.reference,
            load=context.render,
        )

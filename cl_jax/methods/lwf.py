"""Learning without forgetting: keeps the old model's answers on the new task's inputs (Li & Hoiem 2016)."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch, Task, row_weights
from cl_jax.config import config, static, traced
from cl_jax.distillation import divergence
from cl_jax.errors import UserError, unknown
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.model import Model, Params

CONVENTIONS = ("li_2016", "van_de_ven_2019", "van_de_ven_2022")


class LwfState(NamedTuple):
    """The teacher."""

    teacher: Params  # weights at the last boundary, like params
    tasks_finished: jax.Array  # int32 ()


def lwf(
    model: Model,
    strength: jax.Array | float = 1.0,
    temperature: jax.Array | float = 2.0,
    *,
    convention: str = "li_2016",
    head_size: int | None = None,
    old_outputs: jax.Array | None = None,
) -> Method:
    """Distils the model at the last boundary into the present one, on the inputs that are trained on anyway.

    With H_h = sum_i w_i KL(q_ih || p_ih) for each head h that has old outputs, at temperature T (see
    `cl_jax.distillation.divergence`), w_i the rows' weights in the task loss scaled to sum to 1, n such heads, t tasks
    so far including the present one, and L the task loss, training minimises, by convention:

        li_2016:          L + strength * sum_h H_h
        van_de_ven_2019:  1/t * L + strength * (1 - 1/t) * T^2 * 1/n sum_h 1/K_h H_h
        van_de_ven_2022:  L + strength * sum_h s_h H_h,  s_h = (t - 1) / n where all outputs of head h are old, else 1

    and L alone before the first boundary. q_ih is the teacher's softmax over the old outputs of the head. p_ih is the
    present one: li_2016 over the same outputs; the others over K_h, these and what else of the head competes for the
    row now (`Batch.active`), to which q_ih gives probability 0. That differs only where a head grows, that is in
    class-incremental learning. Task-incremental s_h is 1, a sum over the old heads; domain-incremental it is t - 1.

    The authors minimise the cross-entropy, which has KL's gradient, with strength 1 and T = 2, after training the new
    head alone for a while (not done here). van_de_ven_2019 is the code of the two papers of 2018 and 2019, mean over
    a softmax's outputs and T^2 included; from May 2019 on it sums over the outputs: strength K. van_de_ven_2022 is the
    later code of the same repository, for class-incremental training on the classes so far (where all outputs compete
    from the start it also distils those never trained).
    The published "LwF" of Hsu et al. 2018, arXiv 1810.12488, is the number of van de Ven & Tolias 2018.

    Args:
        strength: may be traced.
        temperature: T > 0, may be traced.
        convention: one of `CONVENTIONS`.
        head_size: outputs that share a softmax; those of one task in task-incremental learning. None: all.
        old_outputs: bool [C], outputs of finished tasks; only read after the first boundary. None: all. It changes
            from task to task unless the tasks share all outputs: build the method anew for each, as the engine does.

    Raises:
        UserError: an unknown convention. While tracing: C outputs that heads of `head_size` do not divide.

    Source: Li & Hoiem 2016, arXiv 1606.09282; van de Ven & Tolias 2018, arXiv 1809.10635, and 2019, arXiv 1904.07734;
    van de Ven et al. 2022, Nature Machine Intelligence 4 (GMvandeVen/continual-learning).
    """
    if convention not in CONVENTIONS:
        raise unknown("LwF convention", convention, CONVENTIONS)

    def init(key: jax.Array, params: Params, batch: Batch) -> LwfState:
        return LwfState(params, jnp.zeros((), jnp.int32))

    def task_share(key: jax.Array, state: LwfState, params: Params, batch: Batch) -> Batch:
        return batch._replace(weight=row_weights(batch) / (state.tasks_finished + 1).astype(jnp.float32))

    def loss(state: LwfState, logits: jax.Array, batch: Batch) -> jax.Array:
        heads = (len(logits), *_heads(logits.shape[1], head_size))  # B, H, K
        old = jnp.broadcast_to(True if old_outputs is None else old_outputs[None, :], logits.shape).reshape(heads)
        active = old
        if convention != "li_2016":
            active = old | (True if batch.active is None else batch.active.reshape(heads))
        teacher = model.apply(state.teacher, batch.x).reshape(heads)
        apart = divergence(teacher, logits.reshape(heads), temperature, old, active)
        has_old = jnp.any(old, axis=-1)
        num_old = jnp.maximum(jnp.sum(has_old[0], dtype=jnp.float32), 1.0)
        finished = state.tasks_finished.astype(jnp.float32)
        if convention == "van_de_ven_2019":
            outputs = jnp.sum(active, axis=-1, dtype=jnp.float32)
            apart = apart / jnp.maximum(outputs, 1.0) * (temperature**2 * finished / (finished + 1) / num_old)
        elif convention == "van_de_ven_2022":
            apart = apart * jnp.where(jnp.all(old, axis=-1), finished / num_old, 1.0)
        weight = row_weights(batch)
        each = jnp.sum(jnp.where(has_old & (finished > 0), apart, 0.0), axis=1)
        return strength * jnp.sum(weight * each) / jnp.sum(weight)

    def end_task(key: jax.Array, state: LwfState, params: Params, task: Task) -> LwfState:
        return LwfState(params, state.tasks_finished + 1)

    if convention == "van_de_ven_2019":
        return Method(init=init, draw=task_share, loss=loss, end_task=end_task)
    return Method(init=init, loss=loss, end_task=end_task)


def _heads(num_outputs: int, head_size: int | None) -> tuple[int, int]:
    """Number of heads, and outputs of each."""
    size = num_outputs if head_size is None else head_size
    if size < 1 or num_outputs % size:
        raise UserError(
            f"LwF head_size {size} for a model of {num_outputs} outputs: give a number that divides {num_outputs}, or "
            f"None for one softmax over all of them"
        )
    return num_outputs // size, size


@config
class Lwf:
    """See `lwf`."""

    needs_labels: ClassVar[bool] = True
    waits_for_boundary: ClassVar[bool] = True  # no teacher before it

    strength: float = traced(1.0)
    temperature: float = traced(2.0, low=0.01)
    convention: str = static("li_2016", choices=CONVENTIONS)

    def build(self, context: Context) -> Method:
        return lwf(
            context.model, self.strength, self.temperature, convention=self.convention,
            head_size=context.head_size, old_outputs=context.old_outputs,
        )  # fmt: skip

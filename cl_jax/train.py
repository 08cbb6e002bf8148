"""One training step and one task boundary, pure: the same for the sweep engine and a user's own loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cl_jax.adapters.adapter import Adapter, Trainable
from cl_jax.batch import Batch, Task
from cl_jax.errors import UserError
from cl_jax.losses import weighted_loss
from cl_jax.method import Method, State, StepInfo, stream_key
from cl_jax.model import Model, Params, training_logits

# Cross-entropy at chance is ln C; ten thousand nats can only be a diverging run, long before float32 overflows.
LARGEST_LOSS = 1e4
LARGEST_WEIGHT = 1e8  # no network of this kind computes anything with such a weight


class Learner(NamedTuple):
    """What trains what: four values, each replaceable.

    `optimizer` is any optax transformation; its updates are multiplied by the step's `learning_rate` (1 by default,
    for optimizers that hold their own).
    """

    model: Model
    optimizer: optax.GradientTransformation
    method: Method = Method()
    adapter: Adapter = Adapter()


class TrainState(NamedTuple):
    """What the next step needs."""

    base: Params  # frozen parameters under an adapter; () for full fine-tuning
    trainable: Trainable  # what trains
    optimizer: Any  # optax state
    method: State  # by method name
    diverged: jax.Array  # bool (): the loss left all reason; nothing changes any more


class StepMetrics(NamedTuple):
    """What a human may want of a step; never carried."""

    loss: jax.Array  # float32 (), task loss
    penalty: jax.Array  # float32 ()


def init(learner: Learner, key: jax.Array, batch: Batch, params: Params | None = None) -> TrainState:
    """Adapter, optimizer and method state for the parameters given, or for new ones; `batch` gives shapes.

    Raises:
        UserError: the adapter gates units, and the model does not heed gates.
    """
    if learner.adapter.gates and not learner.model.gates:
        raise UserError(
            "the adapter silences units by a `gate` among the parameters of their layer, which this model does not "
            "heed: use a model of cl_jax.models, or let yours multiply by it and say so (see cl_jax.model.Model.gates)"
        )
    if params is None:
        params = learner.model.init(stream_key(key, "model"), batch.x)
    base, trainable = learner.adapter.init(stream_key(key, "adapter"), params)
    start = learner.adapter.effective(base, trainable, jnp.zeros((), jnp.int32))
    return TrainState(
        base=base,
        trainable=trainable,
        optimizer=learner.optimizer.init(trainable),
        method=learner.method.init(stream_key(key, "method"), start, batch),
        diverged=jnp.zeros((), bool),
    )


def effective(learner: Learner, state: TrainState, task: jax.Array | int = 0) -> Params:
    """The parameters that the model computes with in a task (0-based; few adapters have different ones)."""
    return learner.adapter.effective(state.base, state.trainable, jnp.asarray(task, jnp.int32))


def evaluated(learner: Learner, state: TrainState, task: jax.Array | int = 0) -> Params:
    """The parameters that are evaluated: `effective`, unless a method puts others in their place."""
    return learner.method.evaluated(state.method, effective(learner, state, task))


def during(learner: Learner, state: TrainState, task: jax.Array | int, step: jax.Array | int, steps: int) -> TrainState:
    """What the adapter does within a task, to be called before each of its steps; few do anything.

    Args:
        task, step: numbers, from 0. steps: of the whole task.
    """
    task, step = jnp.asarray(task, jnp.int32), jnp.asarray(step, jnp.int32)
    base, trainable = learner.adapter.during(state.base, state.trainable, task, step, steps)
    return state._replace(base=base, trainable=trainable)


def train_step(
    learner: Learner,
    key: jax.Array,
    state: TrainState,
    incoming: Batch,
    learning_rate: jax.Array | float = 1.0,
    task: jax.Array | int = 0,
) -> tuple[TrainState, StepMetrics]:
    """One step: mix in stored examples, descend on task loss + penalties, let the methods see what happened.

    g = d/dtheta [task_loss(theta, batch) + loss(logits, batch) + penalty(theta)] at the effective parameters theta,
    changed by the methods' projections, pulled back through the adapter, plus the gradient of its own penalty;
    trainable += learning_rate * optimizer(g); then proximal steps, and at last what methods rewrite. A step whose
    task loss is not finite or above `LARGEST_LOSS` nats changes nothing, and sets `diverged` for good.

    Args:
        key: for this step alone.
        incoming: B new examples.
        task: number of the task, from 0 (adapters may train different things in different tasks).
    """
    new, metrics = advance(learner, key, state, incoming, learning_rate, task)
    return kept(state, new), metrics


def kept(before: TrainState, after: TrainState) -> TrainState:
    """`after`, or `before` where it has diverged since."""
    frozen = after.diverged
    return jax.tree.map(lambda old, new: jnp.where(frozen, old, new), before._replace(diverged=frozen), after)


def advance(
    learner: Learner,
    key: jax.Array,
    state: TrainState,
    incoming: Batch,
    learning_rate: jax.Array | float = 1.0,
    task: jax.Array | int = 0,
) -> tuple[TrainState, StepMetrics]:
    """`train_step` that goes on after diverging, for whoever keeps an earlier state for that case.

    To keep the state of every step costs a copy of all of it: 1.9 instead of 2.1 ms for an MLP of 400 with EWC.

    Args: as `train_step`'s.
    """
    method, adapter = learner.method, learner.adapter
    task = jnp.asarray(task, jnp.int32)

    def acting(trainable: Trainable) -> tuple[Params, jax.Array]:
        return adapter.effective(state.base, trainable, task), adapter.penalty(state.base, trainable, task)

    (params, held), pull_back = jax.vjp(acting, state.trainable)
    batch = method.draw(stream_key(key, "draw"), state.method, params, incoming)

    def losses(values: Params) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        logits = training_logits(learner.model, stream_key(key, "model"), values, batch.x)
        added = method.loss(state.method, logits, batch) + method.penalty(state.method, values, batch)
        return (weighted_loss(logits, batch), added), logits

    (loss, penalty), gradient_of, logits = jax.vjp(losses, params, has_aux=True)
    one = jnp.ones_like(loss)
    (total,) = gradient_of((one, jnp.ones_like(penalty)))
    (task_gradient,) = gradient_of((one, jnp.zeros_like(penalty)))  # dropped by the compiler where nobody reads it

    projected = method.gradients(stream_key(key, "gradients"), state.method, total, params, batch)
    (gradient,) = pull_back((projected, jnp.ones_like(held)))
    updates, optimizer_state = learner.optimizer.update(gradient, state.optimizer, state.trainable)
    updates = adapter.mask(state.base, task, jax.tree.map(lambda update: learning_rate * update, updates))
    trainable = optax.apply_updates(state.trainable, updates)
    if adapter.identity:
        trainable = method.proximal(state.method, trainable, jnp.asarray(learning_rate, jnp.float32))

    info = StepInfo(incoming, batch, task_gradient, params, adapter.effective(state.base, trainable, task), logits)
    method_state = method.after_step(stream_key(key, "after_step"), state.method, info)
    if adapter.identity:
        rewritten = method.rewrite(stream_key(key, "rewrite"), method_state, trainable)
        method_state, trainable = rewritten.state, rewritten.params
        optimizer_state = forgotten(learner.optimizer, optimizer_state, rewritten.forget)
    # Not the penalty: it may be large for good (strengths of 1e13 are swept, and Adam bears them), and where nobody
    # reads its value only its gradient is computed.
    diverged = state.diverged | ~(jnp.isfinite(loss) & (loss < LARGEST_LOSS))
    return TrainState(state.base, trainable, optimizer_state, method_state, diverged), StepMetrics(loss, penalty + held)


def end_task(
    learner: Learner, key: jax.Array, state: TrainState, task: Task, *, reset_optimizer: bool = False
) -> TrainState:
    """The boundary: methods consolidate, the adapter merges, and the next task is given its start.

    `consolidated`, then `restarted`; what is evaluated of a task is the state between the two.
    """
    return restarted(learner, key, consolidated(learner, key, state, task), reset_optimizer=reset_optimizer)


def consolidated(learner: Learner, key: jax.Array, state: TrainState, task: Task) -> TrainState:
    """What a task has come to: methods consolidate, the adapter merges.

    No later step shows what the last one did: a member that it left with a parameter that is not finite or above
    `LARGEST_WEIGHT` is flagged as diverged here, and nothing else changes.
    """
    params = effective(learner, state, task.number)
    sound = [jnp.all(jnp.abs(leaf) < LARGEST_WEIGHT) for leaf in jax.tree.leaves(params)]
    state = state._replace(diverged=state.diverged | ~jnp.all(jnp.stack(sound)))
    method_state = learner.method.end_task(stream_key(key, "method"), state.method, params, task)
    base, trainable = learner.adapter.end_task(stream_key(key, "adapter"), state.base, state.trainable, task.number)
    return kept(state, TrainState(base, trainable, state.optimizer, method_state, state.diverged))


def restarted(learner: Learner, key: jax.Array, state: TrainState, *, reset_optimizer: bool = False) -> TrainState:
    """What the next task starts from: methods move the weights, the optimizer is reset if asked."""
    trainable = state.trainable
    if learner.adapter.identity:
        trainable = learner.method.restart(stream_key(key, "restart"), state.method, trainable)
    optimizer_state = learner.optimizer.init(trainable) if reset_optimizer else state.optimizer
    return kept(state, state._replace(trainable=trainable, optimizer=optimizer_state))


def forgotten(optimizer: optax.GradientTransformation, state: Any, where: Params | None) -> Any:
    """The optimizer's state with zeros (no moment, no momentum) for the weights where `where` (bool) holds."""
    if where is None:
        return state
    return optax.tree_utils.tree_map_params(
        optimizer, lambda leaf, anew: jnp.where(anew, jnp.zeros_like(leaf), leaf), state, where
    )

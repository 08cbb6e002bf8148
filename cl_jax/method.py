"""The unit of extension: a continual-learning method is a value, a NamedTuple of pure functions.

Methods live in the space of *effective* parameters (what the model computes with): under an adapter such as LoRA
the engine pulls their gradients back to whatever is trained, so no method knows an adapter.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch, Task
from cl_jax.model import Params

State = Any  # a pytree of arrays: what a method needs for its next step


class StepInfo(NamedTuple):
    """What one training step did, in effective parameters."""

    incoming: Batch  # the new task's examples, before any method mixed others in
    batch: Batch  # what was trained on
    gradient: Params  # of the task loss alone: no penalty, no distillation, no projection
    before: Params
    after: Params
    logits: jax.Array  # float [rows of `batch`, C], at `before`


class Rewritten(NamedTuple):
    """What a method made of the weights, beside the optimizer."""

    state: State
    params: Params
    forget: Params | None = None  # bool, like params: where the optimizer starts anew; None: nowhere


def _as_it_was(key: jax.Array, state: State, params: Params) -> Rewritten:
    return Rewritten(state, params)


class Method(NamedTuple):
    """Every slot has a do-nothing default, so `Method()` is plain fine-tuning.

    Attributes:
        init: `(key, params, batch) -> state`, once, before the first task.
        draw: `(key, state, params, batch) -> batch`: mixes in stored examples (replay), or says what to learn of them.
        loss: `(state, logits, batch) -> scalar`, added to the task loss: of the model's logits on the drawn batch, so
            that nothing is computed twice (distillation).
        penalty: `(state, params, batch) -> scalar`, added to the task loss.
        gradients: `(key, state, gradients, params, batch) -> gradients` of all that is added up (projections).
        proximal: `(state, params, step_size) -> params`, after the optimizer's step.
        after_step: `(key, state, StepInfo) -> state`.
        rewrite: `(key, state, params) -> Rewritten`, last in a step: changes weights outright (units born anew).
        end_task: `(key, state, params, Task) -> state`, at the boundary.
        restart: `(key, state, params) -> params`, then: what the next task starts from.
        evaluated: `(state, params) -> params`: what is evaluated in place of what trains (averages, other heads).

    `proximal`, `rewrite` and `restart` act on what trains, so they need an adapter whose `identity` holds.
    """

    init: Callable[[jax.Array, Params, Batch], State] = lambda key, params, batch: ()
    draw: Callable[[jax.Array, State, Params, Batch], Batch] = lambda key, state, params, batch: batch
    loss: Callable[[State, jax.Array, Batch], jax.Array] = lambda state, logits, batch: jnp.zeros(())
    penalty: Callable[[State, Params, Batch], jax.Array] = lambda state, params, batch: jnp.zeros(())
    gradients: Callable[[jax.Array, State, Params, Params, Batch], Params] = (
        lambda key, state, gradients, params, batch: gradients
    )
    proximal: Callable[[State, Params, jax.Array], Params] = lambda state, params, step_size: params
    after_step: Callable[[jax.Array, State, StepInfo], State] = lambda key, state, info: state
    rewrite: Callable[[jax.Array, State, Params], Rewritten] = _as_it_was
    end_task: Callable[[jax.Array, State, Params, Task], State] = lambda key, state, params, task: state
    restart: Callable[[jax.Array, State, Params], Params] = lambda key, state, params: params
    evaluated: Callable[[State, Params], Params] = lambda state, params: params


def stream_key(key: jax.Array, name: str) -> jax.Array:
    """The random stream `name` of a key: folds in the first 32 bits of sha1(name), equal in every process."""
    return jax.random.fold_in(key, int.from_bytes(hashlib.sha1(name.encode()).digest()[:4], "big"))


def chain(**methods: Method) -> Method:
    """Applies methods in the order given, by name; state is a dict by name, each with its own random stream.

    Names, not positions, address state and randomness: adding a method moves nobody else's numbers.
    """

    def each(key: jax.Array, slot: str) -> dict[str, jax.Array]:
        return {name: stream_key(key, f"{name}/{slot}") for name in methods}

    def init(key: jax.Array, params: Params, batch: Batch) -> State:
        keys = each(key, "init")
        return {name: method.init(keys[name], params, batch) for name, method in methods.items()}

    def draw(key: jax.Array, state: State, params: Params, batch: Batch) -> Batch:
        keys = each(key, "draw")
        for name, method in methods.items():
            batch = method.draw(keys[name], state[name], params, batch)
        return batch

    def loss(state: State, logits: jax.Array, batch: Batch) -> jax.Array:
        return sum((method.loss(state[name], logits, batch) for name, method in methods.items()), jnp.zeros(()))

    def penalty(state: State, params: Params, batch: Batch) -> jax.Array:
        return sum((method.penalty(state[name], params, batch) for name, method in methods.items()), jnp.zeros(()))

    def gradients(key: jax.Array, state: State, values: Params, params: Params, batch: Batch) -> Params:
        keys = each(key, "gradients")
        for name, method in methods.items():
            values = method.gradients(keys[name], state[name], values, params, batch)
        return values

    def proximal(state: State, params: Params, step_size: jax.Array) -> Params:
        for name, method in methods.items():
            params = method.proximal(state[name], params, step_size)
        return params

    def after_step(key: jax.Array, state: State, info: StepInfo) -> State:
        keys = each(key, "after_step")
        return {name: method.after_step(keys[name], state[name], info) for name, method in methods.items()}

    def rewrite(key: jax.Array, state: State, params: Params) -> Rewritten:
        keys, forget = each(key, "rewrite"), None
        state = dict(state)
        for name, method in methods.items():
            state[name], params, more = method.rewrite(keys[name], state[name], params)
            forget = _either(forget, more)
        return Rewritten(state, params, forget)

    def end_task(key: jax.Array, state: State, params: Params, task: Task) -> State:
        keys = each(key, "end_task")
        return {name: method.end_task(keys[name], state[name], params, task) for name, method in methods.items()}

    def restart(key: jax.Array, state: State, params: Params) -> Params:
        keys = each(key, "restart")
        for name, method in methods.items():
            params = method.restart(keys[name], state[name], params)
        return params

    def evaluated(state: State, params: Params) -> Params:
        for name, method in methods.items():
            params = method.evaluated(state[name], params)
        return params

    return Method(
        init, draw, loss, penalty, gradients, proximal, after_step, rewrite, end_task, restart, evaluated
    )  # fmt: skip


def _either(one: Params | None, two: Params | None) -> Params | None:
    if one is None or two is None:
        return two if one is None else one
    return jax.tree.map(jnp.logical_or, one, two)

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
    gradient: Params  # of the task loss alone: no penalty, no projection
    before: Params
    after: Params


class Method(NamedTuple):
    """Every slot has a do-nothing default, so `Method()` is plain fine-tuning.

    Attributes:
        init: `(key, params, batch) -> state`, once, before the first task.
        draw: `(key, state, batch) -> batch`: mixes in stored examples (replay).
        penalty: `(state, params, batch) -> scalar`, added to the task loss.
        gradients: `(state, gradients, params) -> gradients` of task loss and penalties (projections).
        proximal: `(state, params, step_size) -> params`, after the optimizer's step.
        after_step: `(key, state, StepInfo) -> state`.
        end_task: `(key, state, params, Task) -> state`, at the boundary.
    """

    init: Callable[[jax.Array, Params, Batch], State] = lambda key, params, batch: ()
    draw: Callable[[jax.Array, State, Batch], Batch] = lambda key, state, batch: batch
    penalty: Callable[[State, Params, Batch], jax.Array] = lambda state, params, batch: jnp.zeros(())
    gradients: Callable[[State, Params, Params], Params] = lambda state, gradients, params: gradients
    proximal: Callable[[State, Params, jax.Array], Params] = lambda state, params, step_size: params
    after_step: Callable[[jax.Array, State, StepInfo], State] = lambda key, state, info: state
    end_task: Callable[[jax.Array, State, Params, Task], State] = lambda key, state, params, task: state


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

    def draw(key: jax.Array, state: State, batch: Batch) -> Batch:
        keys = each(key, "draw")
        for name, method in methods.items():
            batch = method.draw(keys[name], state[name], batch)
        return batch

    def penalty(state: State, params: Params, batch: Batch) -> jax.Array:
        return sum((method.penalty(state[name], params, batch) for name, method in methods.items()), jnp.zeros(()))

    def gradients(state: State, values: Params, params: Params) -> Params:
        for name, method in methods.items():
            values = method.gradients(state[name], values, params)
        return values

    def proximal(state: State, params: Params, step_size: jax.Array) -> Params:
        for name, method in methods.items():
            params = method.proximal(state[name], params, step_size)
        return params

    def after_step(key: jax.Array, state: State, info: StepInfo) -> State:
        keys = each(key, "after_step")
        return {name: method.after_step(keys[name], state[name], info) for name, method in methods.items()}

    def end_task(key: jax.Array, state: State, params: Params, task: Task) -> State:
        keys = each(key, "end_task")
        return {name: method.end_task(keys[name], state[name], params, task) for name, method in methods.items()}

    return Method(init, draw, penalty, gradients, proximal, after_step, end_task)

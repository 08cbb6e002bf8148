"""One member's whole life as pure functions of its configuration and seed; the sweep maps them over members.

Randomness is addressed by seed, stream name, task and step; nothing random is carried. The method is built inside the
traced run, so a strength may be a tracer in its closure.
"""

from typing import Any

import jax
import jax.numpy as jnp

from cl_jax import train
from cl_jax.batch import Reference, Task
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.evaluate import evaluate
from cl_jax.experiment import Run
from cl_jax.method import chain, stream_key
from cl_jax.methods.context import Context
from cl_jax.tasks.stream import (
    Curriculum,
    View,
    largest_task,
    make_curriculum,
    render,
    sample_references,
    smallest_task,
    task_rows,
)


def view_of(run: Run, data: Data) -> View:
    return View(run.stream.build(data), run.scenario, run.training_mask)


def make_learner(run: Run, data: Data, curriculum: Curriculum, present: jax.Array) -> train.Learner:
    """The four values that train one member during task `present` (int32, traced)."""
    view = view_of(run, data)
    model = run.model.build(view.num_outputs)

    def show(one_task: bool) -> Any:
        return lambda reference: render(
            view, curriculum.tables, data, reference, present, mask=run.training_mask, one_task=one_task
        )

    context = Context(
        model=model,
        render=show(False),
        render_task=show(True),
        num_outputs=view.num_outputs,
        batch_size=run.batch_size,
        largest_task=largest_task(view.stream, data, "train"),
    )
    methods = {name: method.build(context) for name, method in run.methods.items()}
    return train.Learner(model, run.optimizer.build(), chain(**methods), run.adapter.build())


def init(run: Run, seed: jax.Array, data: Data) -> tuple[Curriculum, train.TrainState]:
    """A seed's tasks, and its state before the first step."""
    key = jax.random.key(seed)
    view = view_of(run, data)
    curriculum = make_curriculum(stream_key(key, "tasks"), view.stream, data)
    present = jnp.zeros((), jnp.int32)
    first = task_rows(curriculum.segments["train"], present, jnp.arange(run.batch_size, dtype=jnp.int32))
    batch = render(view, curriculum.tables, data, first, present, mask=run.training_mask, one_task=True)
    return curriculum, train.init(make_learner(run, data, curriculum, present), stream_key(key, "init"), batch)


def steps(
    run: Run,
    seed: jax.Array,
    curriculum: Curriculum,
    state: train.TrainState,
    data: Data,
    task: jax.Array,
    first_step: jax.Array,
    num_steps: int,
) -> tuple[train.TrainState, jax.Array]:
    """`num_steps` training steps of a task, from `first_step`, as one scan; also the mean task loss over them."""
    key = jax.random.key(seed)
    view = view_of(run, data)
    learner = make_learner(run, data, curriculum, task)
    numbers = first_step + jnp.arange(num_steps, dtype=jnp.int32)
    references = sample_references(
        jax.random.fold_in(stream_key(key, "batches"), task),
        curriculum.segments["train"],
        run.exposure,
        task,
        numbers,
        run.batch_size,
    )
    key_steps = jax.random.fold_in(stream_key(key, "steps"), task)
    one_task = run.exposure == "current"

    def one(state: train.TrainState, item: tuple[jax.Array, Reference]) -> tuple[train.TrainState, jax.Array]:
        number, reference = item
        incoming = render(view, curriculum.tables, data, reference, task, mask=run.training_mask, one_task=one_task)
        rate = run.schedule.value(jnp.asarray(run.optimizer.learning_rate, jnp.float32), task, number, run.steps)
        key_step = jax.random.fold_in(key_steps, number)
        state, metrics = train.train_step(learner, key_step, state, incoming, rate, task)
        return state, metrics.loss

    state, losses = jax.lax.scan(one, state, (numbers, references))
    return state, jnp.mean(losses)


def end_task(
    run: Run, seed: jax.Array, curriculum: Curriculum, state: train.TrainState, data: Data, task: jax.Array
) -> train.TrainState:
    """The boundary after a task."""
    key = jax.random.fold_in(stream_key(jax.random.key(seed), "boundary"), task)
    view = view_of(run, data)
    segments = curriculum.segments["train"]
    position = jnp.arange(largest_task(view.stream, data, "train"), dtype=jnp.int32)
    finished = Task(task, task_rows(segments, task, position), position < segments.size[task])
    learner = make_learner(run, data, curriculum, task)
    return train.end_task(learner, key, state, finished, reset_optimizer=run.optimizer.reset)


def row(run: Run, curriculum: Curriculum, state: train.TrainState, data: Data, after: jax.Array) -> jax.Array:
    """Evaluation after `after` tasks: float32 [splits, metrics, T]."""
    view = view_of(run, data)
    model = run.model.build(view.num_outputs)
    params = run.adapter.build().effective(state.base, state.trainable)
    return evaluate(model, params, view, curriculum, data, after)


def check_run(run: Run, data: Data, where: str) -> None:
    """What is wrong with a configuration on this data, before anything compiles. Raises UserError."""
    view = view_of(run, data)
    smallest = smallest_task(view.stream, data, "train")
    if run.batch_size > smallest:
        raise UserError(
            f"{where}: batch_size {run.batch_size} is larger than the smallest task, {smallest} training examples: "
            f"lower batch_size or the number of tasks"
        )
    for split in ("validation", "test"):
        if smallest_task(view.stream, data, split) == 0:
            raise UserError(f"{where}: a task has no {split} examples: use fewer tasks or a larger {split} share")
    if run.scenario == "task" and view.stream.classes_per_task == 1:
        raise UserError(
            f"{where}: task-incremental tasks of one class leave one output to choose from: every answer is right; "
            f"use fewer tasks, or scenario 'class'"
        )
    shape = jax.eval_shape(
        run.model.build(view.num_outputs).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, *data.images.shape[1:]), jnp.float32),
    )
    run.adapter.check(shape)
    for name, method in run.methods.items():
        capacity = getattr(method, "capacity", None)
        if capacity is not None and capacity > data.sizes[0]:
            raise UserError(
                f"{where}: methods.{name}.capacity {capacity} is larger than the {data.sizes[0]} training examples"
            )
        if getattr(method, "proximal", False) and not run.adapter.build().identity:
            raise UserError(f"{where}: methods.{name}.proximal needs every weight trained directly; adapter is LoRA")
    jax.eval_shape(lambda seed: init(run, seed, data)[1].trainable, jnp.zeros((), jnp.int32))

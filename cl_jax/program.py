"""One member's whole life as pure functions of its configuration and seed; the sweep maps them over members.

Randomness is addressed by seed, stream name, task and step; nothing random is carried. The method is built inside the
traced run, so a strength may be a tracer in its closure.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax import train
from cl_jax.adapters import Full
from cl_jax.batch import Reference, Task
from cl_jax.data import Data
from cl_jax.evaluate import chunk_sums, evaluate
from cl_jax.experiment import Run
from cl_jax.method import Method, chain, stream_key
from cl_jax.methods.context import Context
from cl_jax.model import Params
from cl_jax.optimizers import Sgd
from cl_jax.schedules import TaskDecay
from cl_jax.tasks.boundaries import Layout, Sharp, blurry_references, is_sharp
from cl_jax.tasks.render import old_outputs, render
from cl_jax.tasks.stream import Curriculum, Segments, View, largest_task, make_curriculum, sample_references, task_rows
from cl_jax.tokens import Tokens


def view_of(run: Run, data: Data) -> View:
    # Where task ids are withheld, nobody can say which outputs are of tasks seen.
    evaluated = "seen" if is_sharp(run.boundary) else "all"
    return View(run.stream.build(data), run.scenario, run.training_mask, evaluated)


def make_learner(run: Run, data: Data, curriculum: Curriculum, present: jax.Array) -> train.Learner:
    """The four values that train one member during task `present` (int32, traced)."""
    model = run.model.build(view_of(run, data).num_outputs)
    methods = make_methods(run, data, curriculum, present)
    return train.Learner(model, run.optimizer.build(), chain(**methods), run.adapter.build(run.stream.num_tasks))


def make_methods(run: Run, data: Data, curriculum: Curriculum, present: jax.Array) -> dict[str, Method]:
    """A member's methods during task `present`, by name."""
    view = view_of(run, data)
    model = run.model.build(view.num_outputs)

    def show(one_task: bool) -> Any:
        return lambda reference: render(
            view, curriculum.tables, data, reference, present, mask=run.training_mask, one_task=one_task
        )

    head_size = view.stream.classes_per_task if view.scenario == "task" else view.num_outputs
    context = Context(
        model=model,
        render=show(False),
        render_task=show(True),
        num_outputs=view.num_outputs,
        num_active=head_size,
        classes_per_task=view.stream.classes_per_task,
        head_size=head_size,
        old_outputs=old_outputs(view, present),
        present=present,
        num_tasks=view.stream.num_tasks,
        steps=run.steps,
        batch_size=run.batch_size,
        largest_task=largest_task(view.stream, data, "train"),
        example=example_of(data),
        text=data.text,
    )
    return {name: method.build(context) for name, method in run.methods.items()}


class World(NamedTuple):
    """What one seed gives every method alike."""

    curriculum: Curriculum  # the seed's tasks
    params: Params  # initial weights
    row: jax.Array  # evaluation before any training, as `row` gives it


def world_of(run: Run) -> Run:
    """The run without what trains it: runs that are equal in this share tasks, initial weights and evaluation."""
    return dataclasses.replace(
        run, training_mask="seen", exposure="current", optimizer=Sgd(), schedule=TaskDecay(), adapter=Full(),
        methods={}, steps=1, batch_size=1, passes=None, recent=None, diagnostics=(), base=None,
        boundary=run.boundary if run.scenario == "class" else Sharp(),  # else it changes nothing of these
    )  # fmt: skip


def evaluation_of(run: Run) -> Run:
    """The run as `row` needs it: `world_of`, which tasks are evaluated, and an adapter with parameters of each."""
    adapter = run.adapter if per_task(run) else Full()
    return dataclasses.replace(world_of(run), adapter=adapter, recent=run.recent)


def per_task(run: Run) -> bool:
    """Whether each task has parameters of its own."""
    return run.adapter.build(run.stream.num_tasks).per_task


def make_world(run: Run, seed: jax.Array, data: Data) -> World:
    """Draws a seed's tasks and initial weights, and evaluates these, before any adapter. `run` is of `world_of`."""
    curriculum, params = drawn(run, seed, data)
    return World(curriculum, params, row(run, curriculum, params, data, jnp.zeros((), jnp.int32)))


def drawn(run: Run, seed: jax.Array, data: Data) -> tuple[Curriculum, Params]:
    """A seed's tasks and initial weights."""
    key = jax.random.key(seed)
    view = view_of(run, data)
    curriculum = make_curriculum(stream_key(key, "tasks"), view.stream, data)
    return curriculum, run.model.build(view.num_outputs).init(stream_key(key, "model"), example_of(data))


def example_of(data: Data) -> Any:
    """What a model receives, of one example: zeros [1, ...]."""
    format = data.text or data.labelled
    if format is not None:
        none = jnp.zeros((1, format.context), jnp.int32)
        return Tokens(none, none)
    return jnp.zeros((1, *data.images.shape[1:]), jnp.float32)


def init(run: Run, seed: jax.Array, curriculum: Curriculum, params: Params, data: Data) -> train.TrainState:
    """The state before the first step, from the world's initial weights."""
    key = jax.random.key(seed)
    view = view_of(run, data)
    present = jnp.zeros((), jnp.int32)
    first = task_rows(curriculum.segments["train"], present, jnp.arange(run.batch_size, dtype=jnp.int32))
    batch = render(view, curriculum.tables, data, first, present, mask=run.training_mask, one_task=True)
    learner = make_learner(run, data, curriculum, present)
    return train.init(learner, stream_key(key, "init"), batch, params)


def first_state(run: Run, seed: jax.Array, data: Data) -> train.TrainState:
    """`init` in a world of its own."""
    return init(run, seed, *drawn(world_of(run), seed, data), data)


class StateParts(NamedTuple):
    """Bytes of one member's training state."""

    parameters: int
    optimizer: int
    methods: dict[str, int]
    flag: int  # whether it has diverged

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + sum(self.methods.values()) + self.flag


def state_parts(run: Run, data: Data) -> StateParts:
    """What one member's training state is made of; nothing is computed for it."""
    key = (jax.tree.structure(run), data.sha256, data.sizes)
    if key not in _STATE_PARTS:
        _STATE_PARTS[key] = parts_of(state_shapes(run, data))
    return _STATE_PARTS[key]


_STATE_PARTS: dict[Any, StateParts] = {}  # a tenth of a second each, and asked for more than once


def parts_of(state: train.TrainState) -> StateParts:
    """Of a state, or of its shapes and dtypes."""

    def held(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    methods = {name: held(value) for name, value in state.method.items()}
    return StateParts(held((state.base, state.trainable)), held(state.optimizer), methods, held(state.diverged))


def state_shapes(run: Run, data: Data) -> train.TrainState:
    """Shapes and dtypes of one member's training state; nothing is computed for it."""
    return jax.eval_shape(partial(first_state, run, data=data), jnp.int32(0))


def state_bytes(run: Run, data: Data) -> int:
    """What one member's training state takes on the device."""
    return state_parts(run, data).total


def references_of(run: Run, seed: jax.Array, segments: Segments, task: jax.Array, numbers: jax.Array) -> Reference:
    """The batches [S, B] of given steps int32 [S] of a task; `segments` are those of the training set."""
    key = stream_key(jax.random.key(seed), "batches")
    if not is_sharp(run.boundary):
        key_boundaries = stream_key(jax.random.key(seed), "boundaries")
        layout = Layout(run.stream.num_tasks, run.steps, run.batch_size)
        return blurry_references(key, key_boundaries, segments, run.boundary, layout, task, numbers)
    return sample_references(jax.random.fold_in(key, task), segments, run.exposure, task, numbers, run.batch_size)


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
    """`num_steps` training steps of a task, from `first_step`, as one scan; also the mean task loss over them.

    A member that diverges during them is left as it was before them.
    """
    key = jax.random.key(seed)
    view = view_of(run, data)
    learner = make_learner(run, data, curriculum, task)
    numbers = first_step + jnp.arange(num_steps, dtype=jnp.int32)
    references = references_of(run, seed, curriculum.segments["train"], task, numbers)
    key_steps = jax.random.fold_in(stream_key(key, "steps"), task)
    one_task = run.exposure == "current" and is_sharp(run.boundary)

    def one(state: train.TrainState, item: tuple[jax.Array, Reference]) -> tuple[train.TrainState, jax.Array]:
        number, reference = item
        incoming = render(view, curriculum.tables, data, reference, task, mask=run.training_mask, one_task=one_task)
        rate = run.schedule.value(jnp.asarray(run.optimizer.learning_rate, jnp.float32), task, number, run.steps)
        key_step = jax.random.fold_in(key_steps, number)
        state = train.during(learner, state, task, number, run.steps)
        state, metrics = train.advance(learner, key_step, state, incoming, rate, task)
        return state, metrics.loss

    end, losses = jax.lax.scan(one, state, (numbers, references))
    return train.kept(state, end), jnp.mean(losses)


def end_task(
    run: Run, seed: jax.Array, curriculum: Curriculum, state: train.TrainState, data: Data, task: jax.Array
) -> tuple[train.TrainState, Any]:
    """The boundary after a task: the state for the next one, and what `row` evaluates."""
    key = jax.random.fold_in(stream_key(jax.random.key(seed), "boundary"), task)
    view = view_of(run, data)
    segments = curriculum.segments["train"]
    position = jnp.arange(largest_task(view.stream, data, "train"), dtype=jnp.int32)
    finished = Task(task, task_rows(segments, task, position), position < segments.size[task])
    learner = make_learner(run, data, curriculum, task)
    state = train.consolidated(learner, key, state, finished)
    shown = _shown(learner, state, task)
    return train.restarted(learner, key, state, reset_optimizer=run.optimizer.reset), shown


def shown(run: Run, curriculum: Curriculum, state: train.TrainState, data: Data, task: jax.Array) -> Any:
    """What `row` evaluates in a task, or after it."""
    return _shown(make_learner(run, data, curriculum, task), state, task)


def _shown(learner: train.Learner, state: train.TrainState, task: jax.Array) -> Any:
    return (state.base, state.trainable) if learner.adapter.per_task else train.evaluated(learner, state, task)


def row(run: Run, curriculum: Curriculum, shown: Any, data: Data, after: jax.Array) -> jax.Array:
    """Evaluation after `after` tasks: float32 [splits, metrics, T].

    Args:
        run: of `evaluation_of`.
        shown: parameters; where each task has its own, what the adapter makes them of: (base, trainable).
    """
    view = view_of(run, data)
    model = run.model.build(view.num_outputs)
    return evaluate(model, params_for(run, shown), view, curriculum, data, after, recent=run.recent)


def row_part(
    run: Run, curriculum: Curriculum, shown: Any, data: Data, after: jax.Array, task: jax.Array, first: jax.Array,
    *, split: str,
) -> jax.Array:  # fmt: skip
    """The part of `row` that one chunk of one task is: sums, float32 [2, metrics]."""
    view = view_of(run, data)
    model = run.model.build(view.num_outputs)
    return chunk_sums(model, params_for(run, shown)(task), view, curriculum, data, after, task, first, split=split)


def params_for(run: Run, shown: Any) -> Callable[[jax.Array], Params]:
    """From the number of a task to the parameters that it is evaluated with."""
    adapter = run.adapter.build(run.stream.num_tasks)
    if not adapter.per_task:
        return lambda task: shown
    return lambda task: adapter.effective(*shown, task)

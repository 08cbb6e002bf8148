"""One member's diagnostics at a boundary as a pure function, which the sweep maps over members as it does `row`.

It is a program of its own: what trains and what is evaluated is computed by the same programs whether it runs or not.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax import program
from cl_jax.batch import Batch
from cl_jax.data import Data
from cl_jax.diagnostics import DIAGNOSTICS
from cl_jax.diagnostics.costs import costs
from cl_jax.diagnostics.diagnostic import Boundary, Look, Value
from cl_jax.experiment import Run
from cl_jax.method import stream_key
from cl_jax.tasks.render import render
from cl_jax.tasks.stream import Curriculum, largest_task, task_rows
from cl_jax.train import TrainState

PROBE = 256  # examples of a task that diagnostics look at, the first of its rows in their random order


def measure(
    run: Run, seed: jax.Array, curriculum: Curriculum, held: Any, data: Data, after: jax.Array, since: jax.Array
) -> jax.Array:
    """What the diagnostics of a boundary measure.

    Args:
        held: what was kept of every boundary [T + 1, ...], this one included, `()` where no diagnostic asks for it;
            what `program.row` evaluates; and the state, from which training goes on.
        after: int32 (), tasks trained so far.
        since: int32 (), the first boundary that is kept.

    Returns:
        float32 [N], see `cl_jax.diagnostics.columns`.
    """
    values = measured(run, boundary_of(run, seed, curriculum, held, data, after, since))
    numbers = [value.array.reshape(-1).astype(jnp.float32) for value in values]
    return jnp.concatenate([jnp.zeros((0,), jnp.float32), *numbers])


def measured(run: Run, boundary: Boundary) -> list[Value]:
    """The values of a run's diagnostics, in their order."""
    return [value for name in run.diagnostics for value in DIAGNOSTICS[name].measure(boundary)]


def keeps_weights(run: Run) -> bool:
    """Whether the weights of every boundary are kept."""
    return any(DIAGNOSTICS[name].keeps_weights for name in run.diagnostics)


def boundary_of(
    run: Run, seed: jax.Array, curriculum: Curriculum, held: tuple[Any, Any, TrainState], data: Data,
    after: jax.Array, since: jax.Array,
) -> Boundary:  # fmt: skip
    """What diagnostics ask. `held`: what is kept of every boundary, this one included; what is evaluated; the state."""
    kept, shown, state = held
    view = program.view_of(run, data)
    stream, last = view.stream, jnp.maximum(after - 1, 0)

    def earlier(boundary: jax.Array, task: jax.Array) -> Any:
        return program.params_for(run, jax.tree.map(lambda every: every[boundary], kept))(task)

    def probe(
        task: jax.Array, *, split: str = "train", present: jax.Array | None = None, training: bool = False
    ) -> Batch:
        segments = curriculum.segments[split]
        position = jnp.arange(min(PROBE, largest_task(stream, data, split)), dtype=jnp.int32)
        valid = (position < segments.size[task]).astype(jnp.float32)
        batch = render(
            view, curriculum.tables, data, task_rows(segments, task, position), last if present is None else present,
            mask=run.training_mask if training else "seen", one_task=True,
        )  # fmt: skip
        return batch._replace(weight=valid * (1.0 / jnp.maximum(jnp.sum(valid), 1.0)))

    def next_steps(number: int, look: Look) -> Any:
        def one(state: TrainState, step: jax.Array) -> tuple[TrainState, Any]:
            state, _ = program.steps(run, seed, curriculum, state, data, after, step, 1)
            return state, look(program.params_for(run, program.shown(run, curriculum, state, data, after)))

        return lax.scan(one, state, jnp.arange(number, dtype=jnp.int32))[1]

    return Boundary(
        model=run.model.build(view.num_outputs),
        num_tasks=stream.num_tasks,
        num_active=stream.classes_per_task if view.scenario == "task" else view.num_outputs,
        steps=run.steps,
        after=after,
        key=jax.random.fold_in(stream_key(jax.random.key(seed), "diagnostics"), after),
        params=program.params_for(run, shown),
        earlier=earlier,
        known=lambda boundary: boundary >= since,
        probe=probe,
        next_steps=next_steps,
        costs=partial(costs, run, data),
    )

"""What cannot be where one task passes into the next gradually, and nobody is told a task."""

import jax
import jax.numpy as jnp

from cl_jax import program
from cl_jax.adapters.adapter import Adapter
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.experiment import Run
from cl_jax.method import Method
from cl_jax.tasks.boundaries import Layout, is_sharp


def check_boundary(run: Run, data: Data) -> None:
    """Raises UserError for whatever needs the tasks of a blurry stream, or the boundaries between them.

    A method needs them if it has an `end_task` or a `restart`; an adapter, if it is not that of full fine-tuning. A
    config that knows better says so: `needs_boundaries`, a class attribute or a property.
    """
    if is_sharp(run.boundary):
        return
    blurry = f"boundary {type(run.boundary).__name__}"
    if run.exposure != "current":
        raise UserError(
            f"{blurry} says which tasks are shown, and so does exposure {run.exposure!r}: leave one of the two out"
        )
    if run.scenario == "task":
        raise UserError(f"{blurry} withholds tasks, which scenario 'task' tells: use scenario 'domain' or 'class'")
    if run.scenario == "class" and run.training_mask != "all":
        raise UserError(
            f"{blurry} shows classes outside their task's time, where training_mask {run.training_mask!r} may leave "
            f"out the right output: use training_mask 'all'"
        )
    needing = [f"methods.{name}" for name in _acting(run, data)]
    adapter = run.adapter.build(run.stream.num_tasks)
    if getattr(run.adapter, "needs_boundaries", adapter != Adapter()):
        needing.append(f"adapter {type(run.adapter).__name__}")
    if run.optimizer.reset:
        needing.append("optimizer.reset")
    if needing:
        raise UserError(
            f"{blurry} leaves no boundary at which {' and '.join(needing)} could act: leave that out, or use boundary "
            f"Sharp() (a method of your own that does without says needs_boundaries = False)"
        )
    if hasattr(run.boundary, "check"):
        run.boundary.check(Layout(run.stream.num_tasks, run.steps, run.batch_size))


def _acting(run: Run, data: Data) -> list[str]:
    """Names of the methods that need boundaries."""
    built: dict[str, Method] = {}

    def build(seed: jax.Array) -> None:
        curriculum, _ = program.drawn(run, seed, data)
        built.update(program.make_methods(run, data, curriculum, jnp.zeros((), jnp.int32)))

    jax.eval_shape(build, jax.ShapeDtypeStruct((), jnp.int32))
    idle = Method()

    def needs(name: str) -> bool:
        acts = built[name].end_task is not idle.end_task or built[name].restart is not idle.restart
        return bool(getattr(run.methods[name], "needs_boundaries", acts))

    return [name for name in run.methods if needs(name)]

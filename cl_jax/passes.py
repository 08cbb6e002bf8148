"""Passes over a task, as a number of steps: online learning sees every example once."""

import dataclasses

from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.experiment import Run
from cl_jax.tasks.stream import largest_task, smallest_task


def with_steps(run: Run, data: Data) -> Run:
    """The run with the steps that its `passes` come to: passes * floor(n / batch_size), n rows of the smallest task.

    Each pass shows every example of a task once, in an order of the seed, but for an incomplete last batch. Where tasks
    differ in size all are trained for the steps of the smallest one (the smallest that any seed can draw): after one
    pass no example was shown twice, and some of a larger task not at all. Joint training (`exposure`) takes the same
    number of steps, of examples of all its tasks.

    Raises:
        UserError: several passes over tasks of different sizes, whose number of steps is not the same.
    """
    if run.passes is None:
        return run
    smallest, largest = _sizes(run, data)
    if run.passes > 1 and smallest // run.batch_size != largest // run.batch_size:
        raise UserError(
            f"passes: was given {run.passes} for tasks that differ in size ({smallest} to {largest} training examples),"
            f" and every task is trained for the same number of steps: give passes=1, which shows no example twice, or "
            f"steps"
        )
    # A batch larger than the smallest task is refused later, in its own words.
    return dataclasses.replace(run, steps=max(1, run.passes * (smallest // run.batch_size)))


def in_words(run: Run, data: Data) -> str:
    """What `with_steps` made of the run's passes; "" where it says steps."""
    if run.passes is None:
        return ""
    _, largest = _sizes(run, data)
    left = largest - run.steps // run.passes * run.batch_size
    number = "1 pass is" if run.passes == 1 else f"{run.passes} passes are"
    return f"{number} {run.steps} steps a task; up to {left} of a task's {largest} examples are left out of each"


def _sizes(run: Run, data: Data) -> tuple[int, int]:
    stream = run.stream.build(data)
    return smallest_task(stream, data, "train"), largest_task(stream, data, "train")

"""One pass shows every example once; what cannot be a number of passes is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import passes, program
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Run
from cl_jax.sources import Source
from cl_jax.tasks import Permuted, Split, Unequal
from cl_jax.tasks.stream import make_curriculum
from tests.test_tasks import data

DATA = data()
PERMUTED = Run(stream=Permuted(num_tasks=2), passes=1, batch_size=9)


def even() -> Data:
    """Three classes of equal size in every split."""
    labels = np.repeat(np.arange(3, dtype=np.int32), 20)
    images = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)
    made = split_source(Source("even", images, labels, images, labels, num_classes=3, pixel_max=60), 0.1)
    return Data(
        images=made.images, labels=made.labels, sizes=made.sizes, class_counts=((18,) * 3, (2,) * 3, (20,) * 3),
        pixel_max=60, sha256="",
    )  # fmt: skip


@jax.jit
def drawn_rows(run: Run, seed: jax.Array, task: jax.Array) -> jax.Array:
    """The rows of every batch of a task [steps, B]."""
    key = jax.random.key(seed)
    segments = make_curriculum(key, run.stream.build(DATA), DATA).segments["train"]
    return program.references_of(run, seed, segments, task, jnp.arange(run.steps, dtype=jnp.int32)).row


@pytest.mark.parametrize("number", [1, 3])
def test_every_example_once_a_pass(number: int) -> None:
    run = passes.with_steps(replace(PERMUTED, {"passes": number}), data())
    rows, per_pass = data().sizes[0], data().sizes[0] // 9
    assert run.steps == number * per_pass and run.passes == number
    for task in range(2):
        drawn = np.asarray(drawn_rows(run, jnp.int32(0), jnp.int32(task)))
        for one in drawn.reshape(number, -1):
            assert len(set(one.tolist())) == per_pass * 9 and set(one.tolist()) <= set(range(rows))
    assert rows - per_pass * 9 < 9  # an incomplete last batch


def test_tasks_of_different_sizes_take_the_steps_of_the_smallest() -> None:
    run = replace(PERMUTED, {"stream": Split(num_tasks=3), "batch_size": 4})
    made = passes.with_steps(run, data())
    smallest = sum(sorted(data().class_counts[0])[:2])
    assert made.steps == smallest // 4
    for seed in range(3):
        for task in range(3):
            drawn = np.asarray(drawn_rows(made, jnp.int32(seed), jnp.int32(task)))
            assert len(set(drawn.ravel().tolist())) == drawn.size  # none twice
    with pytest.raises(UserError, match=r"passes: was given 2 for tasks that differ in size \(\d+ to \d+ .*passes=1"):
        passes.with_steps(replace(run, {"passes": 2}), data())
    assert passes.with_steps(replace(run, {"passes": 2, "stream": Split(num_tasks=3)}), even()).steps == 2 * (18 // 4)
    unequal = replace(PERMUTED, {"stream": Unequal(stream=Permuted(num_tasks=2), ratio=0.5)})
    assert passes.with_steps(unequal, data()).steps == data().sizes[0] // 2 // 9


def test_words() -> None:
    run = passes.with_steps(PERMUTED, data())
    rows = data().sizes[0]
    left = rows - run.steps * 9
    assert passes.in_words(run, data()) == (
        f"1 pass is {run.steps} steps a task; up to {left} of a task's {rows} examples are left out of each"
    )
    two = passes.with_steps(replace(PERMUTED, {"passes": 2}), data())
    assert f"2 passes are {two.steps} steps a task; up to {left} of" in passes.in_words(two, data())
    assert passes.in_words(Run(), data()) == "" and passes.with_steps(Run(), data()) == Run()

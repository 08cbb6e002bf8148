"""The configs of the methods that project gradients, in the sweep engine's own training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import program, sources
from cl_jax.data import split_source
from cl_jax.experiment import Mlp, Run
from cl_jax.methods import Agem, Gem, Gpm, Ogd
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Split

STEPS, TASKS, TRAINED = 12, 5, 3


@pytest.mark.parametrize("scenario", ["class", pytest.param("task", marks=pytest.mark.slow)])
def test_all_of_them_at_once(scenario):
    """Each in turn projects what the one before it left; the memories hold rows of the right tasks and classes."""
    run = Run(
        stream=Split(num_tasks=TASKS), scenario=scenario, model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.1),
        steps=STEPS, batch_size=8,
        methods={
            "agem": Agem(capacity=50, batch_size=16, policy="class_ring"),
            "shared": Agem(capacity=30, batch_size=16, insert="shared", policy="reservoir"),
            "gem": Gem(capacity=50, insert="boundary"),
            "ogd": Ogd(num_examples=4),
            "gpm": Gpm(threshold=0.9, num_examples=20),
        },
    )  # fmt: skip
    data = split_source(sources.load("digits"), 0.1)
    seed = jnp.int32(0)
    curriculum, params = jax.jit(functools.partial(program.drawn, program.world_of(run), data=data))(seed)
    state = jax.jit(functools.partial(program.init, run, data=data))(seed, curriculum, params)
    first = state.trainable
    steps = jax.jit(functools.partial(program.steps, run, data=data, num_steps=STEPS))
    end_task = jax.jit(functools.partial(program.end_task, run, data=data))
    losses = []
    for task in range(TRAINED):
        number = jnp.int32(task)
        state, loss = steps(seed, curriculum, state, task=number, first_step=jnp.int32(0))
        state, _ = end_task(seed, curriculum, state, task=number)
        losses.append(float(loss))
    assert np.isfinite(losses).all() and not bool(state.diverged)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert (
        max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (first, state.trainable)), strict=True))
        > 0
    )

    labels, order = np.asarray(data.labels), curriculum.segments["train"]
    for name, slots in (("agem", 10), ("gem", 10)):
        memory = state.method[name]
        assert memory.buffers.occupied.shape == (TASKS, slots)
        assert np.asarray(memory.buffers.occupied).all(axis=1).tolist() == [True] * TRAINED + [False] * (
            TASKS - TRAINED
        )
        for task in range(TRAINED):
            start, size = int(order.start[task]), int(order.size[task])
            own = set(np.asarray(order.order)[start : start + size].tolist())
            rows = np.asarray(memory.buffers.items.row[task])
            assert set(rows.tolist()) <= own and (np.asarray(memory.buffers.items.task[task]) == task).all()
            if name == "agem":  # five slots for each of the task's classes
                assert (
                    len(set(labels[rows[:5]])) == len(set(labels[rows[5:]])) == 1 and labels[rows[0]] != labels[rows[5]]
                )
    assert int(state.method["shared"].buffers.seen[0]) == TRAINED * run.batch_size
    assert np.asarray(state.method["ogd"].basis).any(axis=1).tolist() == [True] * 12 + [False] * 4
    held = sorted(state.method["gpm"].projector)
    assert held == (["dense_0", "dense_1"] if scenario == "class" else ["dense_0"])

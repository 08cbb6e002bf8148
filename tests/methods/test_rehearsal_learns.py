"""Two tasks of two classes each, one softmax over all four: who still knows the first task?"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import train
from cl_jax.batch import Batch, whole_task
from cl_jax.method import Method
from cl_jax.methods.gdumb import gdumb
from cl_jax.methods.generative_replay import generative_replay
from cl_jax.methods.icarl import icarl
from cl_jax.methods.replay import replay
from cl_jax.models.mlp import mlp

MODEL = mlp((16,), 4)
OPTIMIZER = optax.chain(optax.trace(0.9), optax.scale(-0.03))
CASES = {
    "fine-tuning": Method(),
    "icarl": icarl(MODEL, 12, task_size=80),
    "icarl, binary": icarl(MODEL, 12, loss="binary"),
    "replay, nearest mean": replay(12, nearest_mean_of=MODEL),
    "gdumb": gdumb(MODEL, 12, num_steps=100, batch_size=4),
    "generative replay": generative_replay(MODEL, hidden=(32,), num_latent=4, learning_rate=3e-3),
    "generative replay, soft": generative_replay(MODEL, hidden=(32,), num_latent=4, learning_rate=3e-3, labels="soft"),
}


def tasks() -> list[Batch]:
    """Four random patterns of 16 bits, a tenth of the bits turned over."""
    generator = np.random.default_rng(0)
    patterns, made = generator.integers(0, 2, (4, 16)), []
    for number in range(2):
        y = 2 * number + generator.integers(0, 2, 80)
        x = np.where(generator.random((80, 16)) < 0.1, 1 - patterns[y], patterns[y])
        made.append(Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)))
    return made


@pytest.mark.slow  # a program each
@pytest.mark.parametrize("name", CASES)
def test_the_first_task_is_remembered(name):
    learner, key = train.Learner(MODEL, OPTIMIZER, CASES[name]), jax.random.key(1)

    @jax.jit
    def run():
        first, second = tasks()
        state = train.init(learner, key, first)
        for number, batch in enumerate((first, second)):

            def step(state, key, number=number, batch=batch):
                rows = jax.random.randint(jax.random.fold_in(key, 0), (16,), 0, 80, jnp.int32)
                incoming = jax.tree.map(lambda leaf: leaf[rows], batch)
                return train.train_step(learner, jax.random.fold_in(key, 1), state, incoming, task=number)[0], None

            key_task = jax.random.fold_in(key, number)
            state, _ = jax.lax.scan(step, state, jax.random.split(key_task, 200))
            state = train.end_task(learner, jax.random.fold_in(key_task, 1), state, whole_task(number, batch))
        params = train.evaluated(learner, state)
        return [jnp.mean(MODEL.apply(params, batch.x).argmax(axis=1) == batch.y) for batch in (first, second)]

    first, second = map(float, run())
    assert second > 0.9
    assert first < 0.3 if name == "fine-tuning" else first > 0.8, (first, second)

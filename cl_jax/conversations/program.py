"""What is compiled, once each: to score rows, to train on a round, to consolidate, to scale an update back."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax import train
from cl_jax.adapters.adapter import Trainable
from cl_jax.batch import Task
from cl_jax.conversations.policies import Policy
from cl_jax.conversations.scoring import batch_of, chunk_of, target_nats
from cl_jax.conversations.settings import Adaptation
from cl_jax.method import stream_key
from cl_jax.model import Params
from cl_jax.shuffle import shuffled_index
from cl_jax.train import Learner, TrainState


class Program:
    """The functions of a policy and its settings; every random draw is addressed by seed, round and step.

    Args:
        num_tokens: of the model's vocabulary.
    """

    def __init__(self, policy: Policy, settings: Adaptation, num_tokens: int, seed: int) -> None:
        self._learner, self._key = policy.learner, jax.random.key(seed)
        self._learning_rate = jnp.asarray(settings.optimizer.learning_rate, jnp.float32)
        chunk = chunk_of(num_tokens, settings.context)
        self._nats = jax.jit(partial(target_nats, policy.learner.model, chunk=chunk))
        self._params = jax.jit(partial(train.evaluated, policy.learner))
        self._updated = jax.jit(partial(_updated, policy.learner, settings.steps, settings.rows))
        self._consolidated = jax.jit(partial(_consolidated, policy.learner))

    def begun(self, params: Params, rows: np.ndarray) -> TrainState:
        """The state before anything; `rows` give the shape and dtype of a round's."""
        some = jnp.asarray(rows[:1])
        example = batch_of(some)._replace(extra={"rows": some})
        return train.init(self._learner, stream_key(self._key, "start"), example, params)

    def nats(self, params: Params, rows: np.ndarray, used: int | None = None) -> np.ndarray:
        """float32 [N, context], see `cl_jax.conversations.scoring.target_nats`; None: all rows are used."""
        return np.asarray(self._nats(params, rows, len(rows) if used is None else used))

    def updated(self, state: TrainState, rows: np.ndarray, used: int, number: int) -> TrainState:
        """After the steps of round `number`, from 1, on its first `used` rows, of which there is one at least."""
        return self._updated(self._key, self._learning_rate, state, rows, used, number)

    def consolidated(self, state: TrainState, rows: np.ndarray, used: int, number: int) -> TrainState:
        """After the boundary that ends round `number`; 0: of old text."""
        return self._consolidated(self._key, state, rows, used, number)

    def fresh_optimizer(self, state: TrainState) -> TrainState:
        """The state with an optimizer that remembers nothing."""
        return state._replace(optimizer=self._learner.optimizer.init(state.trainable))

    def params(self, state: TrainState) -> Params:
        """What the model computes with."""
        return self._params(state)


@jax.jit
def scaled(accepted: Trainable, trainable: Trainable, scale: float) -> Trainable:
    """accepted + scale (trainable - accepted), of every leaf."""
    return jax.tree.map(lambda old, new: old + jnp.asarray(scale, old.dtype) * (new - old), accepted, trainable)


def _updated(
    learner: Learner, steps: int, size: int, key: jax.Array, learning_rate: jax.Array, state: TrainState,
    rows: jax.Array, used: jax.Array, number: jax.Array,
) -> TrainState:  # fmt: skip
    of_round, used = jax.random.fold_in(stream_key(key, "round"), number), jnp.asarray(used, jnp.int32)

    def one(state: TrainState, step: jax.Array) -> tuple[TrainState, None]:
        position = step * size + jnp.arange(size, dtype=jnp.int32)
        index = shuffled_index(stream_key(of_round, "rows"), position // used, position % used, used)
        key_step = jax.random.fold_in(stream_key(of_round, "step"), step)
        return train.train_step(learner, key_step, state, batch_of(rows[index]), learning_rate, number)[0], None

    return jax.lax.scan(one, state, jnp.arange(steps, dtype=jnp.int32))[0]


def _consolidated(
    learner: Learner, key: jax.Array, state: TrainState, rows: jax.Array, used: jax.Array, number: jax.Array
) -> TrainState:
    key = jax.random.fold_in(stream_key(key, "boundary"), number)
    valid = jnp.arange(rows.shape[0], dtype=jnp.int32) < used
    return train.consolidated(learner, key, state, Task(jnp.asarray(number, jnp.int32), rows, valid))

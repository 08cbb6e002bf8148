"""The base model: trained on code once, kept as open weights, continued where it stopped."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cl_jax import train
from cl_jax.checkpoint import Checkpoints
from cl_jax.conversations.scoring import batch_of
from cl_jax.errors import UserError
from cl_jax.method import stream_key
from cl_jax.model import Model, Params
from cl_jax.optimizers import Adam
from cl_jax.results import read_json, write_json
from cl_jax.text import source
from cl_jax.weights import load_weights, save_weights
from experiments.conversation_stream.config import Base

PART = 200  # steps from one checkpoint to the next
WARM_UP = 100


class Trained(NamedTuple):
    model: Model
    params: Params


def trained(base: Base, context: int, out: Path, say: Callable[[str], None]) -> Trained:
    """The base model, trained now or found in `out`, as `cl-jax adapt` takes it.

    Raises:
        UserError: the folder holds another base.
    """
    whose = {"base": repr(base), "context": context}
    if (out / "base.json").is_file() and read_json(out / "base.json", {"base": str, "context": int}) != whose:
        raise UserError(f"{out} holds a base of another configuration: give another folder with --out")
    write_json(out / "base.json", whose)
    if not (out / "model" / "config.json").is_file():
        save_weights(out / "model", base.model, _train(base, context, out, say))
    _, params, num_tokens = load_weights(out / "model")
    return Trained(base.model.build(num_tokens), params)


def _train(base: Base, context: int, out: Path, say: Callable[[str], None]) -> Params:
    text = source.load(f"{base.text}&context={context}")
    assert text.text is not None
    rows, model = jnp.asarray(text.train_images), base.model.build(text.text.num_tokens)
    learner = train.Learner(model, Adam(learning_rate=base.learning_rate).build())
    key, example = jax.random.key(base.seed), batch_of(rows[: base.batch_size])
    rate = optax.warmup_cosine_decay_schedule(0.0, base.learning_rate, WARM_UP, base.steps)

    @functools.partial(jax.jit, static_argnums=2)
    def part(state: Any, first: jax.Array, steps: int) -> tuple[Any, jax.Array]:
        def one(state: Any, step: jax.Array) -> tuple[Any, jax.Array]:
            key_step = jax.random.fold_in(stream_key(key, "base"), step)
            chosen = jax.random.randint(stream_key(key_step, "rows"), (base.batch_size,), 0, len(rows))
            state, metrics = train.train_step(learner, key_step, state, batch_of(rows[chosen]), rate(step))
            return state, metrics.loss

        return jax.lax.scan(one, state, first + jnp.arange(steps, dtype=jnp.int32))

    state, checkpoints = train.init(learner, key, example), Checkpoints(out / "checkpoints", say)
    leaves, structure = jax.tree.flatten(state)
    try:
        found = checkpoints.restore({str(i): jax.ShapeDtypeStruct(x.shape, x.dtype) for i, x in enumerate(leaves)})
        done = 0
        if found is not None:
            done, held = found
            state = jax.tree.unflatten(structure, [jnp.asarray(np.asarray(held[str(i)])) for i in range(len(leaves))])
        while done < base.steps:
            steps = min(PART, base.steps - done)
            state, losses = part(state, jnp.int32(done), steps)
            done += steps
            say(f"base: {done} of {base.steps} steps, loss {float(jnp.mean(losses)):.3f}")
            checkpoints.save(done, {str(i): leaf for i, leaf in enumerate(jax.device_get(jax.tree.leaves(state)))})
        checkpoints.wait()
    finally:
        checkpoints.close()
    return train.effective(learner, state)

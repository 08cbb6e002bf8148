"""Replay of what the model itself writes: no old text is kept, the model at a boundary has to remember it."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.batch import Batch, Reference, Task, join
from cl_jax.config import config, static, traced
from cl_jax.errors import UserError, unknown
from cl_jax.method import Method
from cl_jax.methods.context import Context
from cl_jax.model import Model, Params
from cl_jax.models.generate import Language, generate_documents, reader_of
from cl_jax.tokens import read_rows, row_dtype

WRITERS = ("base", "each")


class SelfReplayState(NamedTuple):
    """What the model has written."""

    rows: jax.Array  # the smallest dtype that holds them [capacity, L + 1, 3], see `cl_jax.tokens`
    tasks_finished: jax.Array  # int32 ()


def self_replay(
    model: Model,
    share: jax.Array | float,
    capacity: int,
    language: Language,
    *,
    writer: str = "base",
    windows: int = 8,
    temperature: jax.Array | float = 1.0,
) -> Method:
    """Each row of a batch is, with probability `share`, one of `capacity` that the model wrote itself instead.

    They are written at a boundary, by the effective parameters there, as `cl_jax.models.generate` does. Until the first
    one, or with share 0, it is fine-tuning on the B new examples: the control at equal compute, as of
    `cl_jax.methods.mixture.mixture`, whose rows are real ones. Nothing is weighted.

    A model that has not learned its task writes what is not of it, and learns that again. Every token that is written
    counts, also where of the text only replies do.

    Args:
        model: one with a `reader`, such as `cl_jax.models.decoder.decoder`.
        share: in [0, 1], may be traced: a sweep over it is one program.
        capacity: rows.
        language: which tokens part documents.
        writer: "base": the model after task 0 writes all rows. "each": after task t = 1, 2, ... (the first is 1) each
            row is, with probability 1 / t, written anew, so that each boundary's model has an equal share of them.
        windows, temperature: as `cl_jax.models.generate.generate_documents`'s; the temperature may be traced.

    Generated rows refer to no data set: their `reference`, where incoming rows have one, is -1.

    Raises:
        UserError: unknown writer; sizes below 1; a model that cannot write. While tracing: batches that are not text.

    Source: Sun, Ho & Lee 2020 (LAMOL), arXiv 1909.03329 (a language model's own samples stand for earlier tasks, 5 to
    20 % of the new ones; there each task has a start token of its own); Shin et al. 2017, arXiv 1705.08690 (generative
    replay).
    """
    if writer not in WRITERS:
        raise unknown("writer of self-generated replay", writer, WRITERS)
    for name, number in {"capacity": capacity, "windows": windows}.items():
        if number < 1:
            raise UserError(f"self-generated replay {name} {number}: must be at least 1")
    reader_of(model)  # complains now, not at the first boundary

    def init(key: jax.Array, params: Params, batch: Batch) -> SelfReplayState:
        if batch.counted is None:
            raise UserError("self-generated replay writes text, and the examples are not text: use generative_replay")
        num_tokens = jax.eval_shape(model.apply, params, batch.x).shape[-1]
        shape = (capacity, batch.y.shape[1] + 1, 3)
        return SelfReplayState(jnp.zeros(shape, row_dtype(num_tokens)), jnp.zeros((), jnp.int32))

    def draw(key: jax.Array, state: SelfReplayState, params: Params, batch: Batch) -> Batch:
        key_which, key_rows = jax.random.split(key)
        number = batch.y.shape[0]
        picked_B = jax.random.randint(key_rows, (number,), 0, capacity, jnp.int32)
        written = as_batch(state.rows[picked_B], batch)
        chosen_B = (jax.random.uniform(key_which, (number,)) < share) & (state.tasks_finished > 0)
        rows_B = jnp.arange(number, dtype=jnp.int32) + jnp.where(chosen_B, number, 0)
        joined = join(batch, written)._replace(weight=None)
        return jax.tree.map(lambda leaf: leaf[rows_B], joined)._replace(weight=batch.weight)

    def end_task(key: jax.Array, state: SelfReplayState, params: Params, task: Task) -> SelfReplayState:
        key_text, key_which = jax.random.split(key)

        def write() -> jax.Array:
            new = generate_documents(
                model, key_text, params, capacity, state.rows.shape[1] - 1, language, windows=windows,
                temperature=temperature,
            )  # fmt: skip
            return new.astype(state.rows.dtype)

        finished = state.tasks_finished + 1
        if writer == "base":
            # By the task's number, which members share, and not by the state's: `vmap` would make both branches run.
            rows = jax.lax.cond(task.number == 0, write, lambda: state.rows)
        else:
            anew = jax.random.uniform(key_which, (capacity,)) < 1 / finished.astype(jnp.float32)
            rows = jnp.where(anew[:, None, None], write(), state.rows)
        return SelfReplayState(rows, finished)

    return Method(init=init, draw=draw, end_task=end_task)


def as_batch(rows: jax.Array, like: Batch) -> Batch:
    """Rows [B, L + 1, 3] as a batch with what `like` has."""
    tokens, targets = read_rows(rows)
    nowhere = jnp.full((rows.shape[0],), -1, jnp.int32)
    reference = None if like.reference is None else Reference(nowhere, nowhere)
    return Batch(x=tokens, y=targets.ids, reference=reference, counted=targets.counted)


@config
class SelfReplay:
    """See `self_replay`."""

    waits_for_boundary: ClassVar[bool] = True  # nothing is written before it
    mixes_tasks: ClassVar[bool] = True
    needs_boundaries: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True

    share: float = traced(0.05, high=1.0)
    capacity: int = static(1000, low=1)
    writer: str = static("base", choices=WRITERS)
    windows: int = static(8, low=1)
    temperature: float = traced(1.0, low=0.01)

    def build(self, context: Context) -> Method:
        return self_replay(
            context.model, self.share, self.capacity, language_of(context), writer=self.writer, windows=self.windows,
            temperature=self.temperature,
        )  # fmt: skip


def language_of(context: Context) -> Language:
    """Raises UserError: the documents of the text have no start token."""
    text = context.text
    assert text is not None, "checked before"
    if text.start is None:
        raise UserError(
            f"self-generated replay begins documents with the start token, and tokenizer {text.tokenizer} has none: "
            f"name one of its tokens by the option start=<token> of the data"
        )
    # What a token of another tokenizer stands for is not known here; nothing that trains reads it.
    sizes: Any = None
    if text.tokenizer == "bytes":
        sizes = jnp.ones((text.num_tokens,), jnp.int32).at[text.start].set(0)
    return Language(text.start, text.end, sizes)

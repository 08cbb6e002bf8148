"""What can be wrong with what a run is given, before anything compiles."""

import jax
import numpy as np

from cl_jax.config import check_fields
from cl_jax.conversations.old_text import OldText
from cl_jax.conversations.scoring import batch_of
from cl_jax.conversations.settings import Adaptation
from cl_jax.conversations.stream import Conversations
from cl_jax.errors import UserError
from cl_jax.model import Model, Params


def check(model: Model, params: Params, conversations: Conversations, old: OldText, settings: Adaptation) -> None:
    """Raises UserError: settings out of range, or parts that do not fit each other."""
    check_fields(settings, "adaptation")
    shape = (conversations.context, conversations.longest, conversations.every)
    if shape != (settings.context, settings.longest, settings.every):
        raise UserError(f"conversations have context, longest, every {shape}; the settings ask for others")
    for part in old[:3]:
        if not len(part) or part.shape[1] != settings.context + 1:
            raise UserError(f"old text: rows of shape {part.shape}; expected some, of {settings.context + 1} tokens")
    if not len(conversations):
        raise UserError("there are no conversations")
    if hasattr(settings.policy, "check"):
        settings.policy.check(params)
    known = num_tokens(model, params, old.test)
    if conversations.num_tokens > known:
        raise UserError(f"the tokenizer has ids up to {conversations.num_tokens - 1}, the model up to {known - 1}")


def num_tokens(model: Model, params: Params, rows: np.ndarray) -> int:
    """Ids that a model knows, from the shape of its logits."""
    like = jax.ShapeDtypeStruct((1, *rows.shape[1:]), rows.dtype)
    return jax.eval_shape(lambda params, rows: model.apply(params, batch_of(rows).x), params, like).shape[-1]

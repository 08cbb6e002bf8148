"""How a model learns from a stream of conversations, as one tree of configs."""

from typing import Any

from cl_jax.config import child, config, static
from cl_jax.conversations.guard import Guard
from cl_jax.conversations.policies import Finetune
from cl_jax.optimizers import Adam


@config
class Adaptation:
    """In rounds: score `every` conversations, then take `steps` steps on them, each on `rows` rows of their tokens.

    The rows of a step are the next ones in a random order of the round's; once all were used, in another order.

    Attributes:
        policy: one of `cl_jax.conversations.policies.POLICIES`, or a config that builds a `Policy`.
        guard: a budget that no round may exceed; None: none.
        optimizer: with its learning rate.
        context: tokens that the model sees at once.
        longest: tokens of a conversation; a longer one is cut.
        old_every: rounds from one measure of the base ability to the next.
        old_rows: rows of old text that are held out: so many to measure on, and so many for the guard.
        old_train: rows of old text that policies may learn from.
    """

    policy: Any = child(Finetune)
    guard: Guard | None = child(optional=Guard)
    optimizer: Any = child(Adam)
    every: int = static(8, low=1)
    steps: int = static(4, low=1)
    rows: int = static(16, low=1)
    context: int = static(128, low=1)
    longest: int = static(1024, low=2)
    old_every: int = static(10, low=1)
    old_rows: int = static(128, low=1)
    old_train: int = static(1000, low=1)

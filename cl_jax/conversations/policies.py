"""How a model may learn from conversations: policies, made of the engine's methods and adapters.

A policy is a value, as a method is. Its config builds it for a model; a config of the user's own does as well.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import optax

from cl_jax.adapters.factors import check_factors
from cl_jax.adapters.lora import lora
from cl_jax.batch import Task
from cl_jax.config import config, static, traced
from cl_jax.conversations.scoring import batch_of
from cl_jax.errors import unknown
from cl_jax.method import Method, State, chain
from cl_jax.methods.ewc import ewc
from cl_jax.methods.replay import replay
from cl_jax.model import Model, Params
from cl_jax.train import Learner


class Policy(NamedTuple):
    """What trains what, and when its methods consolidate.

    The tasks of `Learner.method` are the old text, number 0, at the start, and then rounds of conversations, by their
    numbers from 1. `Task.examples` are rows of tokens, which `cl_jax.conversations.scoring.batch_of` reads; the batch
    that `Method.init` sees has them in `extra["rows"]`.
    """

    learner: Learner
    trains: bool = True
    starts: bool = False  # whether the old text is consolidated before the first conversation
    consolidates: int | None = None  # rounds from one boundary to the next; None: there are none
    keeps_base: bool = False  # the adapter never changes its base, which need not be saved again and again


class PolicyConfig(Protocol):
    def build(self, model: Model, optimizer: optax.GradientTransformation) -> Policy: ...


@config
class Frozen:
    """Never learns."""

    def build(self, model: Model, optimizer: optax.GradientTransformation) -> Policy:
        return Policy(Learner(model, optimizer), trains=False)


@config
class Finetune:
    """All parameters, nothing protected."""

    def build(self, model: Model, optimizer: optax.GradientTransformation) -> Policy:
        return Policy(Learner(model, optimizer))


@config
class LowRank:
    """LoRA: the weights stay, and low-rank products beside them learn; see `cl_jax.adapters.lora`."""

    rank: int = static(8, low=1)
    alpha: float = traced(16.0)
    targets: str = static("kernel")

    def build(self, model: Model, optimizer: optax.GradientTransformation) -> Policy:
        adapter = lora(self.rank, self.alpha, self.targets)
        return Policy(Learner(model, optimizer, adapter=adapter), keeps_base=True)

    def check(self, params: Params) -> None:
        """Raises UserError when no matrix matches, or the rank is larger than a matched matrix allows."""
        check_factors(params, self.rank, self.targets)


@config
class OnlineEwc:
    """Weights that old text depends on are held by springs; see `cl_jax.methods.ewc`, with anchors "online".

    Their Fisher is that of the old text at the start, then also of every `consolidates`-th round.
    """

    strength: float = traced(100.0)
    decay: float = traced(1.0, high=1.0)
    kind: str = static("sampled", choices=("sampled", "empirical", "argmax"))
    num_examples: int = static(64, low=1)  # rows, each time
    consolidates: int = static(8, low=1)

    def build(self, model: Model, optimizer: optax.GradientTransformation) -> Policy:
        method = ewc(
            model, self.strength, anchors="online", decay=self.decay, kind=self.kind, num_examples=self.num_examples,
            render=batch_of,
        )  # fmt: skip
        return Policy(Learner(model, optimizer, method), starts=True, consolidates=self.consolidates)


@config
class Rehearsal:
    """Each step also trains on rows of earlier conversations and of old text; see `cl_jax.methods.replay`.

    Of each there is a reservoir of `capacity` rows, and `earlier` and `old` rows of them join a step; the loss is the
    mean over all of its rows. Earlier conversations are those of rounds before.
    """

    earlier: int = static(8, low=1)
    old: int = static(8, low=1)
    capacity: int = static(1000, low=1)

    def build(self, model: Model, optimizer: optax.GradientTransformation) -> Policy:
        def memory(rows: int, takes: Callable[[jax.Array], jax.Array]) -> Method:
            made = replay(
                self.capacity, batch_size=rows, insert="boundary", store=lambda batch: (batch.extra or {})["rows"],
                load=batch_of,
            )  # fmt: skip

            def end_task(key: jax.Array, state: State, params: Params, task: Task) -> State:
                return made.end_task(key, state, params, task._replace(valid=task.valid & takes(task.number)))

            return made._replace(end_task=end_task)

        method = chain(
            earlier=memory(self.earlier, lambda number: number > 0), old=memory(self.old, lambda number: number == 0)
        )
        return Policy(Learner(model, optimizer, method), starts=True, consolidates=1)


POLICIES = {"frozen": Frozen, "finetune": Finetune, "lora": LowRank, "ewc": OnlineEwc, "replay": Rehearsal}


def named(name: str) -> PolicyConfig:
    """A policy's config by its name, with defaults. Raises UserError."""
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES)
    return POLICIES[name]()


def label(policy: PolicyConfig) -> str:
    """The policy's name; of a user's own, its class's in lower case."""
    names = {kind: name for name, kind in POLICIES.items()}
    return names.get(type(policy), type(policy).__name__.lower())

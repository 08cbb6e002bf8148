"""What is run, in three sizes: one base that reads code, one stream of conversations, every policy on it."""

import dataclasses
from typing import Any

from cl_jax.conversations import POLICIES, Adaptation, Guard
from cl_jax.errors import unknown
from cl_jax.models.decoder import Decoder
from cl_jax.optimizers import Adam

DECODER = Decoder(width=96, layers=3, heads=4)
SETTINGS = Adaptation()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """A decoder trained on code from random weights: Adam, its rate warmed up and then lowered along a cosine."""

    model: Decoder = DECODER
    text: str = "text:code?bytes=2000000"
    steps: int = 6000
    batch_size: int = 16
    learning_rate: float = 3e-3
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Every policy at every learning rate, free and under a guard, on conversations in an order of each seed's own.

    Attributes:
        talks: text domains of `cl_jax.text.domains`; the first gives what it has, a later one what is missing.
        number: conversations.
        settings: of every run, but for the policy, the learning rate and the guard.
        budgets: of guards, in bits per byte; None: no guard.
    """

    base: Base = Base()
    talks: tuple[str, ...] = ("dialogues", "banking77")
    number: int = 2000
    settings: Adaptation = SETTINGS
    policies: tuple[str, ...] = ("finetune", "lora", "ewc", "replay")
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    budgets: tuple[float | None, ...] = (None, 0.02)
    seeds: tuple[int, ...] = (0, 1, 2)


SIZES = {
    "smoke": Study(
        base=Base(text="text:code?bytes=400000", steps=600),
        talks=("made_support",), number=60, settings=Adaptation(old_rows=32, old_every=2), learning_rates=(1e-3,),
        seeds=(0,),
    ),
    "mini": Study(
        base=Base(steps=2000), number=400, settings=Adaptation(old_rows=64), learning_rates=(3e-4, 1e-3), seeds=(0,)
    ),
    "full": Study(),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One run."""

    policy: str
    learning_rate: float
    budget: float | None
    seed: int

    @property
    def folder(self) -> str:
        guarded = "" if self.budget is None else f"-within-{self.budget:g}"
        rate = "" if self.policy == "frozen" else f"-{self.learning_rate:g}"
        return f"{self.policy}{rate}{guarded}/seed-{self.seed}"

    def settings(self, study: Study) -> Adaptation:
        policy: Any = POLICIES[self.policy]()
        guard = None if self.budget is None else Guard(budget=self.budget)
        return dataclasses.replace(
            study.settings, policy=policy, guard=guard, optimizer=Adam(learning_rate=self.learning_rate)
        )


def entries(study: Study) -> list[Entry]:
    """Every run: the model that never learns once a seed, the others by seed, so that a whole one is early at hand."""
    made = []
    for seed in study.seeds:
        made.append(Entry(policy="frozen", learning_rate=study.learning_rates[0], budget=None, seed=seed))
        made += [
            Entry(policy=policy, learning_rate=rate, budget=budget, seed=seed)
            for rate in study.learning_rates
            for policy in study.policies
            for budget in study.budgets
        ]
    return made


def sized(name: str) -> Study:
    """A size by its name. Raises UserError."""
    if name not in SIZES:
        raise unknown("size", name, SIZES)
    return SIZES[name]

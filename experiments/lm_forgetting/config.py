"""What fine-tuning on customer support, then on prose, makes a coder forget. See README.md here.

Three sizes of one experiment: `--size smoke`, `mini` (what is run without --size) and `full`.
"""

from typing import Any

from cl_jax.adapters import FreezeLayers, Lora
from cl_jax.adapters.lora import Used
from cl_jax.base import Pretrained
from cl_jax.config import replace
from cl_jax.experiment import Decoder, Entry, Experiment, Run, sweep
from cl_jax.methods import L2, Ewc, Interpolation, KlAnchor, Mixture, SelfReplay
from cl_jax.optimizers import Adam
from cl_jax.schedules import Rewarm
from cl_jax.tasks import Domains

RATE, RANK = "optimizer.learning_rate", "adapter.used.rank"
MADE, REAL = "text:code,made_support,made_prose", "text:code,support,prose"


def grid(base: Run, rates: list[float], *, small: bool) -> tuple[Entry, ...]:
    """Every method over learning rates, since what learns less forgets less: methods compare at equal learning."""
    some = rates[1:-1] or rates

    def method(label: str, value: Any, axes: dict[str, list[Any]] | None = None, over: list[float] = some) -> Any:
        own = {f"methods.{label}.{field}": values for field, values in (axes or {}).items()}
        return sweep(label, replace(base, {"methods": {label: value}}), {RATE: over, **own})

    lora = replace(base, {"adapter": Lora(rank=16, alpha=16.0, first_task="lora", used=Used(rank=16.0))})
    freeze = replace(base, {"adapter": FreezeLayers(first=1.0, from_task=0)})
    ewc = Ewc(anchors="online", kind="sampled", num_examples=128)
    mixed = replace(lora, {"methods": {"mixture": Mixture(share=0.05)}})
    entries = [
        *sweep("finetune", base, {RATE: rates}),
        *sweep("lora", lora, {RATE: [3 * rate for rate in rates], RANK: [16.0] if small else [1.0, 4.0, 16.0]}),
        *method("mixture", Mixture(), {"share": [0.05, 0.25] if small else [0.01, 0.05, 0.25]}, rates),
        *method("ewc", ewc, {"strength": [1e2] if small else [1e1, 1e2, 1e3]}),
        *method("kl_new", KlAnchor(), {"strength": [1.0]}),
    ]
    if not small:
        batched = replace(ewc, {"kind": "batched"})
        entries += [
            *method("self_replay", SelfReplay(), {"share": [0.05, 0.25]}),
            *method("ewc_batched", batched, {"strength": [1e2, 1e3, 1e4]}),
            *method("kl_old", KlAnchor(inputs="old"), {"strength": [1.0]}),
            *method("l2", L2(), {"strength": [1e-2, 1e-1]}),
            *method("interpolation", Interpolation(), {"tau": [0.25, 0.5, 0.75]}, rates[:1]),
            *sweep("freeze", freeze, {RATE: some}),
            *sweep("lora_mixture", mixed, {RATE: [3 * rate for rate in some]}),
        ]
    return tuple(entries)


def sized(name: str, data: str, model: Decoder, base: Pretrained, seeds: int, *, small: bool, **run: Any) -> Experiment:
    start = Run(
        data=data, stream=Domains(num_tasks=3), model=model, base=base, schedule=Rewarm(), **run,
        diagnostics=("base_kl", "transitions"),
    )  # fmt: skip
    rates = [1e-2, 3e-3, 1e-3, 3e-4] if not small else [1e-2, 3e-3, 1e-3]
    return Experiment(
        name=f"lm_forgetting-{name}",
        description="A small decoder of bytes learns code, then customer support, then prose: what it forgets of code.",
        entries=grid(start, rates, small=small),
        seeds=tuple(range(seeds)),
    )


def pretrained(steps: int, batch_size: int = 16, rate: float = 5e-3) -> Pretrained:
    return Pretrained(steps=steps, batch_size=batch_size, optimizer=Adam(learning_rate=rate))


sizes = {
    "smoke": sized(
        "smoke", f"{MADE}?context=64&bytes=200000&heldout=4000", Decoder(width=32, layers=2), pretrained(300), 2,
        small=True, steps=50, batch_size=8,
    ),
    "mini": sized(
        "mini", f"{REAL}?context=64&bytes=1000000&heldout=8000", Decoder(width=64, layers=2), pretrained(1500), 3,
        small=False, steps=100, batch_size=16,
    ),
    "full": sized(
        "full", f"{REAL}?context=256&bytes=4000000&heldout=100000", Decoder(width=256, layers=6),
        pretrained(20000, 64, 2e-3), 3, small=False, steps=1000, batch_size=64,
    ),
}  # fmt: skip
experiment = sizes["mini"]

"""Quickstart: what is forgotten on five tasks of handwritten digits, and what reduces it. See README.md here."""

from collections.abc import Mapping, Sequence

from cl_jax.adapters import Freeze, Lora
from cl_jax.config import replace
from cl_jax.experiment import Entry, Experiment, Mlp, Run, sweep
from cl_jax.methods import L2, Ewc, Replay
from cl_jax.optimizers import Adam
from cl_jax.tasks import Permuted, Split

permuted = Run(
    data="digits",
    stream=Permuted(num_tasks=5),
    model=Mlp(hidden=(100, 100), initialization="he"),
    optimizer=Adam(learning_rate=2e-3),
    steps=300,
    batch_size=32,
)
split = replace(permuted, {"stream": Split(num_tasks=5), "scenario": "class", "steps": 100})


def compare(base: Run, tried: Mapping[str, Sequence[float]]) -> tuple[Entry, ...]:
    """The same comparison on any stream; runs that differ in numbers alone share one compiled program."""
    with_ewc = replace(base, {"methods": {"ewc": Ewc(anchors="online")}})
    with_replay = replace(base, {"methods": {"replay": Replay(capacity=200)}})
    with_both = replace(base, {"methods": {"ewc": Ewc(anchors="online"), "replay": Replay(capacity=200)}})
    low_rank = replace(with_both, {"adapter": Lora(rank=4)})
    return (
        *sweep("finetune", base),
        *sweep("joint", replace(base, {"exposure": "seen"})),
        *sweep("low learning rate", base, {"optimizer.learning_rate": [3e-5, 1e-4, 3e-4, 1e-3]}),
        *sweep("learning-rate decay", base, {"schedule.rate": [0.1, 0.3, 0.5, 0.7]}),
        *sweep("l2", replace(base, {"methods": {"l2": L2()}}), {"methods.l2.strength": tried["l2"]}),
        *sweep("ewc", with_ewc, {"methods.ewc.strength": tried["ewc"]}),
        *sweep("replay", with_replay),
        *sweep("ewc + replay", with_both, {"methods.ewc.strength": tried["ewc + replay"]}),
        *sweep("lora + ewc + replay", low_rank, {"optimizer.learning_rate": tried["lora + ewc + replay"]}),
        *sweep("freeze", replace(base, {"adapter": Freeze(pattern="dense_0/")})),
    )


on_permuted = {
    "l2": [1e-3, 1e-2, 1e-1, 1.0],
    "ewc": [1.0, 10.0, 30.0, 100.0, 1e3],
    "ewc + replay": [0.1, 1.0, 10.0, 100.0],
    "lora + ewc + replay": [1e-3, 2e-3, 4e-3],
}
on_split = {
    "l2": [1.0, 10.0, 100.0, 1e3],
    "ewc": [1e2, 1e3, 1e4, 1e5, 1e6],
    "ewc + replay": [0.1, 1.0, 10.0, 100.0],
    "lora + ewc + replay": [2e-3, 4e-3, 8e-3],
}

experiment = Experiment(
    name="quickstart",
    description="Five tasks of handwritten digits, one after another: what is forgotten, and what reduces it.",
    entries=(*compare(permuted, on_permuted), *compare(split, on_split)),
    seeds=(0, 1, 2, 3, 4),
)

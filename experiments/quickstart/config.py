"""Quickstart: what is forgotten on five tasks of handwritten digits, and what reduces it. See README.md here."""

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


def compare(base: Run) -> tuple[Entry, ...]:
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
        *sweep("l2", replace(base, {"methods": {"l2": L2()}}), {"methods.l2.strength": [1e-3, 1e-2, 1e-1, 1.0]}),
        *sweep("ewc", with_ewc, {"methods.ewc.strength": [1.0, 10.0, 30.0, 100.0, 1e3]}),
        *sweep("replay", with_replay),
        *sweep("ewc + replay", with_both, {"methods.ewc.strength": [0.1, 1.0, 10.0, 100.0]}),
        *sweep("lora + ewc + replay", low_rank, {"optimizer.learning_rate": [1e-3, 2e-3, 4e-3]}),
        *sweep("freeze", replace(base, {"adapter": Freeze(pattern="dense_0/")})),
    )


experiment = Experiment(
    name="quickstart",
    description="Five tasks of handwritten digits, one after another: what is forgotten, and what reduces it.",
    entries=(*compare(permuted), *compare(split)),
    seeds=(0, 1, 2, 3, 4),
)

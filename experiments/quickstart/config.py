"""Quickstart: what is forgotten on five tasks of handwritten digits, and what reduces it. See README.md here."""

from cl_jax.adapters import Freeze, Lora
from cl_jax.config import replace
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.methods import L2, Ewc, Replay
from cl_jax.optimizers import Adam
from cl_jax.schedules import TaskDecay
from cl_jax.tasks import Permuted

permuted = Run(
    data="digits",
    stream=Permuted(num_tasks=5),
    model=Mlp(hidden=(100, 100)),
    optimizer=Adam(learning_rate=1e-3),
    steps=300,
    batch_size=32,
)


def entries(base: Run):
    """The same comparison for any base run."""
    ewc = replace(base, {"methods": {"ewc": Ewc(anchors="online")}})
    both = replace(base, {"methods": {"ewc": Ewc(anchors="online"), "replay": Replay(capacity=200)}})
    return (
        *sweep("finetune", base),
        *sweep("joint", replace(base, {"exposure": "seen"})),
        *sweep("low learning rate", base, {"optimizer.learning_rate": [3e-5, 1e-4, 3e-4]}),
        *sweep("learning-rate decay", replace(base, {"schedule": TaskDecay()}), {"schedule.rate": [0.3, 0.5, 0.7]}),
        *sweep("l2", replace(base, {"methods": {"l2": L2()}}), {"methods.l2.strength": [1e-3, 1e-2, 1e-1, 1.0]}),
        *sweep("ewc", ewc, {"methods.ewc.strength": [1.0, 10.0, 100.0, 1e3, 1e4]}),
        *sweep("replay", replace(base, {"methods": {"replay": Replay(capacity=400)}})),
        *sweep("ewc + replay", both, {"methods.ewc.strength": [0.1, 1.0, 10.0, 100.0]}),
        *sweep("lora", replace(base, {"adapter": Lora(rank=4)}), {"optimizer.learning_rate": [1e-3, 3e-3, 1e-2]}),
        *sweep("freeze", replace(base, {"adapter": Freeze(pattern="dense_0/")})),
    )


experiment = Experiment(
    name="quickstart",
    description="Five permuted-digits tasks, one after another: what is forgotten, and what reduces it.",
    entries=entries(permuted),
    seeds=(0, 1, 2, 3, 4),
)

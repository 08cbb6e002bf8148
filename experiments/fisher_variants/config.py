"""How the Fisher is computed: five ways x 14 strengths, van de Ven 2025 (arXiv 2502.11756). See README.md here."""

from cl_jax.config import replace
from cl_jax.experiment import Entry, Experiment, Mlp, Run, sweep
from cl_jax.methods import Ewc
from cl_jax.optimizers import Adam
from cl_jax.tasks import Split

base = Run(
    data="tfds:mnist",
    stream=Split(num_tasks=5),
    scenario="task",
    model=Mlp(hidden=(400, 400)),
    optimizer=Adam(learning_rate=1e-3),
    steps=2000,
    batch_size=128,
)
strengths = [10.0**power for power in range(14)]
variants = {
    "exact": Ewc(kind="exact"),
    "exact, 500 examples": Ewc(kind="exact", num_examples=500),
    "sampled": Ewc(kind="sampled"),
    "empirical": Ewc(kind="empirical"),
    "batched, 128": Ewc(kind="batched", batch_size=128),
}


def strengths_of(label: str, ewc: Ewc) -> tuple[Entry, ...]:
    run = replace(base, {"methods": {"ewc": replace(ewc, {"anchors": "online"})}})
    return sweep(label, run, {"methods.ewc.strength": strengths})


experiment = Experiment(
    name="fisher_variants",
    description="Split MNIST, task-incremental, online EWC: five ways to compute the Fisher, 14 strengths each.",
    entries=(*sweep("none", base), *(entry for item in variants.items() for entry in strengths_of(*item))),
    seeds=(0, 1, 2),
)

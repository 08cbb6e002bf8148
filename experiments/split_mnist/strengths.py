"""EWC's strength on split MNIST by Fisher kind, over few seeds, chosen on validation. See README.md here."""

from cl_jax.config import replace
from cl_jax.experiment import Entry, Experiment, Mlp, Run, sweep
from cl_jax.methods import Ewc
from cl_jax.optimizers import Adam
from cl_jax.tasks import Split

base = Run(
    data="tfds:mnist",
    stream=Split(num_tasks=5),
    model=Mlp(hidden=(400, 400)),
    optimizer=Adam(learning_rate=1e-3),
    steps=2000,
    batch_size=128,
)


def compare(scenario: str) -> tuple[Entry, ...]:
    run = replace(base, {"scenario": scenario})
    argmax = replace(run, {"methods": {"ewc": Ewc(kind="argmax")}})
    exact = replace(run, {"methods": {"ewc": Ewc(kind="exact")}})
    return (
        *sweep("finetune", run),
        *sweep("ewc, argmax", argmax, {"methods.ewc.strength": [1e5, 1e6, 1e7, 1e8]}),
        *sweep("ewc, exact", exact, {"methods.ewc.strength": [1e3, 1e4, 1e5, 1e6]}),
    )


experiment = Experiment(
    name="split_mnist_strengths",
    description="How strong EWC should be on split MNIST, with the Fisher of the argmax label and the exact one.",
    entries=(*compare("task"), *compare("domain")),
    seeds=(0, 1),
)

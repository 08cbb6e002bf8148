"""Split MNIST in three scenarios, the protocol of van de Ven and Tolias 2019 (arXiv 1904.07734). See README.md here."""

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
# The published strengths, and their Fisher: of the most probable label, one penalty per task.
published = {"task": 1e7, "domain": 1e6, "class": 1e8}


def compare(scenario: str) -> tuple[Entry, ...]:
    run = replace(base, {"scenario": scenario})
    ewc = replace(run, {"methods": {"ewc": Ewc(strength=published[scenario], kind="argmax")}})
    return (
        *sweep("finetune", run),
        *sweep("ewc", ewc),
        *sweep("joint", replace(run, {"exposure": "seen"})),
    )


experiment = Experiment(
    name="split_mnist",
    description="Split MNIST, five tasks of two digits, read as task-, domain- and class-incremental.",
    entries=tuple(entry for scenario in published for entry in compare(scenario)),
    seeds=tuple(range(20)),
)

"""Split MNIST in three scenarios, optimizers and methods, the protocol of Hsu et al. 2018 (arXiv 1810.12488). See
README.md here.
"""

from cl_jax.config import replace
from cl_jax.experiment import Entry, Experiment, Mlp, Run, sweep
from cl_jax.methods import Ewc, Gem, Lwf, Replay, Si
from cl_jax.models import Standardized
from cl_jax.optimizers import Adam, Sgd
from cl_jax.tasks import Split

base = Run(
    data="tfds:mnist",
    validation=0.01,  # nothing is chosen on it
    stream=Split(num_tasks=5, class_order="natural"),
    model=Standardized(model=Mlp(hidden=(400, 400))),
    optimizer=Adam(learning_rate=1e-3),
    steps=376,  # four epochs of 12 000 images
    batch_size=128,
)
# Theirs without the 1/2 of the penalty. The Fisher of the most probable label, one penalty per task.
ewc = {"task": 2 * 100.0, "domain": 2 * 100.0, "class": 2 * 600.0}
si = {"task": 300.0, "domain": 3000.0, "class": 600.0}
memory = Replay(capacity=1100, insert="boundary")


def compare(scenario: str) -> tuple[Entry, ...]:
    run = replace(base, {"scenario": scenario})
    sgd = replace(run, {"optimizer": Sgd(learning_rate=0.01)})
    # The LwF row is van de Ven and Tolias' of 2018: 28 x 28 pixels in [0, 1] and 2000 steps a task.
    distilled = {"model": Mlp(hidden=(400, 400)), "steps": 2000, "methods": {"lwf": Lwf(convention="van_de_ven_2019")}}
    gem = {"replay": memory, "gem": Gem(capacity=1100, insert="boundary")}
    return (
        *sweep("Adam", run),
        *sweep("SGD", sgd),
        *sweep("EWC", replace(run, {"methods": {"ewc": Ewc(strength=ewc[scenario], kind="argmax")}})),
        *sweep("SI", replace(run, {"methods": {"si": Si(strength=si[scenario], clip="none")}})),
        *sweep("LwF", replace(run, distilled)),
        *sweep("naive rehearsal", replace(run, {"methods": {"replay": memory}})),
        *sweep("GEM", replace(sgd, {"methods": gem})),
        *sweep("offline", replace(run, {"exposure": "all", "training_mask": "all" if scenario == "class" else "seen"})),
    )


experiment = Experiment(
    name="hsu_2018",
    description="Split MNIST, five tasks of two digits in three scenarios: what the optimizer changes, and methods.",
    entries=tuple(entry for scenario in ewc for entry in compare(scenario)),
    seeds=tuple(range(10)),
)

"""Permuted MNIST, twenty tasks, one pass each, the protocol of Buzzega et al. 2020 (arXiv 2004.07211). See README.md
here.
"""

from typing import Any

from cl_jax.config import replace
from cl_jax.experiment import Entry, Experiment, Mlp, Run, sweep
from cl_jax.methods import Agem, Der, Derpp, Ewc, Replay, Si
from cl_jax.optimizers import Clip, Sgd
from cl_jax.tasks import Permuted

base = Run(
    data="tfds:mnist",
    validation=0.01,  # nothing is chosen on it
    stream=Permuted(num_tasks=20),
    model=Mlp(hidden=(100, 100)),
    optimizer=Sgd(learning_rate=0.2),
    passes=1,
    recent=1,  # all tasks are evaluated at the end
    batch_size=128,
)
clipped = Sgd(learning_rate=0.1, clip=Clip(most=1.0))
agem = Agem(capacity=500, batch_size=128, insert="shared", policy="reservoir")


def one(label: str, method: Any, optimizer: Sgd = base.optimizer) -> tuple[Entry, ...]:
    return sweep(label, replace(base, {"methods": {label: method}, "optimizer": optimizer}))


experiment = Experiment(
    name="buzzega_2020",
    description="Twenty permutations of MNIST, one pass each: regularisation, replay of 500 examples, its relatives.",
    entries=(
        *sweep("sgd", base),
        # Theirs without the 1/2 of the penalty.
        *one("oewc", Ewc(strength=2 * 0.7, anchors="online"), Sgd(learning_rate=0.1)),
        *one("oewc_empirical", Ewc(strength=2 * 0.7, anchors="online", kind="empirical"), Sgd(learning_rate=0.1)),
        *one("si", Si(strength=0.5, xi=1.0, clip="none", gradient="total"), clipped),
        *one("er", Replay(capacity=500)),
        *one("agem", agem, Sgd(learning_rate=0.1)),
        *one("der", Der(alpha=1.0, capacity=500)),
        *one("derpp", Derpp(alpha=1.0, beta=0.5, capacity=500)),
        *sweep("joint", replace(base, {"exposure": "all"})),
    ),
    seeds=tuple(range(10)),
)

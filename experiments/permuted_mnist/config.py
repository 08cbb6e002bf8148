"""Permuted MNIST: fine-tuning, L2 and EWC over ten tasks (Kirkpatrick et al. 2017). See README.md here."""

from cl_jax.config import replace
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.methods import L2, Ewc
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted

base = Run(
    data="tfds:mnist",
    validation=0.05,
    stream=Permuted(num_tasks=10),
    model=Mlp(hidden=(400, 400)),
    optimizer=Sgd(learning_rate=0.1),
    steps=1000,
    batch_size=128,
)
l2 = replace(base, {"methods": {"l2": L2()}})
# Proximal: the spring is taken as an exact step, so that no strength can make plain SGD diverge.
ewc = replace(base, {"methods": {"ewc": Ewc(proximal=True)}})

experiment = Experiment(
    name="permuted_mnist",
    description="Ten permutations of MNIST, one after another: fine-tuning, L2 to the anchor, EWC.",
    entries=(
        *sweep("finetune", base),
        *sweep("l2", l2, {"methods.l2.strength": [1e-3, 1e-2, 1e-1, 1.0]}),
        *sweep("ewc", ewc, {"methods.ewc.strength": [0.1, 1.0, 10.0, 100.0, 1e3, 1e4]}),
        *sweep("joint", replace(base, {"exposure": "seen"})),
    ),
    seeds=(0, 1, 2),
)

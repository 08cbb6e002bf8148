"""Two hundred permutations of MNIST: does a network lose its ability to learn, and what keeps it? After Dohare et al.
2024 (Nature 632) and Kumar et al. 2023 (arXiv 2308.11958), in small. See README.md here.
"""

from typing import Any

from cl_jax.config import replace
from cl_jax.experiment import Entry, Experiment, Mlp, Run, sweep
from cl_jax.methods import ContinualBackprop, L2Init, ShrinkPerturb
from cl_jax.optimizers import Adam, Sgd
from cl_jax.tasks import Permuted

base = Run(
    data="tfds:mnist",
    stream=Permuted(num_tasks=200, permutations="derived"),
    model=Mlp(hidden=(100, 100)),
    optimizer=Adam(learning_rate=1e-3),
    steps=300,
    batch_size=32,
    recent=1,  # what is asked is how well each new task is learned
    diagnostics=("plasticity",),
)


def kept(name: str, method: Any, values: dict[str, list[Any]]) -> tuple[Entry, ...]:
    of_method = {f"methods.{name}.{field}": grid for field, grid in values.items()}
    return sweep(name, replace(base, {"methods": {name: method}}), of_method)


experiment = Experiment(
    name="plasticity",
    description="Two hundred permutations of MNIST: how well each new one is still learned, and what keeps that up.",
    entries=(
        *sweep("Adam", base),
        *sweep("SGD", replace(base, {"optimizer": Sgd(learning_rate=0.05)})),
        *sweep("Adam, reset", replace(base, {"optimizer": Adam(learning_rate=1e-3, reset=True)})),
        *sweep("Adam, layer norm", replace(base, {"model": Mlp(hidden=(100, 100), layer_norm=True)})),
        *kept("l2_init", L2Init(), {"strength": [1e-3, 1e-2]}),
        *kept("shrink_perturb", ShrinkPerturb(), {"shrink": [0.8, 0.5], "perturb": [0.2]}),
        *kept("continual_backprop", ContinualBackprop(), {"replacement_rate": [1e-4, 1e-3]}),
    ),
    seeds=(0, 1, 2),
)

"""Do tasks use the same weights? Figure 2C of Kirkpatrick et al. 2017 (arXiv 1612.00796): two tasks that differ in a
small square of permuted pixels or in nearly all, by layer. See README.md here.
"""

from cl_jax.config import replace
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.methods import Ewc
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted

base = Run(
    data="tfds:mnist",
    stream=Permuted(num_tasks=2, first_identity=True, square=26),
    model=Mlp(hidden=(100,) * 6, initialization="he"),
    optimizer=Sgd(learning_rate=0.02, momentum=0.9, use_momentum=True),
    methods={"ewc": Ewc(strength=30.0)},
    steps=4000,
    batch_size=128,
    diagnostics=("fisher_overlap", "shared_weights"),
)

experiment = Experiment(
    name="fisher_overlap",
    description="Two tasks that differ in 8 x 8 or in 26 x 26 permuted pixels: overlap of their Fishers by layer.",
    entries=(
        *sweep("8 x 8 permuted", replace(base, {"stream.square": 8})),
        *sweep("26 x 26 permuted", base),
        *sweep("26 x 26, fine-tuned", replace(base, {"methods": {}})),
    ),
    seeds=(0, 1, 2),
)

"""Every method beside fine-tuning and joint training, on permuted MNIST (domain-incremental) and split MNIST (task- and
class-incremental), strengths chosen on validation. See README.md here.
"""

from typing import Any

from cl_jax import methods
from cl_jax.adapters import Freeze, Lora, Olora, Packnet, TaskLora, Xdg
from cl_jax.config import replace
from cl_jax.experiment import Dropout, Entry, Experiment, Mlp, Run, sweep
from cl_jax.optimizers import Sgd
from cl_jax.schedules import TaskDecay
from cl_jax.tasks import Permuted, Split

MEMORY = 500  # examples, of whatever keeps some
EXAMPLES = 1000  # that importance is measured on at a boundary

permuted = Run(
    data="tfds:mnist",
    validation=0.05,
    stream=Permuted(num_tasks=10),
    model=Mlp(hidden=(100, 100)),
    optimizer=Sgd(learning_rate=0.1),
    steps=200,
    batch_size=64,
    recent=1,  # what each task reached, and all tasks at the end
)
split = replace(permuted, {"stream": Split(num_tasks=5), "recent": None, "diagnostics": ("forward_kl",)})
SCENARIOS = {
    "domain": permuted,
    "task": replace(split, {"scenario": "task"}),
    "class": replace(split, {"scenario": "class"}),
}

Grid = dict[str, list[Any]]  # of a method's or adapter's own fields

# What pulls weights back towards where they were. Proximal: stable under plain SGD at any strength.
REGULARISED: dict[str, tuple[Any, Grid]] = {
    "l2": (methods.L2(), {"strength": [0.01, 0.1, 1.0]}),
    "ewc": (
        methods.Ewc(proximal=True, anchors="online", num_examples=EXAMPLES),
        {"strength": [1.0, 10.0, 100.0, 1e3, 1e4]},
    ),
    "laplace": (methods.Laplace(num_examples=EXAMPLES), {"strength": [0.03, 0.1, 0.3, 1.0, 10.0]}),
    "si": (methods.Si(), {"strength": [0.1, 0.3, 1.0, 3.0]}),
    "mas": (methods.Mas(num_examples=EXAMPLES), {"strength": [0.01, 0.03, 0.1, 0.3, 1.0]}),
    "rwalk": (methods.Rwalk(), {"strength": [0.3, 1.0, 3.0, 10.0]}),
    "lwf": (methods.Lwf(), {"strength": [0.3, 1.0, 3.0]}),
    "interpolation": (methods.Interpolation(), {"tau": [0.3, 0.5, 0.7]}),
    "average": (methods.Average(), {"decay": [0.99, 0.999]}),
}
REHEARSED: dict[str, tuple[Any, Grid]] = {
    "replay": (methods.Replay(capacity=MEMORY), {}),
    "anchoring": (methods.Anchoring(capacity=MEMORY), {"strength": [0.3, 1.0, 3.0]}),
    "der": (methods.Der(capacity=MEMORY), {"alpha": [0.1, 0.3, 1.0]}),
    "derpp": (methods.Derpp(capacity=MEMORY), {"alpha": [0.1, 0.3, 1.0]}),
    "er_ace": (methods.ErAce(capacity=MEMORY), {}),
    "mir": (methods.Mir(capacity=MEMORY), {}),
    "gdumb": (methods.Gdumb(capacity=MEMORY, batch_size=32), {}),
    "icarl": (methods.Icarl(capacity=MEMORY), {}),
    "generative_replay": (methods.GenerativeReplay(hidden=(200, 200), num_latent=50), {}),
}
PROJECTED: dict[str, tuple[Any, Grid]] = {
    "agem": (methods.Agem(capacity=MEMORY), {}),
    "gem": (methods.Gem(capacity=MEMORY), {"margin": [0.0, 0.5]}),
    "ogd": (methods.Ogd(num_examples=50), {}),
    "gpm": (methods.Gpm(), {"threshold": [0.8, 0.9, 0.95, 0.99]}),
}
# Made for plasticity: they claim nothing about forgetting.
RENEWING: dict[str, tuple[Any, Grid]] = {
    "l2_init": (methods.L2Init(), {"strength": [1e-4, 1e-3]}),
    "shrink_perturb": (methods.ShrinkPerturb(perturb=0.01), {"shrink": [0.9, 0.99]}),
    "continual_backprop": (methods.ContinualBackprop(), {}),
}
ADAPTERS: dict[str, tuple[Any, Grid]] = {
    "lora": (Lora(rank=4), {"alpha": [0.5, 2.0]}),
    "freeze": (Freeze(), {}),
    "olora": (Olora(rank=4), {"alpha": [0.5, 2.0], "strength": [0.1, 1.0]}),
}
# The task is told when they are evaluated.
TOLD: dict[str, tuple[Any, Grid]] = {
    "xdg": (Xdg(), {"share": [0.3, 0.5, 0.8]}),
    "packnet": (Packnet(), {"share": [0.5, 0.75]}),
    "task_lora": (TaskLora(rank=4), {"alpha": [0.5, 2.0]}),
}


def compare(scenario: str) -> tuple[Entry, ...]:
    run = SCENARIOS[scenario]
    entries = [
        *sweep("finetune", run),
        *sweep("low rates", replace(run, {"schedule": TaskDecay()}), {"schedule.rate": [0.3, 0.6, 0.8]}),
        *sweep("dropout", replace(run, {"model": Mlp(hidden=(100, 100), dropout=Dropout(rate=0.5))})),
        *sweep("joint", replace(run, {"exposure": "seen"})),
    ]
    for name, (method, grid) in {**REGULARISED, **REHEARSED, **PROJECTED, **RENEWING}.items():
        axes = {f"methods.{name}.{field}": values for field, values in grid.items()}
        entries += sweep(name, replace(run, {"methods": {name: method}}), axes)
    for name, (adapter, grid) in {**ADAPTERS, **(TOLD if scenario != "class" else {})}.items():
        entries += sweep(name, replace(run, {"adapter": adapter}), {f"adapter.{field}": v for field, v in grid.items()})
    return tuple(entries)


experiment = Experiment(
    name="method_zoo",
    description="Every method, permuted and split MNIST in three scenarios; strengths chosen on validation.",
    entries=tuple(entry for scenario in SCENARIOS for entry in compare(scenario)),
    seeds=tuple(range(5)),
)

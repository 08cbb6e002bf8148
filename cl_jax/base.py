"""What a run starts from instead of random weights: a base model, which stands for its first task."""

from typing import Any

from cl_jax.config import child, config, static
from cl_jax.optimizers import Adam
from cl_jax.schedules import Rewarm


@config
class Pretrained:
    """Random weights trained on the first task, all of them, by plain fine-tuning, once for every seed.

    Whatever adapts the base has no part in it: the optimizer, the adapter and the methods of the run begin after it,
    and the run's own steps are those of the tasks from the second on.

    Attributes:
        steps, batch_size: of the training. optimizer, schedule: of it alone.
    """

    steps: int = static(2000, low=1)
    batch_size: int = static(16, low=1)
    optimizer: Any = child(Adam)
    schedule: Any = child(Rewarm)


BASES: dict[str, Any] = {"pretrained": Pretrained}

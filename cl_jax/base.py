"""What a run starts from instead of random weights: a base model, which stands for its first task."""

import dataclasses
from pathlib import Path
from typing import Any

from cl_jax.config import child, config, static
from cl_jax.models.decoder import Decoder
from cl_jax.optimizers import Adam
from cl_jax.schedules import Rewarm
from cl_jax.weights.config_json import read_config


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


@config
class Weights:
    """Open weights in a folder on this machine: every member starts from them, and nothing trains on the first task.

    The first domain of the stream stands for what they know already: it is evaluated after task 1, which is the base as
    it is, and again after each later task. What is evaluated before task 1 are random weights, as of any run. The model
    has to be theirs: `model=base.decoder()`. Of a vocabulary larger than the tokenizer's, as where it was rounded up,
    the ids that no text has are left out.

    Attributes:
        path: the folder, with config.json and safetensors as `cl_jax.weights.load_weights` reads them; a relative one
            is relative to where the process runs.
        sha256: of these files; None: whatever they are. A run is known by it: it is filled in before members are named.
    """

    path: str = static("")
    sha256: str | None = static(None)

    def decoder(self, **switches: Any) -> Decoder:
        """The model that the weights are of, with `compute` and `remat` as wanted. Raises UserError: no such folder."""
        return dataclasses.replace(read_config(self.folder)[0], **switches)

    @property
    def folder(self) -> Path:
        return Path(self.path).expanduser()


BASES: dict[str, Any] = {"pretrained": Pretrained, "weights": Weights}

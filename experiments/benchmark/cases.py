"""What is trained: synthetic images of the shapes of MNIST and CIFAR, and the runs made of them."""

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from cl_jax.data import Data, split_source
from cl_jax.experiment import MODELS, Mlp, Run
from cl_jax.optimizers import Adam, Sgd
from cl_jax.sources import Source
from cl_jax.tasks import Split

IMAGES = {"mnist": (28, 28, 1), "cifar": (32, 32, 3)}
STEPS = 2000  # of a task, where the number of steps matters
NUM_CLASSES = 10


@functools.cache
def images(kind: str = "mnist", train: int = 20000, test: int = 256) -> Data:
    """Uniformly random pixels and labels, uint8 as a real set has them: what a step costs does not depend on values."""
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = rng.integers(0, 256, (count, *IMAGES[kind]), dtype=np.uint8)
        return pixels, rng.integers(0, NUM_CLASSES, count, dtype=np.int32)

    (x, y), (test_x, test_y) = part(train), part(test)
    return split_source(Source("random", x, y, test_x, test_y, NUM_CLASSES, 255), validation=test / train)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A training step to time."""

    model: str  # as `model_of` takes it
    batch_size: int
    optimizer: str  # "sgd" or "adam"

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch_size}, {self.optimizer}"

    @property
    def about(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def kind(self) -> str:
        return "cifar" if self.model.startswith("resnet") else "mnist"

    def run(self, **changes: Any) -> Run:
        """One task of all classes, plain fine-tuning, unless changed."""
        settings: dict[str, Any] = {
            "data": "random", "stream": Split(num_tasks=1, class_order="natural"), "model": model_of(self.model),
            "optimizer": OPTIMIZERS[self.optimizer], "steps": STEPS, "batch_size": self.batch_size,
        }  # fmt: skip
        return Run(**{**settings, **changes})


OPTIMIZERS: dict[str, Any] = {"sgd": Sgd(learning_rate=0.01), "adam": Adam(learning_rate=1e-4)}


def known(model: str) -> bool:
    """Whether this version has the model."""
    return model.partition("-")[0] in MODELS


def model_of(name: str) -> Any:
    """The config of a model: `mlp-400` has two hidden layers of 400; other names are those of `MODELS`."""
    if found := re.fullmatch(r"mlp-(\d+)", name):
        return Mlp(hidden=(int(found[1]), int(found[1])))
    return MODELS[name]()

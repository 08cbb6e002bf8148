"""Models by name: pure functions of parameters and inputs."""

from typing import Any

from cl_jax.models.cnn import Cnn
from cl_jax.models.decoder import Decoder
from cl_jax.models.encoder import Encoder
from cl_jax.models.mlp import Dropout as Dropout
from cl_jax.models.mlp import Mlp
from cl_jax.models.resnet import Resnet18
from cl_jax.models.standardized import Standardized

MODELS: dict[str, Any] = {
    "mlp": Mlp, "cnn": Cnn, "resnet18": Resnet18, "standardized": Standardized, "decoder": Decoder,
    "encoder": Encoder,
}  # fmt: skip

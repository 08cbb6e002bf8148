"""Adapters by name: what is trained."""

from typing import Any

from cl_jax.adapters.adapter import Adapter
from cl_jax.adapters.freeze import Freeze, FreezeLayers
from cl_jax.adapters.lora import Lora
from cl_jax.adapters.olora import Olora
from cl_jax.adapters.packnet import Packnet
from cl_jax.adapters.task_lora import TaskLora
from cl_jax.adapters.xdg import Xdg
from cl_jax.config import config
from cl_jax.model import Params


@config
class Full:
    """Every parameter trains: full fine-tuning."""

    def build(self, num_tasks: int = 1) -> Adapter:
        return Adapter()

    def check(self, params: Params) -> None:
        """Nothing can be wrong."""


ADAPTERS: dict[str, Any] = {
    "full": Full,
    "lora": Lora,
    "task_lora": TaskLora,
    "olora": Olora,
    "freeze": Freeze,
    "freeze_layers": FreezeLayers,
    "packnet": Packnet,
    "xdg": Xdg,
}

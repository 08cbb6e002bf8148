"""Task streams by name: what the tasks are, as pure functions of a seed."""

from typing import Any

from cl_jax.tasks.permuted import Permuted
from cl_jax.tasks.rotated import Rotated
from cl_jax.tasks.split import Split

STREAMS: dict[str, Any] = {"permuted": Permuted, "rotated": Rotated, "split": Split}

"""Task streams by name: what the tasks are, as pure functions of a seed; and how one passes into the next."""

from typing import Any

from cl_jax.tasks.boundaries import BOUNDARIES as BOUNDARIES
from cl_jax.tasks.boundaries import Fuzzy as Fuzzy
from cl_jax.tasks.boundaries import LinearDecay as LinearDecay
from cl_jax.tasks.boundaries import Scattered as Scattered
from cl_jax.tasks.boundaries import Sharp as Sharp
from cl_jax.tasks.corrupted import Corrupted
from cl_jax.tasks.domains import Domains
from cl_jax.tasks.noisy_labels import NoisyLabels
from cl_jax.tasks.permuted import Permuted
from cl_jax.tasks.repeated import Repeated
from cl_jax.tasks.rotated import Rotated
from cl_jax.tasks.split import Split
from cl_jax.tasks.unequal import Unequal

STREAMS: dict[str, Any] = {
    "permuted": Permuted,
    "rotated": Rotated,
    "corrupted": Corrupted,
    "split": Split,
    "domains": Domains,
    "repeated": Repeated,
    "unequal": Unequal,
    "noisy_labels": NoisyLabels,
}

"""Methods by name. Adding one to the package: one file with a config class, and one line here."""

from typing import Any

from cl_jax.methods.average import Average
from cl_jax.methods.continual_backprop import ContinualBackprop
from cl_jax.methods.ewc import Ewc
from cl_jax.methods.interpolation import Interpolation
from cl_jax.methods.l2 import L2
from cl_jax.methods.l2_init import L2Init
from cl_jax.methods.replay import Replay
from cl_jax.methods.shrink_perturb import ShrinkPerturb

METHODS: dict[str, Any] = {
    "l2": L2,
    "ewc": Ewc,
    "replay": Replay,
    "average": Average,
    "interpolation": Interpolation,
    "l2_init": L2Init,
    "shrink_perturb": ShrinkPerturb,
    "continual_backprop": ContinualBackprop,
}

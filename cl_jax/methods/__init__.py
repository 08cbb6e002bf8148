"""Methods by name. Adding one to the package: one file with a config class, and one line here."""

from typing import Any

from cl_jax.methods.anchoring import Anchoring
from cl_jax.methods.der import Der, Derpp
from cl_jax.methods.er_ace import ErAce
from cl_jax.methods.ewc import Ewc
from cl_jax.methods.l2 import L2
from cl_jax.methods.lwf import Lwf
from cl_jax.methods.mir import Mir
from cl_jax.methods.replay import Replay

METHODS: dict[str, Any] = {
    "l2": L2,
    "ewc": Ewc,
    "replay": Replay,
    "lwf": Lwf,
    "anchoring": Anchoring,
    "der": Der,
    "derpp": Derpp,
    "er_ace": ErAce,
    "mir": Mir,
}

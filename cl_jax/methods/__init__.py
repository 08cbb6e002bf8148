"""Methods by name. Adding one to the package: one file with a config class, and one line here."""

from typing import Any

from cl_jax.methods.ewc import Ewc
from cl_jax.methods.gdumb import Gdumb
from cl_jax.methods.generative_replay import GenerativeReplay
from cl_jax.methods.icarl import Icarl
from cl_jax.methods.l2 import L2
from cl_jax.methods.replay import Replay

METHODS: dict[str, Any] = {
    "l2": L2,
    "ewc": Ewc,
    "replay": Replay,
    "gdumb": Gdumb,
    "generative_replay": GenerativeReplay,
    "icarl": Icarl,
}

"""Methods by name. Adding one to the package: one file with a config class, and one line here."""

from typing import Any

from cl_jax.methods.agem import Agem
from cl_jax.methods.anchoring import Anchoring
from cl_jax.methods.average import Average
from cl_jax.methods.continual_backprop import ContinualBackprop
from cl_jax.methods.der import Der, Derpp
from cl_jax.methods.er_ace import ErAce
from cl_jax.methods.ewc import Ewc
from cl_jax.methods.gdumb import Gdumb
from cl_jax.methods.gem import Gem
from cl_jax.methods.generative_replay import GenerativeReplay
from cl_jax.methods.gpm import Gpm
from cl_jax.methods.icarl import Icarl
from cl_jax.methods.interpolation import Interpolation
from cl_jax.methods.kl_anchor import KlAnchor
from cl_jax.methods.l2 import L2
from cl_jax.methods.l2_init import L2Init
from cl_jax.methods.laplace import Laplace
from cl_jax.methods.lwf import Lwf
from cl_jax.methods.mas import Mas
from cl_jax.methods.mir import Mir
from cl_jax.methods.mixture import Mixture
from cl_jax.methods.ogd import Ogd
from cl_jax.methods.replay import Replay
from cl_jax.methods.rwalk import Rwalk
from cl_jax.methods.self_replay import SelfReplay
from cl_jax.methods.shrink_perturb import ShrinkPerturb
from cl_jax.methods.si import Si

METHODS: dict[str, Any] = {
    "l2": L2,
    "ewc": Ewc,
    "laplace": Laplace,
    "si": Si,
    "mas": Mas,
    "rwalk": Rwalk,
    "lwf": Lwf,
    "anchoring": Anchoring,
    "kl_anchor": KlAnchor,
    "replay": Replay,
    "mixture": Mixture,
    "self_replay": SelfReplay,
    "der": Der,
    "derpp": Derpp,
    "er_ace": ErAce,
    "mir": Mir,
    "gdumb": Gdumb,
    "icarl": Icarl,
    "generative_replay": GenerativeReplay,
    "agem": Agem,
    "gem": Gem,
    "ogd": Ogd,
    "gpm": Gpm,
    "average": Average,
    "interpolation": Interpolation,
    "l2_init": L2Init,
    "shrink_perturb": ShrinkPerturb,
    "continual_backprop": ContinualBackprop,
}

"""Continual learning in JAX: measures forgetting and what reduces it.

The parts for one's own training loop stand here by name, as in optax: `cl_jax.ewc`, `cl_jax.replay`, `cl_jax.chain`.
They are imported when first used, so that the command line starts without JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_jax import buffer as buffer
    from cl_jax import metrics as metrics
    from cl_jax import train as train
    from cl_jax.adapters.adapter import Adapter as Adapter
    from cl_jax.adapters.freeze import freeze as freeze
    from cl_jax.adapters.lora import lora as lora
    from cl_jax.adapters.olora import olora as olora
    from cl_jax.adapters.packnet import packnet as packnet
    from cl_jax.adapters.task_lora import task_lora as task_lora
    from cl_jax.adapters.xdg import xdg as xdg
    from cl_jax.batch import Batch as Batch
    from cl_jax.batch import Task as Task
    from cl_jax.batch import whole_task as whole_task
    from cl_jax.fisher import diagonal_fisher as diagonal_fisher
    from cl_jax.kfac import kronecker_factors as kronecker_factors
    from cl_jax.losses import task_loss as task_loss
    from cl_jax.method import Method as Method
    from cl_jax.method import Rewritten as Rewritten
    from cl_jax.method import StepInfo as StepInfo
    from cl_jax.method import chain as chain
    from cl_jax.methods.agem import agem as agem
    from cl_jax.methods.anchoring import anchoring as anchoring
    from cl_jax.methods.average import average as average
    from cl_jax.methods.continual_backprop import continual_backprop as continual_backprop
    from cl_jax.methods.der import der as der
    from cl_jax.methods.er_ace import er_ace as er_ace
    from cl_jax.methods.ewc import ewc as ewc
    from cl_jax.methods.gdumb import gdumb as gdumb
    from cl_jax.methods.gem import gem as gem
    from cl_jax.methods.generative_replay import generative_replay as generative_replay
    from cl_jax.methods.gpm import gpm as gpm
    from cl_jax.methods.icarl import icarl as icarl
    from cl_jax.methods.interpolation import interpolation as interpolation
    from cl_jax.methods.l2 import l2 as l2
    from cl_jax.methods.l2_init import l2_init as l2_init
    from cl_jax.methods.laplace import laplace as laplace
    from cl_jax.methods.lwf import lwf as lwf
    from cl_jax.methods.mas import mas as mas
    from cl_jax.methods.mir import mir as mir
    from cl_jax.methods.ogd import ogd as ogd
    from cl_jax.methods.replay import replay as replay
    from cl_jax.methods.rwalk import rwalk as rwalk
    from cl_jax.methods.shrink_perturb import shrink_perturb as shrink_perturb
    from cl_jax.methods.si import si as si
    from cl_jax.model import Model as Model
    from cl_jax.model import linen as linen
    from cl_jax.model import nnx as nnx
    from cl_jax.models.cnn import cnn as cnn
    from cl_jax.models.mlp import mlp as mlp
    from cl_jax.models.resnet import resnet18 as resnet18

_MODULES = ("buffer", "metrics", "train")
_HOMES = {
    "adapters.adapter": ("Adapter",),
    "adapters.freeze": ("freeze",),
    "adapters.lora": ("lora",),
    "adapters.olora": ("olora",),
    "adapters.packnet": ("packnet",),
    "adapters.task_lora": ("task_lora",),
    "adapters.xdg": ("xdg",),
    "batch": ("Batch", "Task", "whole_task"),
    "fisher": ("diagonal_fisher",),
    "kfac": ("kronecker_factors",),
    "losses": ("task_loss",),
    "method": ("Method", "Rewritten", "StepInfo", "chain"),
    "methods.agem": ("agem",),
    "methods.anchoring": ("anchoring",),
    "methods.average": ("average",),
    "methods.continual_backprop": ("continual_backprop",),
    "methods.der": ("der",),
    "methods.er_ace": ("er_ace",),
    "methods.ewc": ("ewc",),
    "methods.gdumb": ("gdumb",),
    "methods.gem": ("gem",),
    "methods.generative_replay": ("generative_replay",),
    "methods.gpm": ("gpm",),
    "methods.icarl": ("icarl",),
    "methods.interpolation": ("interpolation",),
    "methods.l2": ("l2",),
    "methods.l2_init": ("l2_init",),
    "methods.laplace": ("laplace",),
    "methods.lwf": ("lwf",),
    "methods.mas": ("mas",),
    "methods.mir": ("mir",),
    "methods.ogd": ("ogd",),
    "methods.replay": ("replay",),
    "methods.rwalk": ("rwalk",),
    "methods.shrink_perturb": ("shrink_perturb",),
    "methods.si": ("si",),
    "model": ("Model", "linen", "nnx"),
    "models.cnn": ("cnn",),
    "models.mlp": ("mlp",),
    "models.resnet": ("resnet18",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"cl_jax.{name}")
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"cl_jax.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'cl_jax' has no attribute {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted([*_MODULES, *_HOME_OF])

"""The numbers of `cl_jax.diagnostics.cost`: from shapes and the program's text, nothing is run."""

from functools import partial
from typing import Any

import jax
import numpy as np

from cl_jax import program
from cl_jax.data import Data
from cl_jax.diagnostics.diagnostic import WHOLE
from cl_jax.diagnostics.shapes import once, whole
from cl_jax.experiment import Run

_COSTS: dict[Any, dict[str, dict[str, float]]] = {}


def costs(run: Run, data: Data) -> dict[str, dict[str, float]]:
    """By quantity and part."""
    return once(_COSTS, run, data, lambda: _costs(run, data))


def _costs(run: Run, data: Data) -> dict[str, dict[str, float]]:
    member = whole(run, data)
    parts = program.parts_of(member.state)
    methods = {f"methods.{name}": float(number) for name, number in parts.methods.items()}
    return {
        "parameters": {WHOLE: _size(member.params), "trainable": _size(member.state.trainable)},
        "bytes": {
            WHOLE: float(parts.total), "parameters": float(parts.parameters), "optimizer": float(parts.optimizer),
            **methods,
        },
        "operations": {WHOLE: _operations(member)},
    }  # fmt: skip


def _size(tree: Any) -> float:
    return float(sum(leaf.size for leaf in jax.tree.leaves(tree)))


def _operations(member: Any) -> float:
    """Of one training step, as XLA counts them before optimising; NaN where the backend does not say."""
    step = jax.jit(partial(program.steps, num_steps=1))
    number = member.seed
    lowered = step.lower(member.run, number, member.curriculum, member.state, member.data, number, number)
    return float((lowered.cost_analysis() or {}).get("flops", np.nan))

"""How many floating-point operations a training step needs: those of its matrix products and convolutions.

Counted in the traced gradient of the task loss, so that a number holds for any model and nothing is estimated:

    dot_general [batch, M, K] x [batch, K, N]      2 batch M N K
    convolution                                    2 (elements of the output) (kernel elements of one output channel)

For an MLP with layers d_0 ... d_L this is 2 B sum d_l d_l+1 forward, the same for the weight gradients, and the same
but for the first layer for the input gradients: B (4 d_0 d_1 + 6 sum_{l > 0} d_l d_l+1). The customary 6 B P would
count an input gradient of the first layer that nobody computes. Elementwise work, the optimizer and the batch are not
counted.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from cl_jax.batch import Batch
from cl_jax.data import Data
from cl_jax.experiment import Run
from cl_jax.losses import task_loss
from cl_jax.model import Model
from cl_jax.program import example_of, state_parts, view_of


def of_a_step(run: Run, data: Data) -> int:
    """Operations of one training step of one member, but for what its methods add; nothing is computed.

    Of a model with a loop that cannot be counted: 6 operations a parameter and example.
    """
    view = view_of(run, data)
    key = (jax.tree.structure(run.model), view.num_outputs, run.batch_size, data.sha256, data.images.shape[1:])
    if key not in _STEPS:
        try:
            _STEPS[key] = gradient(run.model.build(view.num_outputs), _batch(run.batch_size, data))
        except ValueError:
            _STEPS[key] = 6 * state_parts(run, data).parameters // 4 * run.batch_size
    return _STEPS[key]


_STEPS: dict[Any, int] = {}  # a few tenths of a second each, and asked for more than once


def _batch(size: int, data: Data) -> Batch:
    """Shapes and dtypes of so many examples."""

    def shape(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((size, *shape), dtype)

    x = jax.tree.map(lambda leaf: shape(leaf.shape[1:], leaf.dtype), example_of(data))
    if data.text is None:
        return Batch(x, shape((), jnp.int32))
    length = (data.text.context,)
    return Batch(x, shape(length, jnp.int32), counted=shape(length, jnp.float32))


def training_step(model: Model, image_shape: tuple[int, ...], batch_size: int) -> int:
    """Operations of one gradient of the mean loss over a batch; nothing is computed."""
    y: Any = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    return gradient(model, Batch(jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32), y))


def gradient(model: Model, batch: Any) -> int:
    """The same of a batch of any kind, given by its shapes and dtypes."""
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), batch.x)

    def gradient(params: Any, batch: Batch) -> Any:
        return jax.grad(lambda p: task_loss(model, p, batch))(params)

    return count(jax.make_jaxpr(gradient)(params, batch).jaxpr)


def count(jaxpr: core.Jaxpr) -> int:
    """Operations of a traced function; the body of a scan as often as it runs.

    Raises:
        ValueError: there is a loop whose number of rounds is not known.
    """
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "while":
            raise ValueError("the operations of a while loop cannot be counted")
        else:
            inner = [count(one) for value in equation.params.values() for one in _jaxprs(value)]
            times = equation.params["length"] if name == "scan" else 1
            total += times * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return [one for item in value for one in _jaxprs(item)] if isinstance(value, (tuple, list)) else []


def _dot(equation: Any) -> int:
    left, _ = (variable.aval.shape for variable in equation.invars)
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_channels

"""What a run costs, so that methods compare at equal budget: parameters, bytes, operations.

    parameters   numbers that the model computes with, and (layer "trainable") numbers that train
    bytes        of one member's training state, by part: parameters, optimizer, each method (its buffer, Fisher,
                 anchors); buffers of references count their references, the data set is shared by all
    operations   floating-point operations of one training step as XLA counts them in the program before it is
                 optimised, methods included; what a boundary costs (a Fisher) is not in it

All this is known before the first step, and the same at every boundary. Beside it, measured:

    seconds      wall time of the task: training, boundary and evaluation of a wave, divided by its members; not where
                 another run trained the task. Alone among all numbers here it is another one each time.
"""

import math

import jax.numpy as jnp

from cl_jax.diagnostics.diagnostic import WHOLE, Boundary, Value, of_layers

SECONDS = "seconds"


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""
    known = [
        of_layers(quantity, [jnp.float32(number) for number in parts.values()], tuple(parts))
        for quantity, parts in boundary.costs().items()
    ]
    return [*known, of_layers(SECONDS, [jnp.float32(math.nan)], (WHOLE,))]  # the host knows

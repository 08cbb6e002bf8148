"""Shrink and perturb: smaller weights and fresh noise, so that a network that has trained can train again."""

from collections.abc import Callable
from typing import ClassVar

import jax

from cl_jax.config import config, static, traced
from cl_jax.errors import unknown
from cl_jax.method import Method, Rewritten, State
from cl_jax.methods.context import Context
from cl_jax.model import Params

EVERY = ("task", "step")
NOISES = ("initial", "normal")


def shrink_perturb(
    shrink: jax.Array | float,
    perturb: jax.Array | float,
    *,
    initial: Callable[[jax.Array], Params] | None = None,
    every: str = "task",
) -> Method:
    """theta <- shrink * theta + perturb * noise, for all parameters.

    shrink 1 with perturb 0 goes on from the weights as they are; shrink 0 with perturb 1 and `initial` starts anew.
    What a task learned is evaluated before its weights shrink. The optimizer's moments stay, unless it is `reset` at
    every boundary, which is what the first authors do.

    Args:
        shrink, perturb: may be traced.
        initial: from a key to the noise, a new draw of initial weights: as the first authors' code, so that every kind
            of parameter gets noise of its own size. None: noise ~ N(0, 1), as their paper and the second authors.
        every: "task", at each boundary (Ash and Adams); "step", after each step (Dohare et al., whose shrinking is the
            L2 of plain SGD, shrink = 1 - learning_rate * weight_decay. Their 1 - 3e-7 is barely one in float32: use
            `l2_init(strength, towards="zero")` with shrink 1).

    Raises:
        UserError: unknown `every`.

    Source: Ash and Adams 2020, arXiv 1910.08475; Dohare et al. 2024, Nature 632, arXiv 2306.13812.
    """
    if every not in EVERY:
        raise unknown("shrink_perturb every", every, EVERY)

    def moved(key: jax.Array, params: Params) -> Params:
        noise = _normal(key, params) if initial is None else initial(key)
        return jax.tree.map(lambda p, e: shrink * p + perturb * e, params, noise)

    def rewrite(key: jax.Array, state: State, params: Params) -> Rewritten:
        return Rewritten(state, moved(key, params))

    def restart(key: jax.Array, state: State, params: Params) -> Params:
        return moved(key, params)

    return Method(rewrite=rewrite) if every == "step" else Method(restart=restart)


def _normal(key: jax.Array, params: Params) -> Params:
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=True)])


@config
class ShrinkPerturb:
    """See `shrink_perturb`."""

    moves_weights: ClassVar[bool] = True

    shrink: float = traced(0.4, high=1.0)
    perturb: float = traced(0.1)
    noise: str = static("initial", choices=NOISES)
    every: str = static("task", choices=EVERY)

    @property
    def waits_for_boundary(self) -> bool:
        return self.every == "task"

    def build(self, context: Context) -> Method:
        initial = context.initial if self.noise == "initial" else None
        return shrink_perturb(self.shrink, self.perturb, initial=initial, every=self.every)

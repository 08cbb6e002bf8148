"""Freezing: some parameters stop training."""

import re

import jax
import jax.numpy as jnp

from cl_jax.adapters.adapter import Adapter, Trainable, path_name
from cl_jax.config import config, static
from cl_jax.errors import UserError
from cl_jax.model import Params


def freeze(pattern: str, from_task: int = 1) -> Adapter:
    """Lets no update through to the leaves whose path matches `pattern`, from task `from_task` (0-based) on.

    With from_task = 1 the first task trains everything and later ones only what is left: a frozen trunk.

    Args:
        pattern: regular expression searched for in `dense_0/kernel`-like paths.
        from_task: the first task in which they are frozen.
    """

    def mask(base: Params, task: jax.Array, updates: Trainable) -> Trainable:
        def one(path: tuple, update: jax.Array) -> jax.Array:
            frozen = re.search(pattern, path_name(path)) is not None
            return jnp.where(task >= from_task, jnp.zeros_like(update), update) if frozen else update

        return jax.tree_util.tree_map_with_path(one, updates)

    return Adapter(mask=mask)


@config
class Freeze:
    """See `freeze`. The default freezes the first dense layer after the first task."""

    pattern: str = static("dense_0/")
    from_task: int = static(1, low=0)

    @property
    def needs_boundaries(self) -> bool:
        return self.from_task > 0

    def build(self, num_tasks: int = 1) -> Adapter:
        return freeze(self.pattern, self.from_task)

    def check(self, params: Params) -> None:
        """Raises UserError unless the pattern freezes something and leaves something to train."""
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        try:
            frozen = [name for name in names if re.search(self.pattern, name)]
        except re.error as error:
            raise UserError(f"adapter.pattern: {self.pattern!r} is not a regular expression: {error}") from error
        if not frozen or len(frozen) == len(names):
            some = "none" if not frozen else "all"
            raise UserError(f"adapter.pattern: {self.pattern!r} matches {some} of the parameters {', '.join(names)}")

"""Freezing: some parameters stop training, by their names or by the place of their layer."""

import re

import jax
import jax.numpy as jnp

from cl_jax.adapters.adapter import Adapter, Trainable, path_name
from cl_jax.config import config, static, traced
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


def freeze_layers(first: jax.Array | float, from_task: int = 1) -> Adapter:
    """Lets no update through to the first layers of a stack, nor to the embedding before them.

    Of every leaf [n, ...] below `layers/`, the places 0 ... first - 1; if first > 0 also what lies below `embedding/`
    (a head that is tied to it stays as it is too).

    Args:
        first: may be traced, so that it is swept within one program; rounded.
        from_task: the first task in which they are frozen.
    """
    count = jnp.round(jnp.asarray(first, jnp.float32))

    def mask(base: Params, task: jax.Array, updates: Trainable) -> Trainable:
        frozen = jnp.where(task >= from_task, count, 0.0)

        def one(path: tuple, update: jax.Array) -> jax.Array:
            name = path_name(path)
            if name.startswith("embedding/"):
                return jnp.where(frozen > 0, jnp.zeros_like(update), update)
            if not name.startswith("layers/"):
                return update
            number = jnp.arange(update.shape[0], dtype=jnp.float32).reshape(-1, *[1] * (update.ndim - 1))
            return jnp.where(number < frozen, jnp.zeros_like(update), update)

        return jax.tree_util.tree_map_with_path(one, updates)

    return Adapter(mask=mask)


@config
class FreezeLayers:
    """See `freeze_layers`."""

    first: float = traced(1.0)
    from_task: int = static(1, low=0)

    @property
    def needs_boundaries(self) -> bool:
        return self.from_task > 0

    def build(self, num_tasks: int = 1) -> Adapter:
        return freeze_layers(self.first, self.from_task)

    def check(self, params: Params) -> None:
        """Raises UserError unless the model has a stack of layers."""
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        if not any(name.startswith("layers/") for name in names):
            raise UserError(
                f"adapter FreezeLayers: the model has no stack of layers (`layers/...`), but {', '.join(names)}: use a "
                f"Decoder, or adapter Freeze(), which goes by the names of parameters"
            )


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

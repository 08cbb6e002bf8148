"""Learning-rate schedules over tasks: low and falling rates as methods of their own.

Each gives the factor on the optimizer's learning rate at step s (0-based, of S) of task t (0-based).
Source of the per-task decay as a remedy: Mirzadeh et al. 2020, arXiv 2006.06958.
"""

from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.config import config, traced


@config
class TaskDecay:
    """learning_rate(t, s) = max(learning_rate * rate^t, floor), constant within a task; at rate 1 for all tasks."""

    rate: float = traced(1.0, high=1.0)
    floor: float = traced(0.0)

    def value(self, learning_rate: jax.Array, task: jax.Array, step: jax.Array, steps: int) -> jax.Array:
        # A floor above the start must not raise the rate of the first task.
        floor = jnp.minimum(jnp.asarray(self.floor, jnp.float32), learning_rate)
        return jnp.maximum(learning_rate * self.rate ** task.astype(jnp.float32), floor)


@config
class Rewarm:
    """Every task warms up anew and decays: linear from 0 over the first `warmup` share of its steps to the peak, then
    half a cosine down to `final` times the peak; the peak itself is learning_rate * rate^t.
    """

    warmup: float = traced(0.1, high=1.0)
    final: float = traced(0.1, high=1.0)
    rate: float = traced(1.0, high=1.0)

    def value(self, learning_rate: jax.Array, task: jax.Array, step: jax.Array, steps: int) -> jax.Array:
        peak = learning_rate * self.rate ** task.astype(jnp.float32)
        progress = (step.astype(jnp.float32) + 1.0) / steps
        rising = progress / jnp.maximum(self.warmup, 1e-6)
        along = jnp.clip((progress - self.warmup) / jnp.maximum(1.0 - self.warmup, 1e-6), 0.0, 1.0)
        falling = self.final + (1.0 - self.final) * 0.5 * (1.0 + jnp.cos(jnp.pi * along))
        return peak * jnp.where(progress < self.warmup, rising, falling)


SCHEDULES: dict[str, Any] = {"task_decay": TaskDecay, "rewarm": Rewarm}

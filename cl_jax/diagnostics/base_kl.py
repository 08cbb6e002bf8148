"""How far the model's answers have moved from the base's: forward KL from the first boundary to now.

    base_kl   1/n sum_x sum_c p_base(c|x) ln(p_base(c|x) / p_now(c|x)), in nats, on the probe of each task, trained yet
              or not; p_base the model after the first task

Of text: the mean over counted tokens. Unlike `forward_kl`, which is from before the last task to after it, this adds up
over tasks, and says on which inputs the model still answers as the base did. Each model answers over the outputs that
competed when it was evaluated.

Source: Shenfeld, Pari and Agrawal 2025 (RL's Razor), arXiv 2509.04259.
"""

import jax
import jax.numpy as jnp

from cl_jax.batch import target_weights
from cl_jax.diagnostics.diagnostic import Boundary, Value, of_tasks
from cl_jax.diagnostics.forward_kl import kl
from cl_jax.losses import log_probabilities


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""
    apply = boundary.model.apply
    base, first_task = jnp.ones((), jnp.int32), jnp.zeros((), jnp.int32)

    def divergence(task: jax.Array) -> jax.Array:
        then, now = boundary.probe(task, present=first_task), boundary.probe(task)
        log_p = log_probabilities(apply(boundary.earlier(base, task), then.x), then.active)
        log_q = log_probabilities(apply(boundary.params(task), now.x), now.active)
        return jnp.sum(target_weights(now) * kl(log_p, log_q))

    found = boundary.over_tasks(lambda task: (boundary.after > 1) & boundary.known(base), divergence)
    return [of_tasks("base_kl", found[:, None])]

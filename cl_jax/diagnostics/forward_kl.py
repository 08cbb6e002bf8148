"""How far the last task moved what the network answers: forward KL from before the task to after it.

    forward_kl   1/n sum_x sum_c p_before(c|x) ln(p_before(c|x) / p_after(c|x)), in nats, on the probe of each task up
                 to the last one trained

Of the last task itself it is the KL on *new* inputs, which by RL's Razor predicts how much is forgotten; of earlier
tasks that on *old* inputs. Of text: the mean over counted tokens. Each model answers over the outputs that competed
when it was evaluated, so that in class-incremental streams the model before knows nothing of the new classes.

Source: Shenfeld, Pari and Agrawal 2025 (RL's Razor), arXiv 2509.04259: E_x KL(base || fine-tuned) on the new task.
"""

import jax
import jax.numpy as jnp

from cl_jax.batch import target_weights
from cl_jax.diagnostics.diagnostic import Boundary, Value, of_tasks
from cl_jax.losses import log_probabilities


def kl(before_BxC: jax.Array, after_BxC: jax.Array) -> jax.Array:
    """sum_c p (log p - log q) from log p and log q, float32 [B] (of sequences [B, L]); outputs with p = 0 count 0."""
    p = jnp.exp(before_BxC)
    return jnp.sum(jnp.where(p > 0, p * (before_BxC - after_BxC), 0.0), axis=-1)


def measure(boundary: Boundary) -> list[Value]:
    """See the module."""
    apply = boundary.model.apply
    present = boundary.last  # the boundary before this task has its number
    known = jnp.maximum(present - 1, 0)  # the last task whose outputs the model before had

    def divergence(task: jax.Array) -> jax.Array:
        then = boundary.probe(task, present=known)
        now = boundary.probe(task, present=present)
        log_p = log_probabilities(apply(boundary.earlier(present, task), then.x), then.active)
        log_q = log_probabilities(apply(boundary.params(task), now.x), now.active)
        return jnp.sum(target_weights(now) * kl(log_p, log_q))

    found = boundary.over_tasks(lambda task: (task < boundary.after) & boundary.known(present), divergence)
    return [of_tasks("forward_kl", found[:, None])]

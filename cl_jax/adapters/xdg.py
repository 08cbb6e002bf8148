"""Context-dependent gating: each task silences a random share of the hidden units.

Masse, Grant and Freedman 2018, arXiv 1802.01569.
"""

import jax
import jax.numpy as jnp

from cl_jax.adapters.adapter import Adapter, Trainable, layers_of, path_name
from cl_jax.config import config, traced
from cl_jax.errors import UserError
from cl_jax.method import stream_key
from cl_jax.model import Params


def xdg(num_tasks: int, share: jax.Array | float = 0.8) -> Adapter:
    """h_{l+1} = phi(g_{t,l} * (h_l W_l + b_l)), l every layer but the last: in task t the units with gate 0 are silent.

    A silent unit gives 0 (phi(0) = 0) and neither the weights into it nor those out of it get a gradient of the task
    loss, so what one task trains, another with few units in common leaves alone. The weights are common to all tasks,
    and methods act on them: the paper's strongest results add EWC or SI, and their anchors are the weights themselves
    and not weights times gates. To the model this is the same as masks on the columns of W_l and b_l.

    Of a layer's n units each task silences round(share * n), at least one fewer than all, drawn at random once. The
    authors' code draws each unit for itself, so that the number varies; it also trains with dropout and forgets Adam's
    moments at each boundary (`optimizer.reset`): those of the task before otherwise go on moving silent weights.
    A convolution's units are its output channels.

    Args:
        num_tasks: T, each with gates of its own.
        share: of the silent units, in [0, 1]; may be traced.

    Returns:
        An adapter whose trainable parameters are the model's; base is the gates, bool [T, n] by layer.

    Raises:
        UserError: by `init`, a model with normalised layers, or without hidden ones; by `train.init`, a model that does
            not heed gates.
    """

    def gates_of(key: jax.Array, name: str, units: int) -> jax.Array:
        def noise(task: jax.Array) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(stream_key(key, name), task), (units,))

        rank = jnp.argsort(jnp.argsort(jax.vmap(noise)(jnp.arange(num_tasks, dtype=jnp.int32)), axis=1), axis=1)
        silent = jnp.minimum(jnp.round(jnp.asarray(share, jnp.float32) * units), units - 1)
        return rank >= silent.astype(rank.dtype)

    def init(key: jax.Array, params: Params) -> tuple[Params, Trainable]:
        hidden = hidden_layers(params)
        return {name: gates_of(key, name, params[name]["kernel"].shape[1]) for name in hidden}, params

    def effective(base: Params, trainable: Trainable, task: jax.Array) -> Params:
        gates = {name: gate[task].astype(trainable[name]["kernel"].dtype) for name, gate in base.items()}
        return {name: {**layer, "gate": gates[name]} if name in gates else layer for name, layer in trainable.items()}

    return Adapter(init=init, effective=effective, identity=False, per_task=True, gates=True)


def hidden_layers(params: Params) -> list[str]:
    """The layers whose units are gated. Raises UserError: there is none, or some layer is normalised."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    normalised = [name.removesuffix("/scale") for name in names if name.endswith("/scale")]
    if normalised:
        raise UserError(
            f"adapter xdg silences units, but the model normalises them (in {normalised[0]}), and a silent unit's "
            f"normalised value is not 0: use a model without normalisation"
        )
    *hidden, _ = layers_of(params)
    if not hidden:
        raise UserError("adapter xdg silences hidden units and the model has none: give it a hidden layer")
    return hidden


@config
class Xdg:
    """See `xdg`."""

    share: float = traced(0.8, high=1.0)

    def build(self, num_tasks: int = 1) -> Adapter:
        return xdg(num_tasks, self.share)

    def check(self, params: Params) -> None:
        """Raises UserError when the model is normalised or has no hidden layer."""
        hidden_layers(params)

"""Images as other papers feed them: with a margin of black, then standardised."""

from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.config import child, config, static, traced
from cl_jax.model import Model, Params
from cl_jax.models.mlp import Mlp


def standardized(model: Model, mean: jax.Array | float, deviation: jax.Array | float, margin: int = 0) -> Model:
    """model((padded(x) - mean) / deviation): one number each for all pixels and channels, which may be traced.

    Args:
        model: of images [B, H + 2 margin, W + 2 margin, C].
        margin: rows and columns of 0 around images [B, H, W, C] in [0, 1]. MNIST with 2 is 32 x 32.
    """

    def shown(x: jax.Array) -> jax.Array:
        if margin:
            x = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        return (x - mean) / deviation

    tap, train = model.tap, model.train

    def tapped(params: Params, probes: dict[str, jax.Array], x: jax.Array) -> Any:
        assert tap is not None
        return tap(params, probes, shown(x))

    def trained(key: jax.Array, params: Params, x: jax.Array) -> jax.Array:
        assert train is not None
        return train(key, params, shown(x))

    return model._replace(
        init=lambda key, x: model.init(key, shown(x)),
        apply=lambda params, x: model.apply(params, shown(x)),
        tap=None if tap is None else tapped,
        train=None if train is None else trained,
    )


@config
class Standardized:
    """Another model, of images with a margin and standardised; see `standardized`. The defaults: Hsu et al. 2018."""

    model: Any = child(Mlp)
    mean: float = traced(0.1)
    deviation: float = traced(0.2752, low=1e-6)
    margin: int = static(2, low=0)

    def build(self, num_outputs: int) -> Model:
        return standardized(self.model.build(num_outputs), self.mean, self.deviation, self.margin)

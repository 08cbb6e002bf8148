"""The decoder as one writes it down, for no packed documents: what cl_jax's is set beside."""

from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.experiment import Decoder
from cl_jax.model import Model


def model_of(config: Decoder, num_tokens: int) -> Model:
    """Of a config without grouped queries, biases and norms of queries and keys; the same sizes, a tied head."""
    width, heads, num_layers = config.width, config.heads, config.layers
    head, hidden = width // heads, -(-width // 3) * 8
    shapes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
    shapes |= {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}

    def init(key: jax.Array, x: Any) -> Any:
        keys = iter(jax.random.split(key, num_layers * len(shapes) + 1))
        layers = [
            {name: 0.02 * jax.random.normal(next(keys), shape) for name, shape in shapes.items()}
            | {"one": jnp.ones((width,)), "two": jnp.ones((width,))}
            for _ in range(num_layers)
        ]
        table = 0.02 * jax.random.normal(next(keys), (num_tokens, width))
        return {"table": table, "layers": layers, "norm": jnp.ones((width,))}

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale

    def apply(params: Any, x: Any) -> jax.Array:
        num, length = x.ids.shape
        rates = 10000.0 ** (-jnp.arange(0, head, 2) / head)
        angle = jnp.arange(length)[:, None] * rates[None]
        cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
        causal = jnp.tril(jnp.ones((length, length), bool))

        def rotated(h: jax.Array) -> jax.Array:
            a, b = jnp.split(h, 2, axis=-1)
            return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

        h = params["table"][x.ids]
        for layer in params["layers"]:
            n = norm(h, layer["one"])
            q, k, v = (jnp.reshape(n @ layer[name], (num, length, heads, head)) for name in ("q", "k", "v"))
            scores = jnp.einsum("blhe,bmhe->bhlm", rotated(q), rotated(k)) / head**0.5
            weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
            h = h + jnp.reshape(jnp.einsum("bhlm,bmhe->blhe", weights, v), (num, length, width)) @ layer["o"]
            n = norm(h, layer["two"])
            h = h + (jax.nn.silu(n @ layer["gate"]) * (n @ layer["up"])) @ layer["down"]
        return norm(h, params["norm"]) @ params["table"].T

    return Model(init=init, apply=apply)

"""A decoder of text: RMSNorm, rotary positions, grouped-query attention, gated MLP (Llama; Qwen2 and Qwen3 by switch).

Touvron et al. 2023, arXiv 2302.13971; Su et al. 2021, arXiv 2104.09864; Ainslie et al. 2023, arXiv 2305.13245.

Shapes: B sequences, L positions, D width, H heads, K key and value heads, E width of a head.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.config import config, static
from cl_jax.errors import UserError
from cl_jax.method import stream_key
from cl_jax.model import Model, Params
from cl_jax.tokens import Tokens

COMPUTE = ("float32", "bfloat16")


@config
class Decoder:
    """See the module."""

    width: int = static(96, low=1)
    layers: int = static(3, low=1)
    heads: int = static(4, low=1)
    kv_heads: int | None = static(None, low=1)
    head_width: int | None = static(None, low=1)
    hidden: int | None = static(None, low=1)
    rope_base: float = static(10000.0)
    norm_epsilon: float = static(1e-5)
    tied: bool = static(True)
    qkv_bias: bool = static(False)
    qk_norm: bool = static(False)
    remat: bool = static(False)
    compute: str = static("float32", choices=COMPUTE)

    def build(self, num_outputs: int) -> Model:
        H, K = self.heads, self.kv_heads or self.heads
        E = self.head_width or self.width // H
        D, F = self.width, self.hidden or -(-8 * self.width // 24) * 8
        if H % K or E % 2:
            raise UserError("heads")
        dtype = jnp.dtype(self.compute)

        def init(key: jax.Array, x: Any) -> Params:
            if not isinstance(x, Tokens):
                raise UserError("a decoder reads text: use data 'text:<domain>,<domain>'")

            def normal(name: str, *shape: int, scale: float = 1.0) -> jax.Array:
                return 0.02 * scale * jax.random.normal(stream_key(key, name), shape)

            n, less = self.layers, (2 * self.layers) ** -0.5
            layers: dict[str, Any] = {
                "attention_norm": {"scale": jnp.ones((n, D))},
                "query": {"kernel": normal("query", n, D, H * E)},
                "key": {"kernel": normal("key", n, D, K * E)},
                "value": {"kernel": normal("value", n, D, K * E)},
                "output": {"kernel": normal("output", n, H * E, D, scale=less)},
                "mlp_norm": {"scale": jnp.ones((n, D))},
                "mlp_gate": {"kernel": normal("mlp_gate", n, D, F)},
                "mlp_up": {"kernel": normal("mlp_up", n, D, F)},
                "mlp_down": {"kernel": normal("mlp_down", n, F, D, scale=less)},
            }
            if self.qkv_bias:
                for name, heads in (("query", H), ("key", K), ("value", K)):
                    layers[name]["bias"] = jnp.zeros((n, heads * E))
            if self.qk_norm:
                layers |= {name: {"scale": jnp.ones((n, E))} for name in ("query_norm", "key_norm")}
            params = {"embedding": {"embedding": normal("embedding", num_outputs, D)}, "layers": layers}
            params["norm"] = {"scale": jnp.ones((D,))}
            if not self.tied:
                params["head"] = {"kernel": normal("head", D, num_outputs)}
            return params

        def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
            h = x.astype(jnp.float32)
            h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + self.norm_epsilon)
            return (h * scale.reshape((1,) * (h.ndim - 1) + scale.shape)).astype(dtype)

        def apply(params: Params, x: Any) -> jax.Array:
            ids, segments = x
            B, L = ids.shape
            place = jnp.arange(L, dtype=jnp.int32)
            starts = jnp.where(segments[:, 1:] != segments[:, :-1], place[None, 1:], 0)
            starts = lax.cummax(jnp.concatenate([jnp.zeros((B, 1), jnp.int32), starts], axis=1), axis=1)
            position = (place[None] - starts).astype(jnp.float32)
            rates = jnp.asarray(self.rope_base, jnp.float32) ** (-jnp.arange(0, E, 2, dtype=jnp.float32) / E)
            angle = position[:, :, None, None] * rates[None, None, None]
            cos, sin = jnp.cos(angle), jnp.sin(angle)
            sees = (segments[:, :, None] == segments[:, None, :]) & (place[:, None] >= place[None, :])[None]
            bias = jnp.where(sees, 0.0, -1e30)[:, None, None]

            def rotate(h: jax.Array) -> jax.Array:
                one, two = jnp.split(h.astype(jnp.float32), 2, axis=-1)
                return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1).astype(dtype)

            def linear(h: jax.Array, layer: Params) -> jax.Array:
                y = h @ layer["kernel"].astype(dtype)
                return y + layer["bias"].astype(dtype)[None, None] if "bias" in layer else y

            def one(x: jax.Array, layer: Params) -> tuple[jax.Array, None]:
                h = norm(x, layer["attention_norm"]["scale"])
                q = linear(h, layer["query"]).reshape(B, L, H, E)
                k = linear(h, layer["key"]).reshape(B, L, K, E)
                v = linear(h, layer["value"]).reshape(B, L, K, E)
                if self.qk_norm:
                    q, k = norm(q, layer["query_norm"]["scale"]), norm(k, layer["key_norm"]["scale"])
                q, k = rotate(q).reshape(B, L, K, H // K, E), rotate(k)
                scores = jnp.einsum("blkge,bmke->bkglm", q, k).astype(jnp.float32) * E**-0.5
                weights = jax.nn.softmax(scores + bias, axis=-1).astype(dtype)
                seen = jnp.einsum("bkglm,bmke->blkge", weights, v).reshape(B, L, H * E)
                x = x + linear(seen, layer["output"])
                h = norm(x, layer["mlp_norm"]["scale"])
                gated = jax.nn.silu(linear(h, layer["mlp_gate"])) * linear(h, layer["mlp_up"])
                return x + linear(gated, layer["mlp_down"]), None

            table = params["embedding"]["embedding"]
            h = table[ids].astype(dtype)
            h, _ = lax.scan(jax.checkpoint(one) if self.remat else one, h, params["layers"])
            h = norm(h, params["norm"]["scale"])
            head = table.T if self.tied else params["head"]["kernel"]
            return (h @ head.astype(dtype)).astype(jnp.float32)

        return Model(init=init, apply=apply)

"""A decoder-only transformer that reads text: the layers of Llama, with the switches of Qwen2 and Qwen3.

Shapes: B sequences, L positions, D width, H heads of E numbers, K of them with a key and a value, F hidden width,
V tokens, n layers.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.config import config, static
from cl_jax.errors import UserError, unknown
from cl_jax.method import stream_key
from cl_jax.model import Model, Params, Reader
from cl_jax.models.attention import UNSEEN, attention, sight
from cl_jax.models.decoder_numbers import check_numbers, checked_scaling, even_head_width
from cl_jax.models.rotary import Angles, Scaling, angles, rotate
from cl_jax.tokens import Tokens

COMPUTE = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
STD = 0.02  # of the first weights, as in GPT-2
# A loop stacks what the backward pass needs and takes it apart again: a step of 3 or of 8 layers took 1.27 times as
# long (see `cl_jax.models.attention`), and compiled no faster.
MOST_UNROLLED = 8


class Cache(NamedTuple):
    """What the positions so far have to say to later ones, of every layer."""

    key: jax.Array  # compute dtype [n, B, K, L, E], rotated
    value: jax.Array  # the same


def decoder(
    num_outputs: int,
    *,
    width: int = 96,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int | None = None,
    head_width: int | None = None,
    hidden: int | None = None,
    rope_base: float = 10000.0,
    rope_scaling: Scaling | None = None,
    norm_epsilon: float = 1e-5,
    tied: bool = True,
    qkv_bias: bool = False,
    qk_norm: bool = False,
    remat: bool = False,
    compute: str = "float32",
) -> Model:
    """x = embedding[ids]; in each layer x += attention(norm(x)) W_o, x += (silu(h W_gate) * h W_up) W_down with
    h = norm(x); logits = norm(x) W_head.

    norm(x) = scale * x / sqrt(mean(x^2) + epsilon), in float32 (Zhang and Sennrich 2019, arXiv 1910.07467). Attention
    is causal within a segment, and rotary positions begin anew in each (`cl_jax.models.attention`, `.rotary`). The
    layers' parameters lie stacked and are scanned over.

    First weights: N(0, 0.02^2), those of `output` and `mlp_down` divided by sqrt(2 n); scales 1, biases 0. Each array
    has a random stream of its own name, so no switch moves another's numbers.

    Args:
        num_outputs: V, tokens that are read and predicted.
        width: D. layers: n. heads: H.
        kv_heads: K, divides H; None: H.
        head_width: E, even; None: D / H.
        hidden: F; None: 8 / 3 D, rounded up to a multiple of 8.
        rope_base: of the rotary positions.
        rope_scaling: of their frequencies, see `cl_jax.models.rotary.Scaling`; None: none.
        norm_epsilon: epsilon.
        tied: the head is the embedding, transposed.
        qkv_bias: + bias after the products that make queries, keys and values.
        qk_norm: norm over each head's E numbers of queries and keys, before they are rotated.
        remat: the backward pass computes each layer anew and keeps only its input, for memory.
        compute: "float32" or "bfloat16", dtype of products and activations. Parameters, norms, the softmax and the
            logits are float32.

    Returns:
        A model of `Tokens` [B, L] to float32 logits [B, L, V]. Its parameters, those of switches that are on:
        `{"embedding": {"embedding": [V, D]}, "layers": {"attention_norm": {"scale": [n, D]}, "query": {"kernel":
        [n, D, H * E], "bias": [n, H * E]}, "key", "value": the same with K, "query_norm": {"scale": [n, E]},
        "key_norm", "output": {"kernel": [n, H * E, D]}, "mlp_norm", "mlp_gate": {"kernel": [n, D, F]}, "mlp_up",
        "mlp_down": {"kernel": [n, F, D]}}, "norm": {"scale": [D]}, "head": {"kernel": [D, V]}}`.

    Raises:
        UserError: numbers that make no model.

    Source: Touvron et al. 2023, arXiv 2302.13971; Yang et al. 2024, arXiv 2407.10671; Yang et al. 2025, arXiv
    2505.09388; first weights: Radford et al. 2019.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    head_width = even_head_width(width, heads) if head_width is None else head_width
    hidden = -(-width // 3) * 8 if hidden is None else hidden
    check_numbers(heads, kv_heads, head_width, rope_base, norm_epsilon)
    if compute not in COMPUTE:
        raise unknown("compute", compute, COMPUTE)
    dtype = COMPUTE[compute]
    groups = heads // kv_heads
    sizes = {
        "query": (width, heads * head_width), "key": (width, kv_heads * head_width),
        "value": (width, kv_heads * head_width), "output": (heads * head_width, width),
        "mlp_gate": (width, hidden), "mlp_up": (width, hidden), "mlp_down": (hidden, width),
    }  # fmt: skip
    scales = {"attention_norm": width, "mlp_norm": width}
    scales |= {"query_norm": head_width, "key_norm": head_width} if qk_norm else {}

    def init(key: jax.Array, x: Any) -> Params:
        _check_tokens(x)

        def normal(name: str, shape: tuple[int, ...], std: float = STD) -> jax.Array:
            return std * jax.random.normal(stream_key(key, name), shape, jnp.float32)

        stacked: Params = {name: {"scale": jnp.ones((layers, size), jnp.float32)} for name, size in scales.items()}
        for name, (d_in, d_out) in sizes.items():
            std = STD * (2 * layers) ** -0.5 if name in ("output", "mlp_down") else STD
            stacked[name] = {"kernel": normal(name, (layers, d_in, d_out), std)}
            if qkv_bias and name in ("query", "key", "value"):
                stacked[name]["bias"] = jnp.zeros((layers, d_out), jnp.float32)
        params = {
            "embedding": {"embedding": normal("embedding", (num_outputs, width))},
            "layers": stacked,
            "norm": {"scale": jnp.ones((width,), jnp.float32)},
        }
        return params if tied else params | {"head": {"kernel": normal("head", (width, num_outputs))}}

    def norm(layer: Params, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normal = x32 * lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + norm_epsilon)
        return (normal * layer["scale"].reshape((1,) * (x.ndim - 1) + (-1,))).astype(dtype)

    def dense(layer: Params, h: jax.Array) -> jax.Array:
        y = h @ layer["kernel"].astype(dtype)
        return y + layer["bias"].astype(dtype)[None] if "bias" in layer else y

    def layer(p: Params, h: jax.Array, turn: Angles, attend: Any) -> tuple[jax.Array, Any]:
        """Of the positions of `turn`, [B * L, D]; `attend` has the queries' answer from keys and values, and more."""
        num, length, _ = turn.cos.shape

        def by_head(y: jax.Array, num_heads: int) -> jax.Array:
            return y.reshape(num, length, num_heads, head_width).swapaxes(1, 2)

        normal = norm(p["attention_norm"], h)
        query = by_head(dense(p["query"], normal), heads)
        key, value = (by_head(dense(p[name], normal), kv_heads) for name in ("key", "value"))
        if qk_norm:
            query, key = norm(p["query_norm"], query), norm(p["key_norm"], key)
        query = rotate(query, turn).reshape(num, kv_heads, groups * length, head_width)
        found, more = attend(query, rotate(key, turn), value)
        found = found.reshape(num, heads, length, head_width).swapaxes(1, 2)
        h = h + dense(p["output"], found.reshape(num * length, heads * head_width))
        normal = norm(p["mlp_norm"], h)
        gated = jax.nn.silu(dense(p["mlp_gate"], normal)) * dense(p["mlp_up"], normal)
        return h + dense(p["mlp_down"], gated), more

    def logits_of(params: Params, table: jax.Array, h: jax.Array) -> jax.Array:
        head = table.T if tied else params["head"]["kernel"].astype(dtype)
        return jnp.matmul(norm(params["norm"], h), head, preferred_element_type=jnp.float32)

    unroll = layers if layers <= MOST_UNROLLED else 1

    def apply(params: Params, x: Any) -> jax.Array:
        _check_tokens(x)
        seen = sight(x.segments)
        turn = angles(seen.positions, head_width, rope_base, rope_scaling)

        def one(h: jax.Array, p: Params) -> tuple[jax.Array, None]:
            return layer(p, h, turn, lambda query, key, value: (attention(query, key, value, seen.bias), None))

        table = params["embedding"]["embedding"].astype(dtype)
        # Matrices and not arrays of rank 3: XLA would copy the latter before the products of the backward pass.
        h = table[x.ids.reshape(-1)]
        if remat:
            h, _ = lax.scan(jax.checkpoint(one, prevent_cse=False), h, params["layers"])
        else:
            h, _ = lax.scan(one, h, params["layers"], unroll=unroll)
        return logits_of(params, table, h).reshape(*x.ids.shape, num_outputs)

    def empty(num: int, length: int) -> Cache:
        nothing = jnp.zeros((layers, num, kv_heads, length, head_width), dtype)
        return Cache(nothing, nothing)

    def step(params: Params, cache: Cache, ids: jax.Array, place: jax.Array, first: jax.Array) -> Any:
        turn = angles((place - first).astype(jnp.float32)[:, None], head_width, rope_base, rope_scaling)
        places = jnp.arange(cache.key.shape[3], dtype=jnp.int32)[None, :]
        bias = jnp.where((places >= first[:, None]) & (places <= place), 0.0, UNSEEN)[:, None, :]

        def one(h: jax.Array, item: tuple[Params, Cache]) -> tuple[jax.Array, Cache]:
            p, held = item

            def attend(query: jax.Array, *new: jax.Array) -> tuple[jax.Array, Cache]:
                known = Cache(
                    *(lax.dynamic_update_slice_in_dim(*pair, place, 2) for pair in zip(held, new, strict=True))
                )
                return attention(query, *known, bias), known

            return layer(p, h, turn, attend)

        table = params["embedding"]["embedding"].astype(dtype)
        h, cache = lax.scan(one, table[ids], (params["layers"], cache), unroll=unroll)
        return cache, logits_of(params, table, h)

    return Model(init=init, apply=apply, reader=Reader(empty, step))


def _check_tokens(x: Any) -> None:
    if not isinstance(x, Tokens):
        shape = list(x.shape[1:]) if hasattr(x, "shape") else type(x).__name__
        raise UserError(
            f"model decoder reads text, was given examples of another kind ({shape}): use text, data 'text:...', or "
            f"another model, such as mlp, which takes arrays of any shape"
        )


@config
class Decoder:
    """A decoder-only transformer, by default of 0.36 million parameters for bytes; see `cl_jax.models.decoder`."""

    reads: ClassVar[str] = "text"

    width: int = static(96, low=1)
    layers: int = static(3, low=1)
    heads: int = static(4, low=1)
    kv_heads: int | None = static(None, low=1)
    head_width: int | None = static(None, low=1)
    hidden: int | None = static(None, low=1)
    rope_base: float = static(10000.0)
    rope_scaling: tuple[float, float, float, int] | None = static(None)  # see `cl_jax.models.rotary.Scaling`
    norm_epsilon: float = static(1e-5)
    tied: bool = static(True)
    qkv_bias: bool = static(False)
    qk_norm: bool = static(False)
    remat: bool = static(False)
    compute: str = static("float32", choices=tuple(COMPUTE))

    def build(self, num_outputs: int) -> Model:
        return decoder(
            num_outputs, width=self.width, layers=self.layers, heads=self.heads, kv_heads=self.kv_heads,
            head_width=self.head_width, hidden=self.hidden, rope_base=self.rope_base,
            rope_scaling=self.rope_scaling and checked_scaling(self.rope_scaling), norm_epsilon=self.norm_epsilon,
            tied=self.tied, qkv_bias=self.qkv_bias, qk_norm=self.qk_norm, remat=self.remat, compute=self.compute,
        )  # fmt: skip

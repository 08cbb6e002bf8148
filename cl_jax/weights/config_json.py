"""A Hugging Face `config.json` of the Llama, Qwen2 and Qwen3 families <-> the `Decoder` that computes the same.

What a config says beyond that is left alone where it changes nothing, and refused by its name where it would.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cl_jax.errors import UserError, unknown
from cl_jax.models.decoder import Decoder
from cl_jax.models.rotary import Scaling
from cl_jax.weights import strict_json
from cl_jax.weights.strict_json import shown

CONFIG = "config.json"
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_OFF = (None, False)
# What may stand under these keys, if they are there at all; anything else is another computation than the decoder's.
_ALLOWED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu",), "the decoder has silu in its hidden layers"),
    "attention_bias": (_OFF, "it stands for a bias on the output of attention too"),
    "mlp_bias": (_OFF, "the decoder's hidden layers have no bias"),
    "use_sliding_window": (_OFF, "the decoder attends to all earlier tokens"),
    "quantization_config": ((None,), "weights are read as float32, bfloat16 or float16"),
    "rope_interleaved": (_OFF, "the decoder rotates the two halves of a head"),
    "partial_rotary_factor": ((None, 1), "the decoder rotates whole heads"),
    "no_rope_layers": ((None, []), "the decoder rotates in every layer"),
    "auto_map": ((None,), "it stands for code of the model's own"),
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
_FACTORS = (
    "attn_logit_softcapping", "final_logit_softcapping", "logits_scaling", "logit_scale", "embedding_multiplier",
    "residual_multiplier", "attention_multiplier",
)  # fmt: skip
_ALLOWED |= {key: ((None, 0), "the decoder has no experts") for key in _EXPERTS}
_ALLOWED |= {key: ((None, 1), "the decoder does not scale there") for key in _FACTORS}
# Sizes that have to be there, and the largest that are believed; weights of the size have to be there too.
_SIZES = {
    "vocab_size": 2**24, "hidden_size": 2**17, "intermediate_size": 2**20, "num_hidden_layers": 2**12,
    "num_attention_heads": 2**12,
}  # fmt: skip
_MOST_HEAD_WIDTH = 2**12
_LLAMA3 = (("factor", 1.0), ("low_freq_factor", 1e-6), ("high_freq_factor", 1e-6))  # and the least of each
_CONTEXT = "original_max_position_embeddings"
# Null: as many as heads, and their share of the width. Where a family has numbers of its own, its configs name them.
_MISSING: dict[str, dict[str, None]] = {
    "llama": {"num_key_value_heads": None, "head_dim": None}, "qwen2": {"head_dim": None}, "qwen3": {},
}  # fmt: skip


def read_config(folder: Path) -> tuple[Decoder, int]:
    """The decoder that `config.json` in a folder describes, and its number of tokens.

    A key that is missing has the value that the family has then: `rope_theta` 10000, `rms_norm_eps` 1e-6,
    `tie_word_embeddings` false, `num_key_value_heads` as many as heads, `head_dim` hidden_size / heads. The last two
    may not be missing where the family's value would be another one.

    Raises:
        UserError: not a JSON object; another family; a size that is missing, not a whole number or out of bounds; a key
            whose value the decoder cannot follow, such as `quantization_config`, or `rope_scaling` but Llama 3's.
    """
    path = folder / CONFIG
    held = strict_json.read(path)
    family = held.get("model_type")
    if not isinstance(family, str) or family not in _CLASSES:
        raise unknown(f"model_type in {path}:", shown(family).strip("'"), _CLASSES)
    _refuse(path, held, family)
    held = {**_MISSING[family], **held}
    size = {key: strict_json.whole(path, held, key, most) for key, most in _SIZES.items()}
    width, heads = size["hidden_size"], size["num_attention_heads"]
    kv_heads, head_width = heads, width // heads
    if held.get("num_key_value_heads", "missing") is not None:
        kv_heads = strict_json.whole(path, held, "num_key_value_heads", heads)
    if held.get("head_dim", "missing") is not None:
        head_width = strict_json.whole(path, held, "head_dim", _MOST_HEAD_WIDTH)
    elif width % heads:
        raise UserError(f"{path}: hidden_size {width} is no multiple of num_attention_heads {heads}; give head_dim.")
    if heads % kv_heads:
        raise UserError(f"{path}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}.")
    if head_width % 2:
        raise UserError(f"{path}: a head has width {head_width}; it has to be even: positions rotate its two halves.")
    tied = held.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise UserError(f"{path}: tie_word_embeddings is {shown(tied)}; expected true or false.")
    rope_base, rope_scaling = _rope(path, held)
    decoder = Decoder(
        width=width,
        layers=size["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        hidden=size["intermediate_size"],
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        norm_epsilon=strict_json.number(path, "rms_norm_eps", held.get("rms_norm_eps", 1e-6), 0.0, 1.0),
        tied=tied,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )
    return decoder, size["vocab_size"]


class Sizes(NamedTuple):
    """What a decoder makes of the sizes that its config leaves open."""

    kv_heads: int
    head_width: int
    hidden: int


def sizes(decoder: Decoder) -> Sizes:
    """As `cl_jax.models.decoder.decoder` fills them in."""
    return Sizes(
        decoder.kv_heads or decoder.heads,
        decoder.head_width or decoder.width // decoder.heads,
        decoder.hidden or -(-decoder.width // 3) * 8,
    )


def describe(decoder: Decoder, num_tokens: int, like: Path | None = None) -> dict[str, Any]:
    """What `config.json` has to say of a decoder: `read_config` makes the same decoder of it, and `transformers` too.

    Args:
        like: a folder from whose `config.json` the ids of special tokens and the longest context are copied. None: no
            special tokens, and the family's context.

    Raises:
        UserError: the decoder is of none of the three families.
    """
    if decoder.qkv_bias and decoder.qk_norm:
        raise UserError("no family has both qkv_bias and qk_norm, so these weights cannot be exported; leave one out.")
    family = "qwen3" if decoder.qk_norm else "qwen2" if decoder.qkv_bias else "llama"
    if family == "llama" and decoder.width % decoder.heads:
        raise UserError(
            f"the Llama family needs a width that is a multiple of the heads, this decoder has {decoder.width} and "
            f"{decoder.heads}; it can be exported with qk_norm or qkv_bias only."
        )
    filled = sizes(decoder)
    kept = {} if like is None else strict_json.read(like / CONFIG)
    scaling: dict[str, Any] = {"rope_type": "default"}
    if decoder.rope_scaling is not None:
        named = zip([*(key for key, _ in _LLAMA3), _CONTEXT], decoder.rope_scaling, strict=True)
        scaling = {"rope_type": "llama3", **dict(named)}
    return {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "dtype": "float32",
        "vocab_size": num_tokens,
        "hidden_size": decoder.width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": filled.kv_heads,
        "head_dim": filled.head_width,
        "intermediate_size": filled.hidden,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_epsilon,
        "rope_parameters": {**scaling, "rope_theta": decoder.rope_base},
        # Where `transformers` before 5 looks.
        "rope_theta": decoder.rope_base,
        "rope_scaling": scaling if decoder.rope_scaling is not None else None,
        "tie_word_embeddings": decoder.tied,
        "attention_bias": False,
        "mlp_bias": False,
        **{key: kept.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        **{key: kept[key] for key in ("max_position_embeddings",) if key in kept},
    }


def _refuse(path: Path, held: Mapping[str, Any], family: str) -> None:
    strict_json.check_values(path, held, _ALLOWED)
    kinds = held.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise UserError(f"{path}: layer_types is {shown(kinds)}; supported is 'full_attention' in every layer.")
    # The Qwen families slide only where `use_sliding_window` says so.
    if family == "llama" and held.get("sliding_window") is not None:
        raise UserError(f"{path}: sliding_window is {shown(held['sliding_window'])}; supported is null.")


def _rope(path: Path, held: Mapping[str, Any]) -> tuple[float, Scaling | None]:
    """Base and scaling, from `rope_theta` and `rope_scaling` or from the newer `rope_parameters`, which has both."""
    bases = [held["rope_theta"]] if held.get("rope_theta") is not None else []
    scalings = []
    for key in ("rope_scaling", "rope_parameters"):
        rope = held.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise UserError(f"{path}: {key} is {shown(rope)}; expected an object or null.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3") or any(isinstance(value, dict) for value in rope.values()):
            raise UserError(f"{path}: {key} is {shown(rope)}; supported is rope_type 'default' or 'llama3'.")
        if rope.get("partial_rotary_factor") not in (None, 1):
            raise UserError(f"{path}: partial_rotary_factor in {key} is not 1; the decoder rotates whole heads.")
        if rope.get("rope_theta") is not None:
            bases.append(rope["rope_theta"])
        scalings.append(_scaling(path, rope) if kind == "llama3" else None)
    checked = {strict_json.number(path, "rope_theta", base, 1.0, 1e12) for base in bases or [10000.0]}
    if len(checked) > 1:
        raise UserError(f"{path}: rope_theta is given as {' and as '.join(map(str, sorted(checked)))}; keep one.")
    if len(set(scalings)) > 1:
        raise UserError(f"{path}: rope_scaling and rope_parameters tell of different scalings; keep one.")
    return checked.pop(), scalings[0] if scalings else None


def _scaling(path: Path, rope: Mapping[str, Any]) -> Scaling:
    factor, low, high = (strict_json.number(path, key, rope.get(key), least, 1e6) for key, least in _LLAMA3)
    if not low < high:
        raise UserError(f"{path}: low_freq_factor {low:g} has to be below high_freq_factor {high:g}.")
    return Scaling(factor, low, high, strict_json.whole(path, rope, _CONTEXT, 2**31 - 1))

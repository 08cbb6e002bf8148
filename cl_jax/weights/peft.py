"""LoRA factors <-> an adapter in PEFT's format, a folder of `adapter_config.json` and `adapter_model.safetensors`.

Ours: W_effective = W + alpha / r A B for x @ W, A [n, d_in, r] and B [n, r, d_out] stacked over layers. There: each
layer has lora_A [r, d_in] and lora_B [d_out, r], and the update of a weight [d_out, d_in] is alpha / r lora_B lora_A.

Source: Hu et al. 2021, arXiv 2106.09685; the repository huggingface/peft, "Checkpoint format".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.errors import UserError, unknown
from cl_jax.models.decoder import Decoder
from cl_jax.weights import llama, safetensors, strict_json
from cl_jax.weights.strict_json import shown

Factors = Mapping[str, Mapping[str, jax.Array]]  # path -> {"a": [n, d_in, r], "b": [n, r, d_out]}

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HEAD = "lm_head"
_MODULES = {f"layers/{part}/kernel": f"model.layers.{{}}.{name}" for part, name in llama.PROJECTIONS.items()}
_MODULES["head/kernel"] = _HEAD
_PREFIX = "base_model.model."
_OFF, _EMPTY = (None, False), (None, {}, [])
# What may stand under these keys, if they are there at all; anything else is not plain LoRA of whole kernels.
_ALLOWED: dict[str, tuple[tuple[Any, ...], str]] = {
    "peft_type": (("LORA",), "only LoRA is read"),
    "bias": (("none",), "biases are not part of the factors"),
    "use_rslora": (_OFF, "the update is scaled by alpha / r"),
    "init_lora_weights": ((True, False, None, "gaussian", "orthogonal"), "others change the base's weights too"),
    "rank_pattern": (_EMPTY, "all factors have one rank"),
    "alpha_pattern": (_EMPTY, "all factors have one alpha"),
}
_ALLOWED |= {
    key: (_OFF, "only plain LoRA is read") for key in ("fan_in_fan_out", "use_dora", "use_qalora", "lora_bias")
}
_ALLOWED |= {
    key: (_EMPTY, "only plain LoRA of whole kernels is read")
    for key in (
        "modules_to_save", "layers_to_transform", "layer_replication", "trainable_token_indices", "target_parameters",
        "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config", "alora_invocation_tokens",
    )
}  # fmt: skip
_MOST_RANK, _MOST_ALPHA = 2**16, 1e6


def save_adapter(folder: Path, factors: Factors, alpha: float, base: str | None = None) -> None:
    """Writes factors as an adapter that PEFT loads onto the base model.

    Args:
        folder: made if it is not there; files of these names in it are replaced.
        factors: by path of the kernel, `{"layers/query/kernel": {"a": [n, d_in, r], "b": [n, r, d_out]}, ...}`, also
            `"head/kernel"` with [d_in, r] and [r, d_out]; all of one rank. Columns that a mask has switched off are to
            be left out first.
        alpha: PEFT scales by alpha / r, of the r of these arrays.
        base: name or folder of the base model, for whoever loads the adapter.

    Raises:
        UserError: no factors, a path that is none of a projection's kernel, or shapes that do not fit each other.
    """
    from cl_jax.results import write_json

    if not factors:
        raise UserError(f"there are no factors to save in {folder}.")
    rank = int(next(iter(factors.values()))["a"].shape[-1])
    tensors, modules = {}, []
    for path, pair in factors.items():
        module = _MODULES.get(path)
        if module is None:
            raise unknown("kernel with factors", path, _MODULES)
        a, b = (np.asarray(pair[part], np.float32) for part in ("a", "b"))
        stacked = module != _HEAD
        if not a.ndim == b.ndim == 2 + stacked or a.shape[:-2] != b.shape[:-2]:
            raise UserError(f"factors of {path} are {a.shape} and {b.shape}; expected [n, d_in, r] and [n, r, d_out].")
        if not a.shape[-1] == b.shape[-2] == rank:
            raise UserError(
                f"factors of {path} are {a.shape} and {b.shape}, others of rank {rank}; PEFT needs one rank."
            )
        modules.append(module.rpartition(".")[2])
        for i in range(len(a)) if stacked else (...,):
            tensors[_tensor(module, i, "A")] = a[i].T
            tensors[_tensor(module, i, "B")] = b[i].T
    content = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else float(alpha), "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted(modules), "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    safetensors.write(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, content)


def load_adapter(folder: Path, decoder: Decoder, num_tokens: int) -> tuple[dict[str, dict[str, jax.Array]], float]:
    """Reads an adapter for a decoder.

    Returns:
        The factors as `save_adapter` takes them, float32, and alpha.

    Raises:
        UserError: a broken file, an adapter of another kind than plain LoRA, or tensors that are not those of some of
            the decoder's kernels in all of its layers, with one rank.
    """
    path = folder / CONFIG
    held = strict_json.read(path)
    strict_json.check_values(path, held, _ALLOWED)
    rank = strict_json.whole(path, held, "r", _MOST_RANK)
    alpha = strict_json.number(path, "lora_alpha", held.get("lora_alpha"), 0.0, _MOST_ALPHA)
    tensors = safetensors.read(folder / WEIGHTS).tensors
    wanted = llama.leaves(decoder, num_tokens)
    factors, used = {}, set()
    for kernel, module in _MODULES.items():
        leaf = wanted.get(kernel)
        if leaf is None or _tensor(module, 0, "A") not in tensors:
            continue
        d_in, d_out = leaf.shape
        factors[kernel] = {}
        for part, letter, shape in (("a", "A", (d_in, rank)), ("b", "B", (rank, d_out))):
            names = [_tensor(module, i, letter) for i in range(leaf.layers or 1)]
            for name in names:
                if name not in tensors:
                    raise UserError(f"{folder / WEIGHTS} lacks {name}; both factors have to be there in every layer.")
                llama.check_tensor(folder / WEIGHTS, name, tensors[name], shape[::-1])
            used.update(names)
            stack = np.stack([tensors[name].T.astype(np.float32) for name in names])
            factors[kernel][part] = jnp.asarray(stack if leaf.layers is not None else stack[0])
    if more := sorted(set(tensors) - used):
        raise unknown(f"tensor in {folder / WEIGHTS}:", shown(more[0]).strip("'"), sorted(used)[:20])
    if not factors:
        raise UserError(f"{folder / WEIGHTS} has no tensors; download or copy it again.")
    _check_targets(path, held.get("target_modules"), [_MODULES[kernel].rpartition(".")[2] for kernel in factors])
    return factors, alpha


def _tensor(module: str, layer: Any, letter: str) -> str:
    return f"{_PREFIX}{module.format(layer)}.lora_{letter}.weight"


def _check_targets(path: Path, targets: Any, found: list[str]) -> None:
    # A text is a regular expression over names of modules; what it chose is what there are tensors of.
    if isinstance(targets, list) and {str(one).rpartition(".")[2] for one in targets} != set(found):
        raise UserError(f"{path}: target_modules is {shown(targets)}, but there are factors of {', '.join(found)}.")

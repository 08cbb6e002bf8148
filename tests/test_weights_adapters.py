"""LoRA factors in PEFT's format: the way out and back, what it computes, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from cl_jax.errors import UserError
from cl_jax.weights import load_adapter, safetensors, save_adapter
from cl_jax.weights.config_json import read_config

LLAMA = Path(__file__).parent / "fixtures" / "decoders" / "llama"
DECODER, TOKENS = read_config(LLAMA)
Q_A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


def random_factors(rank: int = 3) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = {"layers/query/kernel": (2, 16, 16), "layers/mlp_down/kernel": (2, 24, 16), "head/kernel": (16, TOKENS)}
    made = {}
    for path, (*n, d_in, d_out) in sizes.items():
        a, b = rng.normal(size=(*n, d_in, rank)), rng.normal(size=(*n, rank, d_out))
        made[path] = {"a": a.astype(np.float32), "b": b.astype(np.float32)}
    return made


def test_saved_and_loaded_bit_for_bit(tmp_path: Path) -> None:
    factors = random_factors()
    save_adapter(tmp_path / "out", factors, 12.0, "some/base")
    held = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (held["r"], held["lora_alpha"], held["base_model_name_or_path"]) == (3, 12, "some/base")
    assert held["target_modules"] == ["down_proj", "lm_head", "q_proj"]
    back, alpha = load_adapter(tmp_path / "out", DECODER, TOKENS)
    assert alpha == 12.0 and back.keys() == factors.keys()
    jax.tree.map(np.testing.assert_array_equal, factors, back)


def test_a_tensor_of_the_file_is_that_of_the_format(tmp_path: Path) -> None:
    factors = random_factors()
    save_adapter(tmp_path, factors, 4.5)
    tensors = safetensors.read(tmp_path / "adapter_model.safetensors").tensors
    assert len(tensors) == 2 * (2 + 2 + 1)
    np.testing.assert_array_equal(tensors[Q_A], factors["layers/query/kernel"]["a"][1].T)
    head = tensors["base_model.model.lm_head.lora_B.weight"]
    np.testing.assert_array_equal(head, factors["head/kernel"]["b"].T)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 4.5


def test_what_cannot_be_an_adapter_is_not_written(tmp_path: Path) -> None:
    factors = random_factors()
    query = factors["layers/query/kernel"]
    out = tmp_path / "out"
    for changed, words in (
        ({}, "there are no factors"),
        ({"layers/queri/kernel": query}, "unknown kernel with factors 'layers/queri/kernel'.*you mean 'layers/query"),
        ({"layers/query/kernel": {"a": query["a"][0], "b": query["b"][0]}}, r"expected \[n, d_in, r\]"),
        ({"layers/query/kernel": {"a": query["a"], "b": query["b"][:1]}}, r"expected \[n, d_in, r\]"),
        ({**factors, "layers/key/kernel": random_factors(2)["layers/query/kernel"]}, "PEFT needs one rank"),
        ({"layers/query/kernel": {"a": query["a"], "b": query["b"][:, :2]}}, "PEFT needs one rank"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            save_adapter(out, changed, 1.0)
    assert not out.exists()


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "DoRA": ({"use_dora": True}, "use_dora is True"),
    "scaled by the root": ({"use_rslora": True}, "use_rslora is True; .* alpha / r"),
    "ranks by layer": ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
    "a changed base": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    "no rank": ({"r": None}, "r is None"),
    "another rank": ({"r": 4}, r"has shape \[3, 16\]; by the config it is \[4, 16\]"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is None"),
    "an endless alpha": ({"lora_alpha": 1e300}, "lora_alpha is 1e[+]300"),
    "other targets": ({"target_modules": ["q_proj"]}, "target_modules is .*, but there are factors of"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_another_adapter_than_plain_lora_is_refused_by_its_key(what: str, tmp_path: Path) -> None:
    changes, words = CONFIGS[what]
    folder = tmp_path / "changed"
    shutil.copytree(LLAMA / "adapter", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=words):
        load_adapter(folder, DECODER, TOKENS)


TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], str]] = {
    "a layer without": (lambda held: held.pop(Q_A), "lacks .*layers.1.self_attn.q_proj.lora_A.weight; both factors"),
    "more": (lambda held: held.update({Q_A.replace("q_proj", "x_proj"): held[Q_A]}), "unknown tensor .*Did you mean"),
    "a layer more": (lambda held: held.update({Q_A.replace("1", "2"): held[Q_A]}), "unknown tensor .*layers.2"),
    "transposed": (lambda held: held.update({Q_A: held[Q_A].T}), r"has shape \[16, 3\]"),
    "integers": (lambda held: held.update({Q_A: held[Q_A].astype(np.int8)}), "is int8; weights are read from"),
    "nothing": (lambda held: held.clear(), "has no tensors"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_do_not_fit_are_refused(what: str, tmp_path: Path) -> None:
    change, words = TENSORS[what]
    folder = tmp_path / "changed"
    shutil.copytree(LLAMA / "adapter", folder)
    tensors = dict(safetensors.read(folder / "adapter_model.safetensors").tensors)
    change(tensors)
    safetensors.write(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(UserError, match=words):
        load_adapter(folder, DECODER, TOKENS)


def test_an_adapter_of_peft_has_the_factors_of_its_layers() -> None:
    factors, alpha = load_adapter(LLAMA / "adapter", DECODER, TOKENS)
    shapes = jax.tree.map(np.shape, factors)
    assert alpha == 5.0 and shapes == {
        "layers/query/kernel": {"a": (2, 16, 3), "b": (2, 3, 16)},
        "layers/value/kernel": {"a": (2, 16, 3), "b": (2, 3, 8)},
        "layers/mlp_down/kernel": {"a": (2, 24, 3), "b": (2, 3, 16)},
    }

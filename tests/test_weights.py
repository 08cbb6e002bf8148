"""Open weights: what a config may say, which tensors belong to it, shards, and the way out and back in."""

import dataclasses
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from cl_jax.errors import UserError
from cl_jax.models.decoder import Decoder
from cl_jax.tokens import Tokens
from cl_jax.weights import llama, load_weights, safetensors, save_weights, strict_json
from cl_jax.weights.config_json import read_config

FIXTURES = Path(__file__).parent / "fixtures" / "decoders"
FAMILIES = ("llama", "llama3", "qwen2", "qwen3")
# As SmolLM2-135M describes itself: the older place of rope_theta, and keys that mean nothing here.
SMOL = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
    "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.04, "intermediate_size": 1536,
    "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip


LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def configured(folder: Path, content: dict[str, Any] | str, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps({**content, **changes})
    (folder / "config.json").write_text(text)
    return folder


def own(folder: Path, family: str) -> Path:
    """A copy of a fixture that a test may change."""
    shutil.copytree(FIXTURES / family, folder)
    return folder


def retensored(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    path = folder / "model.safetensors"
    tensors = dict(safetensors.read(path).tensors)
    change(tensors)
    safetensors.write(path, tensors)
    return folder


def equal(one: Any, two: Any) -> bool:
    same = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes(), one, two
    )
    return all(jax.tree.leaves(same))


def test_configs_become_decoders(tmp_path: Path) -> None:
    smol, tokens = read_config(configured(tmp_path / "smol", SMOL))
    assert tokens == 49152
    assert smol == Decoder(
        width=576, layers=30, heads=9, kv_heads=3, head_width=64, hidden=1536, rope_base=100000.0, norm_epsilon=1e-5,
        tied=True,
    )  # fmt: skip
    qwen = {
        key: value for key, value in SMOL.items() if key not in ("rope_theta", "rms_norm_eps", "tie_word_embeddings")
    }
    qwen |= {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21}
    two, _ = read_config(
        configured(tmp_path / "qwen2", qwen, rope_parameters={"rope_theta": 1e6, "rope_type": "default"})
    )
    assert (two.qkv_bias, two.qk_norm, two.tied, two.rope_base, two.norm_epsilon) == (True, False, False, 1e6, 1e-6)
    three, _ = read_config(configured(tmp_path / "qwen3", qwen, model_type="qwen3", head_dim=128))
    assert (three.qkv_bias, three.qk_norm, three.head_width, three.rope_base) == (False, True, 128, 10000.0)
    for place in ("rope_scaling", "rope_parameters"):
        long, _ = read_config(configured(tmp_path / "llama3", SMOL, **{place: LLAMA3}))
        assert long == dataclasses.replace(smol, rope_scaling=(32.0, 1.0, 4.0, 8192))
    many, _ = read_config(configured(tmp_path / "null", SMOL, num_key_value_heads=None, head_dim=None))
    assert (many.kv_heads, many.head_width) == (9, 64)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another family": ({"model_type": "lama"}, "unknown model_type in .*'lama'; known: .*Did you mean 'llama'"),
    "no family": ({"model_type": None}, "unknown model_type"),
    "scaled positions": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is .*'linear'"),
    "yarn": ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters is .*'yarn'"),
    "positions by kind of layer": (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "rope_parameters is",
    ),
    "llama3 without a factor": ({"rope_scaling": {"rope_type": "llama3"}}, "factor is None; expected a number from 1"),
    "llama3 the wrong way round": ({"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}}, "1 has to be below .* 0.5"),
    "llama3 without its context": (
        {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 0}},
        "original_max_position_embeddings is 0",
    ),
    "two scalings": (
        {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}},
        "tell of different scalings",
    ),
    "two bases": ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta is given as 100000.0 and as 500000.0"),
    "a base that is none": ({"rope_theta": "1e4"}, "rope_theta is '1e4'"),
    "a part of heads": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported is \"silu\""),
    "a bias of attention": ({"attention_bias": True}, "attention_bias is True.*output of attention"),
    "a bias of hidden layers": ({"mlp_bias": True}, "mlp_bias is True"),
    "a window": ({"sliding_window": 4096}, "sliding_window is 4096"),
    "a window of Qwen": ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is True"),
    "a window in some layers": ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
    "experts": ({"num_experts": 8}, "num_experts is 8"),
    "code of its own": ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map is"),
    "a missing size": ({"hidden_size": None}, "hidden_size is None; expected a whole number from 1 to 131072"),
    "a negative size": ({"vocab_size": -1}, "vocab_size is -1"),
    "a large size": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; .* to 4096"),
    "a size that is no number": ({"intermediate_size": True}, "intermediate_size is True"),
    "an epsilon below 0": ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
    "heads that share nothing": ({"num_attention_heads": 10}, "576 is no multiple of num_attention_heads 10"),
    "keys that share nothing": ({"num_key_value_heads": 2}, "9 is no multiple of num_key_value_heads 2"),
    "odd heads": ({"head_dim": 7}, "a head has width 7; it has to be even"),
    "Qwen3 without head_dim": ({"model_type": "qwen3"}, "head_dim is 'missing'"),
    "tied perhaps": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_config_that_would_compute_something_else_is_refused_by_its_key(what: str, tmp_path: Path) -> None:
    changes, words = REFUSED[what]
    with pytest.raises(UserError, match=words):
        read_config(configured(tmp_path, SMOL, **changes))


def test_a_config_that_is_no_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json is not there"):
        read_config(tmp_path)
    for text, words in (
        ("{", "not valid JSON"),
        ("[]", "should hold a JSON object"),
        ('{"vocab_size": 1, "vocab_size": 2}', "given twice"),
        ('{"rms_norm_eps": NaN}', "NaN is not a number"),
        (json.dumps(SMOL).replace("1e-05", "1e999"), "rms_norm_eps is inf"),
        ("{" + " " * strict_json.LARGEST + "}", "has 8388609 bytes of JSON; the most allowed is 8388608"),
    ):
        with pytest.raises(UserError, match=words):
            read_config(configured(tmp_path, text))


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_land_in_their_layer_and_are_turned(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "_ROWS", 7)  # as if the matrices were large
    decoder, params, tokens = load_weights(FIXTURES / family)
    tensors = safetensors.read(FIXTURES / family / "model.safetensors").tensors
    assert tokens == len(params["embedding"]["embedding"])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(array.size for array in tensors.values())
    names = {"query": "self_attn.q_proj", "output": "self_attn.o_proj", "mlp_down": "mlp.down_proj"}
    for ours, theirs in names.items():
        for i in range(decoder.layers):
            np.testing.assert_array_equal(
                params["layers"][ours]["kernel"][i], tensors[f"model.layers.{i}.{theirs}.weight"].T
            )
    last = tensors[f"model.layers.{decoder.layers - 1}.post_attention_layernorm.weight"]
    np.testing.assert_array_equal(params["layers"]["mlp_norm"]["scale"][-1], last)
    np.testing.assert_array_equal(params["embedding"]["embedding"], tensors["model.embed_tokens.weight"])
    assert ("head" in params) == (family == "llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_bit_for_bit(family: str, tmp_path: Path) -> None:
    decoder, params, tokens = load_weights(FIXTURES / family)
    params["norm"]["scale"] = params["norm"]["scale"].at[0].set(np.nan)
    save_weights(tmp_path / "out", decoder, params)
    again, back, again_tokens = load_weights(tmp_path / "out")
    assert (again, again_tokens) == (decoder, tokens)
    assert equal(params, back)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] is None
    theirs = safetensors.read(FIXTURES / family / "model.safetensors").tensors
    assert safetensors.read(tmp_path / "out" / "model.safetensors").tensors.keys() == theirs.keys()


@pytest.mark.parametrize("family", ["llama", "llama3"])
def test_older_and_newer_readers_find_the_positions_where_they_look(family: str, tmp_path: Path) -> None:
    decoder, params, _ = load_weights(FIXTURES / family)
    save_weights(tmp_path, decoder, params)
    saved = json.loads((tmp_path / "config.json").read_text())
    for unknown in (["rope_parameters"], ["rope_theta", "rope_scaling"]):
        known = {key: value for key, value in saved.items() if key not in unknown}
        assert read_config(configured(tmp_path / "known", known))[0] == decoder


def test_special_tokens_and_context_are_those_of_where_the_weights_came_from(tmp_path: Path) -> None:
    source = own(tmp_path / "source", "llama")
    content = json.loads((source / "config.json").read_text())
    configured(source, content, eos_token_id=[3, 4], max_position_embeddings=77)
    decoder, params, _ = load_weights(source)
    save_weights(tmp_path / "out", decoder, params, like=source)
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (saved["eos_token_id"], saved["bos_token_id"], saved["max_position_embeddings"]) == ([3, 4], 1, 77)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(dtype: Any, tmp_path: Path) -> None:
    folder = own(tmp_path / "half", "qwen3")
    full = load_weights(folder)[1]
    retensored(folder, lambda held: held.update({name: array.astype(dtype) for name, array in held.items()}))
    half = load_weights(folder)[1]
    assert equal(half, jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), full))
    assert not equal(half, full)


def renamed(held: dict[str, np.ndarray]) -> None:
    held["model.layers.1.self_attn.q_prj.weight"] = held.pop("model.layers.1.self_attn.q_proj.weight")


def grown(held: dict[str, np.ndarray]) -> None:
    held["model.norm.weight"] = np.ones(17, np.float32)


UNFIT: dict[str, tuple[str, Callable[[dict[str, np.ndarray]], Any], str]] = {
    "missing": ("llama", lambda held: held.pop("lm_head.weight"), "they lack 'lm_head.weight'"),
    "renamed": ("llama", renamed, r"lack 'model.layers.1.self_attn.q_proj.weight' \(near: 'model.*q_prj.weight'\)"),
    "more": ("llama", lambda held: held.update({"score.weight": np.ones(3)}), "they have 'score.weight', which no"),
    "a bias more": (
        "qwen2",
        lambda held: held.update({"model.layers.0.mlp.up_proj.bias": np.ones(24)}),
        "up_proj.bias",
    ),
    "a layer more": (
        "qwen3",
        lambda held: held.update({name.replace(".0.", ".2."): held[name] for name in list(held) if ".0." in name}),
        "they have 'model.layers.2.input_layernorm.weight'.* and 8 more",
    ),
    "another shape": ("qwen2", grown, r"model.norm.weight has shape \[17\]; by the config it is \[16\]"),
    "transposed": (
        "qwen2",
        lambda held: held.update({(name := "model.layers.0.mlp.up_proj.weight"): held[name].T}),
        r"has shape \[16, 24\]; by the config it is \[24, 16\]",
    ),
    "integers": (
        "qwen2",
        lambda held: held.update({"model.norm.weight": np.ones(16, np.int8)}),
        "model.norm.weight is int8; weights are read from float32, float16, bfloat16",
    ),
    "tied and another head": (
        "qwen2",
        lambda held: held.update({"lm_head.weight": held["model.embed_tokens.weight"] + np.float32(1)}),
        "lm_head.weight, which differs",
    ),
}


@pytest.mark.parametrize("what", UNFIT)
def test_tensors_that_are_not_those_of_the_config_are_refused(what: str, tmp_path: Path) -> None:
    family, change, words = UNFIT[what]
    folder = retensored(own(tmp_path / "changed", family), change)
    with pytest.raises(UserError, match=words):
        load_weights(folder)


def test_a_scalar_is_refused_as_any_other_shape(tmp_path: Path) -> None:
    def change(held: dict[str, np.ndarray]) -> None:
        held["lm_head.weight"] = held["model.embed_tokens.weight"] = np.array(1, np.float32)

    with pytest.raises(UserError, match=r"embed_tokens.weight has shape"):
        load_weights(retensored(own(tmp_path / "scalar", "qwen2"), change))


def test_a_tied_head_that_is_there_too_and_constants_of_old_files_are_left_alone(tmp_path: Path) -> None:
    folder = own(tmp_path / "old", "qwen2")
    expected = load_weights(folder)

    def change(held: dict[str, np.ndarray]) -> None:
        held["lm_head.weight"] = held["model.embed_tokens.weight"]
        held["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)

    found = load_weights(retensored(folder, change))
    assert found[0] == expected[0] and equal(found[1], expected[1])


def test_a_config_that_claims_a_large_model_allocates_nothing(tmp_path: Path) -> None:
    folder = own(tmp_path / "large", "llama")
    content = json.loads((folder / "config.json").read_text())
    configured(folder, content, vocab_size=2**24, hidden_size=2**17, intermediate_size=2**20)
    tracemalloc.start()
    with pytest.raises(UserError, match="has shape"):
        load_weights(folder)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def sharded(folder: Path, family: str = "llama") -> dict[str, str]:
    """Splits a fixture into two files with an index; returns its weight_map."""
    own(folder, family)
    tensors = safetensors.read(folder / "model.safetensors").tensors
    weight_map = {name: f"model-{1 + i % 2:05d}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        safetensors.write(folder / file, {name: tensors[name] for name in tensors if weight_map[name] == file})
    (folder / "model.safetensors").unlink()
    indexed(folder, weight_map)
    return weight_map


def indexed(folder: Path, weight_map: Any) -> None:
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def test_shards_are_one_set_of_weights(tmp_path: Path) -> None:
    sharded(tmp_path / "shards")
    assert equal(load_weights(tmp_path / "shards")[1], load_weights(FIXTURES / "llama")[1])


def test_an_index_leads_to_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    weight_map = sharded(folder)
    name, file = next(iter(weight_map.items()))
    (folder / "inner").mkdir()
    for place in (tmp_path / file, folder / "inner" / file):
        shutil.copy(folder / file, place)
    for bad in (
        f"../{file}", f"inner/{file}", f"./{file}", str(tmp_path / file), f"..\\{file}", f"C:{file}", "..", "",
        ".safetensors/", f"{file}\0", "config.json", "\ud800.safetensors", "a" * 5000 + ".safetensors",
    ):  # fmt: skip
        indexed(folder, {key: bad if value == file else value for key, value in weight_map.items()})
        with pytest.raises(UserError, match=r"allowed are plain names that end in .safetensors"):
            load_weights(folder)
    indexed(folder, weight_map)
    (folder / file).unlink()
    os.symlink(tmp_path / file, folder / file)
    with pytest.raises(UserError, match=r"is a link to .*, outside of the folder"):
        load_weights(folder)
    (folder / file).unlink()
    os.symlink(file, folder / file)
    with pytest.raises(UserError, match=r"is a link to|is not there"):
        load_weights(folder)
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"{file} is not there"):
        load_weights(folder)
    assert name in weight_map


def test_an_index_and_its_files_have_to_name_the_same_tensors(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    weight_map = sharded(folder)
    name, file = next(iter(weight_map.items()))
    other = next(value for value in weight_map.values() if value != file)
    for changed, words in (
        ({**weight_map, name: other}, f"holds tensor '{name}', but .* puts it into '{other}'"),
        ({key: value for key, value in weight_map.items() if key != name}, f"'{name}', but .* does not name it"),
        ({**weight_map, "lm_tail.weight": file}, "names 1 tensors that are not in the files.*'lm_tail.weight'"),
        ({}, "should have a weight_map"), ([], "should have a weight_map"), ({name: 3}, "should have a weight_map"),
    ):  # fmt: skip
        indexed(folder, changed)
        with pytest.raises(UserError, match=words):
            load_weights(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        load_weights(tmp_path / "none")
    folder = own(tmp_path / "empty", "llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"neither model.safetensors nor .*pytorch_model.bin.*converted to safetensors"):
        load_weights(folder)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    decoder, params, _ = load_weights(FIXTURES / "llama")
    out = tmp_path / "out"
    wider = Decoder(width=16, layers=2, heads=4, kv_heads=4, head_width=4, hidden=24, tied=False)
    both = Decoder(width=16, layers=2, heads=4, kv_heads=2, hidden=24, qkv_bias=True, qk_norm=True)
    with pytest.raises(UserError, match=r"layers/key/kernel is \(2, 16, 8\); .* has \(2, 16, 16\)"):
        save_weights(out, wider, params)
    with pytest.raises(UserError, match=r"parameter head/kernel is missing"):
        save_weights(out, decoder, {key: value for key, value in params.items() if key != "head"})
    with pytest.raises(UserError, match=r"parameter more is .* no such parameter"):
        save_weights(out, decoder, {**params, "more": np.ones(3, np.float32)})
    with pytest.raises(UserError, match="norm/scale is float16"):
        save_weights(out, decoder, {**params, "norm": {"scale": np.ones(16, np.float16)}})
    assert not out.exists()
    with pytest.raises(UserError, match="no family has both"):
        save_weights(out, both, zeros_of(both))
    odd = Decoder(width=10, layers=1, heads=4, kv_heads=2, head_width=4, hidden=24)
    with pytest.raises(UserError, match="needs a width that is a multiple of the heads"):
        save_weights(out, odd, zeros_of(odd))
    assert not out.exists()


@pytest.mark.parametrize(
    "decoder",
    [
        Decoder(),
        Decoder(width=104, layers=1, tied=False, qkv_bias=True),
        Decoder(width=20, heads=6, kv_heads=3, head_width=8, hidden=12, qk_norm=True),
    ],
)
def test_the_names_cover_the_parameters_that_the_decoder_has(decoder: Decoder) -> None:
    ids = np.zeros((1, 4), np.int32)
    made = jax.eval_shape(decoder.build(40).init, jax.random.key(0), Tokens(ids, ids))  # type: ignore[arg-type]
    assert jax.tree.map(np.shape, zeros_of(decoder)) == jax.tree.map(np.shape, made)


def zeros_of(decoder: Decoder) -> Any:
    params: dict[str, Any] = {}
    for path, leaf in llama.leaves(decoder, 40).items():
        *parents, last = path.split("/")
        inner = params
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = np.zeros(leaf.shape if leaf.layers is None else (leaf.layers, *leaf.shape), np.float32)
    return params

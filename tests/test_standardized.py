"""Images with a margin, standardised: against NumPy, and through a sweep."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.config import replace
from cl_jax.experiment import Cnn, Dropout, Mlp, Run, hyper_parameters
from cl_jax.model import training_logits
from cl_jax.models import Standardized
from cl_jax.models.mlp import mlp

X = jnp.asarray(np.random.default_rng(0).random((3, 6, 5, 2)), jnp.float32)


def by_hand(x: np.ndarray, mean: float, deviation: float, margin: int) -> np.ndarray:
    around = np.zeros((len(x), 6 + 2 * margin, 5 + 2 * margin, 2), np.float32)
    around[:, margin : margin + 6, margin : margin + 5] = x
    return (around - np.float32(mean)) / np.float32(deviation)


@pytest.mark.parametrize("margin", [0, 2])
def test_what_the_model_sees(margin: int) -> None:
    model = Standardized(model=Mlp(hidden=(7,)), mean=0.3, deviation=0.5, margin=margin).build(4)
    shown = jnp.asarray(by_hand(np.asarray(X), 0.3, 0.5, margin))
    plain, key = mlp((7,), 4), jax.random.key(0)
    params = model.init(key, X)
    chex.assert_trees_all_equal(params, plain.init(key, shown))
    np.testing.assert_allclose(model.apply(params, X), plain.apply(params, shown), rtol=1e-5, atol=1e-6)
    assert model.tap is not None
    logits, inputs = model.tap(params, {}, X)
    np.testing.assert_allclose(logits, plain.apply(params, shown), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(inputs["dense_0"], shown.reshape(3, -1), rtol=1e-5, atol=1e-6)


def test_dropout_goes_on_in_training() -> None:
    model = Standardized(model=Mlp(hidden=(50,), dropout=Dropout(rate=0.5))).build(4)
    params = model.init(jax.random.key(0), X)
    one, other = (training_logits(model, jax.random.key(i), params, X) for i in (0, 1))
    assert not np.allclose(one, other)
    assert Standardized(model=Mlp(hidden=(50,))).build(4).train is None


def test_of_any_model_and_its_numbers_are_hyper_parameters() -> None:
    model = Standardized(model=Cnn(channels=(4,), hidden=(8,)), margin=1).build(4)
    assert model.apply(model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))), jnp.zeros((2, 8, 8, 1))).shape == (2, 4)
    run = replace(Run(model=Standardized()), {"model.mean": 0.2, "model.model.hidden": (9,)})
    found = hyper_parameters(run)
    assert found["model"] == "standardized" and found["model.mean"] == 0.2 and found["model.model.hidden"] == "9"

"""The auto-encoder's bound, one number at a time, and its parts against what they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import vae

KEY = jax.random.key(0)


def by_hand(params, noise, x) -> float:
    """-ELBO of one example, with the KL divergence of each latent as an integral."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def run(layers, h):
        for i in range(len(layers)):
            h = h @ layers[f"dense_{i}"]["kernel"] + layers[f"dense_{i}"]["bias"]
            h = np.maximum(h, 0) if i < len(layers) - 1 else h
        return h

    out = run(params["encoder"], x)
    mean, deviation = out[: len(out) // 2], np.exp(out[len(out) // 2 :] / 2)
    p = 1 / (1 + np.exp(-run(params["decoder"], mean + deviation * noise)))
    total = -sum(x[i] * np.log(p[i]) + (1 - x[i]) * np.log(1 - p[i]) for i in range(len(x)))
    for m, s in zip(mean, deviation, strict=True):
        z = np.linspace(m - 12 * s, m + 12 * s, 20001)
        log_q = -0.5 * ((z - m) / s) ** 2 - np.log(s * np.sqrt(2 * np.pi))
        log_p = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
        total += np.sum(np.exp(log_q) * (log_q - log_p)) * (z[1] - z[0])
    return total


@pytest.mark.parametrize("hidden", [(), (5, 4)])
def test_the_bound_by_hand(hidden):
    model = vae.vae(6, hidden, 3)
    params = jax.tree.map(lambda leaf: 3.0 * leaf, vae.init(KEY, model))
    generator = np.random.default_rng(0)
    x, noise = generator.random((4, 6)), generator.normal(size=(4, 3))
    found = jax.jit(lambda: vae.negative_elbo(model, params, jnp.float32(noise), jnp.float32(x)))()
    np.testing.assert_allclose(found, [by_hand(params, noise[i], x[i]) for i in range(4)], rtol=1e-5)


def test_generated_are_probabilities_of_the_decoder():
    model = vae.vae(6, (5,), 3)
    params = vae.init(KEY, model)
    x = vae.generate(KEY, model, params["decoder"], 7)
    assert x.shape == (7, 6) and x.dtype == jnp.float32 and (x > 0).all() and (x < 1).all()
    z = jax.random.normal(KEY, (7, 3))
    np.testing.assert_allclose(x, 1 / (1 + np.exp(-model.decoder.apply(params["decoder"], z))), rtol=1e-5)

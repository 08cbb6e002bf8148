"""A variational auto-encoder of dense layers: a small generator of inputs in [0, 1]. Knows no Method."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.model import Model, Params
from cl_jax.models.mlp import mlp


class Vae(NamedTuple):
    """Two models; parameters are `{"encoder": ..., "decoder": ...}`. P values an example, L latent ones."""

    encoder: Model  # from x [B, P] to the mean and the logarithm of the variance of q(z | x): [B, 2 L]
    decoder: Model  # from z [B, L] to the logits of x: [B, P]
    num_values: int  # P
    num_latent: int  # L


def vae(num_values: int, hidden: Sequence[int], num_latent: int) -> Vae:
    """Dense layers of the widths `hidden` with ReLU between them, in the decoder the other way round."""
    hidden = tuple(hidden)
    return Vae(mlp(hidden, 2 * num_latent), mlp(hidden[::-1], num_values), num_values, num_latent)


def init(key: jax.Array, model: Vae) -> Params:
    key_encoder, key_decoder = jax.random.split(key)
    return {
        "encoder": model.encoder.init(key_encoder, jnp.zeros((1, model.num_values), jnp.float32)),
        "decoder": model.decoder.init(key_decoder, jnp.zeros((1, model.num_latent), jnp.float32)),
    }


def negative_elbo(model: Vae, params: Params, noise: jax.Array, x: jax.Array) -> jax.Array:
    """-E_q log p(x | z) + KL(q(z | x) | p(z)) in nats, the expectation by one draw: float32 [B].

        q(z | x) = N(m, diag s^2), (m, log s^2) = encoder(x);  z = m + s * noise;  p(z) = N(0, 1)
        -log p(x | z) = sum_p [softplus(l_p) - x_p l_p], l = decoder(z): binary cross-entropy with x as probabilities
        KL = 1/2 sum_l (m_l^2 + s_l^2 - 1 - log s_l^2)

    A sum over values, not a mean. For x between 0 and 1 the first term is no log-likelihood (the Bernoulli is not
    normalised there), as is usual.

    Args:
        noise: float32 [B, L], standard normal.
        x: float32 [B, P] in [0, 1].

    Source: Kingma and Welling 2014, arXiv 1312.6114, equation 10 and appendices B, C.1.
    """
    mean, log_variance = jnp.split(model.encoder.apply(params["encoder"], x), 2, axis=1)
    logits = model.decoder.apply(params["decoder"], mean + jnp.exp(0.5 * log_variance) * noise)
    reconstruction = jnp.sum(jax.nn.softplus(logits) - x * logits, axis=1)
    divergence = 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance, axis=1)
    return reconstruction + divergence


def generate(key: jax.Array, model: Vae, decoder: Params, num: int) -> jax.Array:
    """x = sigmoid(decoder(z)), z ~ N(0, 1): probabilities, not draws from them. float32 [num, P]."""
    z = jax.random.normal(key, (num, model.num_latent), jnp.float32)
    return jax.nn.sigmoid(model.decoder.apply(decoder, z))

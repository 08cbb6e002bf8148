"""Decompositions against numpy, also of members on several devices, which once waited for each other for ever."""

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cl_jax.decompositions import eigh, singular_values, solve
from cl_jax.devices import AXIS, mesh_of

BY_HAND: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "singular_values": (singular_values, lambda a: np.linalg.svd(a, compute_uv=False)),
    "eigh": (lambda a: eigh(a)[0], lambda a: np.linalg.eigh(a)[0]),
    "solve": (lambda a: solve(a, a[0]), lambda a: np.eye(len(a))[0]),
}


def matrices(num: int, size: int) -> np.ndarray:
    factors = np.random.default_rng(0).normal(size=(num, size, 2 * size)) / size**0.5
    return (factors @ np.swapaxes(factors, 1, 2)).astype(np.float32)


@pytest.mark.parametrize("name", BY_HAND)
def test_members_on_several_devices(name: str) -> None:
    several, spec, found = matrices(6, 200), PartitionSpec(AXIS), []
    ours, by_hand = BY_HAND[name]

    def compute() -> None:
        over = jax.shard_map(
            jax.vmap(ours), mesh=mesh_of(jax.devices()[:2]), in_specs=spec, out_specs=spec, check_vma=False
        )
        found.append(np.asarray(jax.jit(over)(several)))

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert found, "still waiting"
    np.testing.assert_allclose(found[0], [by_hand(each) for each in several], atol=2e-3)


def test_eigenvectors() -> None:
    (a,) = matrices(1, 12)
    values, vectors = eigh(jnp.asarray(a))
    np.testing.assert_allclose(vectors @ jnp.diag(values) @ vectors.T, a, atol=1e-5)


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_not_finite_gives_nan(name: str) -> None:
    bad = jnp.asarray(matrices(1, 5)[0]).at[1, 2].set(jnp.nan)
    assert np.isnan(BY_HAND[name][0](bad)).all()

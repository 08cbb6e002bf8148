"""Decompositions against numpy, also of members on several devices, which once waited for each other for ever."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.decompositions import eigh, singular_values, solve

BY_HAND: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "singular_values": (singular_values, lambda a: np.linalg.svd(a, compute_uv=False)),
    "eigh": (lambda a: eigh(a)[0], lambda a: np.linalg.eigh(a)[0]),
    "solve": (lambda a: solve(a, a[0]), lambda a: np.eye(len(a))[0]),
}


def matrices(num: int, size: int) -> np.ndarray:
    factors = np.random.default_rng(0).normal(size=(num, size, 2 * size)) / size**0.5
    return (factors @ np.swapaxes(factors, 1, 2)).astype(np.float32)


# In a process of its own: the one of the tests has eight devices and threads enough for all.
ON_TWO_DEVICES = """
import sys
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 2)
from jax.sharding import PartitionSpec
from cl_jax import decompositions
from cl_jax.devices import AXIS, mesh_of

name, size, turns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
one = {"solve": lambda a: decompositions.solve(a, a[0])}.get(name, getattr(decompositions, name))
def each(members):
    return [one(a @ a.T / size + jnp.eye(len(a))) for a in members]
spec, mesh = PartitionSpec(AXIS), mesh_of(jax.devices())
run = jax.jit(jax.shard_map(lambda x: jax.vmap(each)(x), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
members = [jax.random.normal(jax.random.key(i), (10, size + i, 40)) for i in range(4)]
for _ in range(turns):  # they meet by chance
    jax.block_until_ready(run(members))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "turns"), [("singular_values", 400, 3), ("eigh", 400, 3), ("solve", 200, 200)]
)
def test_members_on_two_devices_do_not_wait_for_each_other(name: str, size: int, turns: int) -> None:
    command = [sys.executable, "-c", ON_TWO_DEVICES, name, str(size), str(turns)]
    subprocess.run(command, check=True, timeout=100, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("name", BY_HAND)
def test_of_several_members(name: str) -> None:
    several = matrices(3, 20)
    ours, by_hand = BY_HAND[name]
    np.testing.assert_allclose(jax.vmap(ours)(several), [by_hand(each) for each in several], atol=2e-4)


def test_eigenvectors() -> None:
    (a,) = matrices(1, 12)
    values, vectors = eigh(jnp.asarray(a))
    np.testing.assert_allclose(vectors @ jnp.diag(values) @ vectors.T, a, atol=1e-5)


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_not_finite_gives_nan(name: str) -> None:
    bad = jnp.asarray(matrices(1, 5)[0]).at[1, 2].set(jnp.nan)
    assert np.isnan(BY_HAND[name][0](bad)).all()

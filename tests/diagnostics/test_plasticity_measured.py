"""Dead units, effective rank and norms against numpy."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cl_jax.devices import AXIS, mesh_of
from cl_jax.diagnostics import plasticity
from tests.diagnostics.by_hand import ALL_WEIGHTS, NAMES, examples, expected, forward, measured

VALID = jnp.ones((6,), bool)


def rank_by_hand(features: np.ndarray) -> float:
    sigma = np.linalg.svd(features, compute_uv=False)
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


@pytest.mark.parametrize(("after", "task"), [(0, 0), (1, 0), (3, 2)])
def test_on_the_task_trained_last(after: int, task: int) -> None:
    found, now = measured(plasticity, after), ALL_WEIGHTS[after]
    norms, layers = found["weight_norm"]
    assert layers == ("", *NAMES)
    np.testing.assert_allclose(norms[:, 0, 0], expected(layers, np.linalg.norm, now), rtol=1e-5)
    (_, *received), _ = forward(now, examples(task)[0])
    for quantity, by_hand in (
        ("dead_units", lambda each: np.mean((each == 0).all(axis=0))),
        ("effective_rank", rank_by_hand),
    ):
        array, layers = found[quantity]
        assert layers == ("dense_1", "dense_2")
        np.testing.assert_allclose(array[:, 0, 0], [by_hand(each) for each in received], rtol=1e-4)


def test_dead_units_are_counted_over_valid_rows() -> None:
    features = jnp.array([[0.0, 1, 0], [0, 0, 0], [0, 0, 5]], jnp.float32)
    assert float(plasticity.dead_units(features, jnp.ones((3,), bool))) == pytest.approx(1 / 3)
    assert float(plasticity.dead_units(features, jnp.array([True, True, False]))) == pytest.approx(2 / 3)


def test_ranks_that_are_known() -> None:
    one = np.outer(np.arange(1.0, 7), [1, 2, 3]).astype(np.float32)
    assert float(plasticity.effective_rank(jnp.asarray(one), VALID)) == pytest.approx(1, abs=1e-4)
    three = np.eye(6, 3, dtype=np.float32)
    assert float(plasticity.effective_rank(jnp.asarray(three), VALID)) == pytest.approx(3, rel=1e-5)
    assert float(plasticity.effective_rank(jnp.zeros((6, 3)), VALID)) == 0


def test_members_on_several_devices_do_not_wait_for_each_other() -> None:
    """Batches of singular values on two devices of a CPU once waited for ever: LAPACK's share one pool of threads."""
    mesh = mesh_of(jax.devices()[:2])
    several = np.random.default_rng(0).normal(size=(6, 256, 100)).astype(np.float32)
    valid, spec, ranks = jnp.ones((256,), bool), PartitionSpec(AXIS), []

    def on_one_device(features: jax.Array) -> jax.Array:
        return jax.vmap(lambda each: plasticity.effective_rank(each, valid))(features)

    def compute() -> None:
        run = jax.jit(jax.shard_map(on_one_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
        ranks.append(np.asarray(run(several)))

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert ranks, "still waiting"
    np.testing.assert_allclose(ranks[0], [rank_by_hand(each) for each in several], rtol=1e-4)


def test_what_is_not_finite_has_no_rank() -> None:
    assert np.isnan(plasticity.effective_rank(jnp.full((6, 3), jnp.inf), VALID))

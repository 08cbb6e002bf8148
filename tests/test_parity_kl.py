"""The toy of forgetting over KL: its targets and gradients by their definitions; a run from command to table."""

import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from cl_jax.models.mlp import mlp
from experiments.parity_kl import __main__ as parity
from experiments.parity_kl import outcome, toy


@pytest.fixture
def batch() -> toy.Examples:
    x = jax.random.normal(jax.random.key(0), (7, 4), jnp.float32)
    digits = np.array([0, 1, 2, 3, 4, 5, 9])
    return toy.Examples(x, jnp.asarray(np.arange(10) % 2 == digits[:, None] % 2))


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.sum(np.where(p > 0, p * (np.log(np.maximum(p, 1e-30)) - np.log(q)), 0), axis=-1)


def test_targets_are_all_right_and_the_oracle_the_nearest(batch: toy.Examples) -> None:
    base = np.asarray(jax.nn.softmax(jax.random.normal(jax.random.key(1), (7, 10), jnp.float32)), np.float64)
    found = np.asarray(toy.targets(batch.right, jnp.log(jnp.asarray(base, jnp.float32))), np.float64)
    right = np.asarray(batch.right)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    assert np.all(np.where(right, 0, found) < 1e-9)
    np.testing.assert_allclose(found[0, 0], np.eye(10)[0], atol=1e-9)
    np.testing.assert_allclose(found[1, 1], 0.5 * (np.eye(10)[1] + np.eye(10)[5]), atol=1e-9)
    np.testing.assert_allclose(found[2], right / 5, atol=1e-9)
    nearest = kl(found[3], base)
    np.testing.assert_allclose(nearest, -np.log(np.sum(np.where(right, base, 0), -1)), rtol=1e-5)
    draws = np.random.default_rng(0).dirichlet(np.ones(10), (200, 7)) * right
    assert np.all(kl(draws / draws.sum(-1, keepdims=True), base) >= nearest - 1e-6)


def test_the_reward_has_the_gradient_of_policy_gradients(batch: toy.Examples) -> None:
    """sum_c p(c) r(c) grad log p(c), the expectation of what sampled answers estimate."""
    model = mlp((3,), 10)
    params, base = (model.init(jax.random.key(seed), batch.x) for seed in (2, 3))
    number = jnp.int32(toy.OBJECTIVES.index("reward"))
    found = jax.grad(lambda params: toy.objective_loss(model, number, params, base, batch))(params)
    frozen = jax.nn.softmax(model.apply(params, batch.x)) * batch.right.astype(jnp.float32)

    def surrogate(params: dict) -> jax.Array:
        return -jnp.mean(jnp.sum(frozen * jax.nn.log_softmax(model.apply(params, batch.x)), axis=-1))

    wanted = jax.grad(surrogate)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, wanted)


def test_the_law_is_found_where_there_is_one() -> None:
    xs = np.linspace(0, 1.5, 12)
    rows = [
        {"objective": toy.OBJECTIVES[i % 6], "kl": x, "forgotten": 0.3 * x - 0.05 * x * x, "parity": 0.9}
        for i, x in enumerate(xs)
    ]
    assert outcome.law(rows)["parabola"] == pytest.approx(1)
    assert outcome.law(rows)["oracle missed by"] == pytest.approx(0, abs=1e-6)
    shifted = [{**row, "forgotten": row["forgotten"] + 0.1 * (row["objective"] == "oracle")} for row in rows]
    assert outcome.law(shifted)["parabola"] < 0.95 and outcome.law(shifted)["oracle missed by"] > 9


def _idx(folder: Path, seed: int, number: int) -> str:
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=number).astype(np.uint8)
    labels[:10] = range(10)
    images = rng.integers(60, size=(number, 4, 4)).astype(np.uint8)
    images.reshape(number, 16)[np.arange(number), labels] = 255
    folder.mkdir()
    for split in ("train", "t10k"):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, number, 4, 4) + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, number) + labels.tobytes())
    return f"idx:{folder}"


def test_from_command_to_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parity, "RATES", (1e-4, 3e-3))
    new, old = _idx(tmp_path / "new", 0, 300), _idx(tmp_path / "old", 1, 300)
    with jax.numpy_dtype_promotion("standard"):
        parity.main(["--new", new, "--old", old, "--out", str(tmp_path / "out"), "--seeds", "1", "--steps", "150"])
    rows = pq.read_table(tmp_path / "out" / "parity_kl.parquet").to_pylist()
    assert len(rows) == 12 and (tmp_path / "out" / "kl.png").stat().st_size > 10_000
    assert all(row["old_before"] > 0.9 and row["parity_before"] > 0.9 and row["kl"] >= 0 for row in rows)
    far = {row["objective"]: row["kl"] for row in rows if row["learning_rate"] > 1e-3}
    assert far["oracle"] < far["uniform"] < far["two"] < far["one"]
    assert "| oracle |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "0"], "--seeds: was given 0; the least allowed is 1"),
        (["--new", "digits", "--old", "digits"], "'digits' has no test set of its own"),
    ],
)
def test_mistakes_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parity.main(words)
    assert stopped.value.code == 2 and said in capsys.readouterr().err

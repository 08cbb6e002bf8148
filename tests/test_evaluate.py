"""One row of R against a NumPy loop over tasks and examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import evaluate, sources
from cl_jax.data import Data, split_source
from cl_jax.models.mlp import mlp
from cl_jax.tasks import Permuted, Split
from cl_jax.tasks.stream import View, make_curriculum

SPLITS = ("validation", "test")
FLOAT32_SUMS = 2e-5  # of some hundred losses, relative


@pytest.fixture(scope="module")
def data() -> Data:
    return split_source(sources.load("digits"), 0.15)


def log_softmax(logits: np.ndarray, active: np.ndarray) -> np.ndarray:
    shifted = np.where(active, logits - logits[active].max(), -np.inf)
    return shifted - np.log(np.exp(shifted[active]).sum())


@pytest.mark.parametrize("after", [0, 2, 5])
@pytest.mark.parametrize("scenario", ["domain", "task", "class"])
@pytest.mark.parametrize("name", ["permuted", "split"])
def test_row_is_the_loop(name: str, scenario: str, after: int, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", 50)  # several chunks, the last one padded
    stream = (Permuted(num_tasks=5) if name == "permuted" else Split(num_tasks=5)).build(data)
    view = View(stream, scenario)
    curriculum = make_curriculum(jax.random.key(3), stream, data)
    model = mlp((9,), view.num_outputs)
    params = model.init(jax.random.key(1), jnp.zeros((1, 64)))
    found = np.asarray(evaluate.evaluate(model, lambda task: params, view, curriculum, data, jnp.int32(after)))
    assert found.shape == (2, 2, 5)

    images, labels = np.asarray(data.images), np.asarray(data.labels)
    w = [np.asarray(params[f"dense_{i}"]["kernel"], np.float64) for i in range(2)]
    b = [np.asarray(params[f"dense_{i}"]["bias"], np.float64) for i in range(2)]
    per_task = stream.classes_per_task
    for s, split in enumerate(SPLITS):
        first, size = data.bounds(split)
        for task in range(5):
            right, losses = [], []
            for row in range(first, first + size):
                image, label = images[row].reshape(-1), int(labels[row])
                if name == "permuted":
                    image = image[np.asarray(curriculum.tables[task])]
                else:
                    place = int(curriculum.tables[label])
                    if place // per_task != task:
                        continue
                    label = place % per_task
                outputs = np.arange(view.num_outputs) // per_task
                active = {
                    "domain": outputs >= 0,
                    "task": outputs == task,
                    "class": outputs <= max(after - 1, 0),
                }[scenario]
                answer = label if scenario == "domain" else task * per_task + label
                logits = np.maximum(image / 16 @ w[0] + b[0], 0) @ w[1] + b[1]
                right.append(active[answer] and np.argmax(np.where(active, logits, -np.inf)) == answer)
                losses.append(-log_softmax(logits, active)[answer])
            np.testing.assert_allclose(found[s, 0, task], np.mean(right), rtol=1e-6)
            np.testing.assert_allclose(found[s, 1, task], np.mean(losses), rtol=FLOAT32_SUMS)


def test_parameters_that_are_not_finite_are_never_right(data: Data) -> None:
    stream = Split(num_tasks=5).build(data)
    model = mlp((9,), 2)
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, model.init(jax.random.key(1), jnp.zeros((1, 64))))
    curriculum = make_curriculum(jax.random.key(3), stream, data)
    row = np.asarray(
        evaluate.evaluate(model, lambda task: params, View(stream, "domain"), curriculum, data, jnp.int32(1))
    )
    assert (row[:, 0] == 0).all() and np.isnan(row[:, 1]).all()

"""Boundaries made by hand, and a perceptron in numpy: what diagnostics are tested against."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.batch import Batch
from cl_jax.diagnostics.diagnostic import Boundary
from cl_jax.models.mlp import mlp

WIDTHS = (4, 6, 5, 3)
NAMES = ("dense_0", "dense_1", "dense_2")
MODEL = mlp(WIDTHS[1:-1], WIDTHS[-1])
NUM_TASKS, ROWS, PADDING = 3, 9, 2


def weights(seed: int) -> Any:
    """Parameters of MODEL with positive biases, so that most units are awake."""
    draw = np.random.default_rng(seed)
    return {
        name: {
            "kernel": draw.normal(size=(d_in, d_out)).astype(np.float32),
            "bias": draw.uniform(0, 0.5, size=d_out).astype(np.float32),
        }
        for name, d_in, d_out in zip(NAMES, WIDTHS[:-1], WIDTHS[1:], strict=True)
    }


def examples(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The valid examples of a task: x [ROWS, 4] and labels."""
    draw = np.random.default_rng(100 + seed)
    return draw.normal(size=(ROWS, WIDTHS[0])).astype(np.float32), draw.integers(3, size=ROWS).astype(np.int32)


def batch(seed: int) -> Batch:
    """The same with two rows of padding that must not count."""
    x, y = examples(seed)
    x, y = np.concatenate([x, np.full((PADDING, 4), 50, np.float32)]), np.concatenate([y, np.zeros(PADDING, np.int32)])
    weight = (np.arange(ROWS + PADDING) < ROWS) / np.float32(ROWS)
    active = np.ones((ROWS + PADDING, 3), bool)
    return jax.tree.map(jnp.asarray, Batch(x, y, active, weight.astype(np.float32)))


ALL_WEIGHTS = [weights(seed) for seed in range(NUM_TASKS + 1)]  # by boundary
BATCHES = [batch(task) for task in range(NUM_TASKS)]


def boundary(after: Any, since: Any = 0, **changes: Any) -> Boundary:
    """After some of three tasks, each of which has its own examples; the boundaries from `since` on are known."""
    kept, several = (jax.tree.map(lambda *each: jnp.stack(each), *trees) for trees in (ALL_WEIGHTS, BATCHES))
    made = Boundary(
        model=MODEL,
        num_tasks=NUM_TASKS,
        num_active=3,
        steps=7,
        after=jnp.asarray(after, jnp.int32),
        key=jax.random.key(0),
        params=lambda task: jax.tree.map(lambda every: every[after], kept),
        earlier=lambda boundary, task: jax.tree.map(lambda every: every[boundary], kept),
        known=lambda boundary: boundary >= since,
        probe=lambda task, **about: jax.tree.map(lambda every: every[task], several),
        next_steps=lambda number, look: None,
        costs=dict,
    )
    return made._replace(**changes)


Found = dict[str, tuple[np.ndarray, tuple[str, ...]]]  # by quantity: the array and the layers


def measured(diagnostic: Any, after: int, since: int = 0, **changes: Any) -> Found:
    """What a diagnostic measures at a boundary; compiled once, unless something of the boundary is changed."""
    run, layers = _compiled(diagnostic) if not changes else _made(diagnostic, changes)
    arrays = run(jnp.int32(after), jnp.int32(since))
    return {name: (np.asarray(array), layers[name]) for name, array in arrays.items()}


def _made(diagnostic: Any, changes: dict[str, Any]) -> tuple[Any, dict[str, tuple[str, ...]]]:
    layers: dict[str, tuple[str, ...]] = {}

    def run(after: jax.Array, since: jax.Array) -> dict[str, jax.Array]:
        values = diagnostic.measure(boundary(after, since, **changes))
        layers.update({value.quantity: value.layers for value in values})
        return {value.quantity: value.array for value in values}

    return jax.jit(run), layers


@functools.cache
def _compiled(diagnostic: Any) -> tuple[Any, dict[str, tuple[str, ...]]]:
    return _made(diagnostic, {})


def forward(params: Any, x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """What each layer receives, and the logits; float64."""
    received, h = [], x.astype(np.float64)
    for name in NAMES:
        received.append(h)
        z = h @ params[name]["kernel"].astype(np.float64) + params[name]["bias"]
        h = np.maximum(z, 0)
    return received, z


def gradient(params: Any, x: np.ndarray, v: np.ndarray) -> Any:
    """d (v . logits(x)) / d params for one example x [4], by hand."""
    received, _ = forward(params, x[None])
    found, g = {}, v.astype(np.float64)
    for name, (a,) in reversed(list(zip(NAMES, received, strict=True))):
        found[name] = {"kernel": np.outer(a, g), "bias": g}
        g = (params[name]["kernel"].astype(np.float64) @ g) * (a > 0)
    return found


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def fisher(params: Any, x: np.ndarray) -> Any:
    """1/n sum_i sum_c p_c (d log p_c / d params)^2, one example and one label after another."""
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    for row in x:
        p = softmax(forward(params, row[None])[1])[0]
        for label in range(3):
            each = gradient(params, row, np.eye(3)[label] - p)
            total = jax.tree.map(lambda t, g, p_c=p[label]: t + p_c * g**2 / len(x), total, each)
    return total


def loss_gradient(params: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """Of the mean cross-entropy."""
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    for row, label in zip(x, y, strict=True):
        each = gradient(params, row, softmax(forward(params, row[None])[1])[0] - np.eye(3)[label])
        total = jax.tree.map(lambda t, g: t + g / len(x), total, each)
    return total


def mean_loss(params: Any, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(-np.log(softmax(forward(params, x)[1])[np.arange(len(y)), y])))


def flat(tree: Any, layer: str = "") -> np.ndarray:
    """One vector of a layer's leaves, "" all of them."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree[layer] if layer else tree)]).astype(
        np.float64
    )


def expected(layers: tuple[str, ...], number: Any, *trees: Any) -> np.ndarray:
    """[L] of `number(vectors)` by layer."""
    return np.array([number(*(flat(tree, layer) for tree in trees)) for layer in layers])

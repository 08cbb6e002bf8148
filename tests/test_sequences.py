"""Sequences through losses, Fisher and evaluation, against NumPy and closed forms of a table of bigrams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import sources
from cl_jax.batch import Batch, target_weights
from cl_jax.data import Data, split_source
from cl_jax.errors import UserError
from cl_jax.evaluate import METRICS, evaluate
from cl_jax.fisher import diagonal_fisher
from cl_jax.losses import example_losses, task_loss
from cl_jax.model import Model
from cl_jax.tasks import Domains
from cl_jax.tasks.stream import View, make_curriculum
from cl_jax.tokens import Tokens, read_rows

KEY = jax.random.key(0)
V, L = 5, 7
ROUNDING = dict(rtol=2e-5, atol=1e-6)  # float32 sums of a few terms of order 1, against float64


def bigrams(num_tokens: int) -> Model:
    """The logits of the next token are the row of this one."""
    return Model(
        init=lambda key, x: {"table": 0.5 * jax.random.normal(key, (num_tokens, num_tokens))},
        apply=lambda params, x: params["table"][x.ids],
    )


MODEL = bigrams(V)
PARAMS = MODEL.init(KEY, None)


def batch(rows: int = 6, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    ids, y = (jnp.asarray(rng.integers(0, V, (rows, L)), jnp.int32) for _ in range(2))
    return Batch(Tokens(ids, jnp.ones_like(ids)), y, counted=jnp.asarray(rng.integers(0, 2, (rows, L)), jnp.float32))


def log_p(params: dict, ids: jax.Array) -> np.ndarray:
    z = np.asarray(params["table"], np.float64)[np.asarray(ids)]
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def losses(params: dict, seen: Batch) -> np.ndarray:
    each = -np.take_along_axis(log_p(params, seen.x.ids), np.asarray(seen.y)[..., None], -1)[..., 0]
    return (each * np.asarray(seen.counted)).sum(axis=1) / L


def test_a_sequence_loses_its_counted_targets_by_position() -> None:
    seen = batch()
    logits = MODEL.apply(PARAMS, seen.x)
    np.testing.assert_allclose(example_losses(logits, seen), losses(PARAMS, seen), **ROUNDING)
    np.testing.assert_allclose(task_loss(MODEL, PARAMS, seen), losses(PARAMS, seen).mean(), **ROUNDING)
    weight = jnp.asarray([0.5, 0.3, 0.2, 0, 0, 0], jnp.float32)
    expected = (np.asarray(weight) * losses(PARAMS, seen)).sum()
    np.testing.assert_allclose(task_loss(MODEL, PARAMS, seen._replace(weight=weight)), expected, **ROUNDING)


def test_weights_of_targets_share_out_those_of_rows() -> None:
    seen = batch()
    expected = np.asarray(seen.counted) / np.asarray(seen.counted).sum()
    np.testing.assert_allclose(target_weights(seen), expected, **ROUNDING)
    weight = jnp.asarray([0.75, 0.25, 0, 0, 0, 0], jnp.float32)
    each = np.asarray(target_weights(seen._replace(weight=weight)))
    assert not each[2:].any() and abs(each.sum() - 1) < 1e-6
    places = np.asarray(seen.counted)[:2] > 0
    ratio = each[0][places[0]][0] / each[1][places[1]][0]
    np.testing.assert_allclose(ratio, 3.0, rtol=1e-5)


def test_the_empirical_fisher_squares_the_gradient_of_each_whole_sequence() -> None:
    seen = batch()
    found = diagonal_fisher(KEY, MODEL, PARAMS, seen, kind="empirical")["table"]
    total = np.zeros((V, V))
    for row in range(6):
        gradient = np.zeros((V, V))
        for t in range(L):
            token, target = int(seen.x.ids[row, t]), int(seen.y[row, t])
            gradient[token] += float(seen.counted[row, t]) * (np.eye(V)[target] - np.exp(log_p(PARAMS, token)))
        total += gradient**2 / L
    np.testing.assert_allclose(found, total / 6, **ROUNDING)
    chunked = diagonal_fisher(KEY, MODEL, PARAMS, seen, kind="empirical", chunk=4)["table"]
    np.testing.assert_allclose(chunked, found, **ROUNDING)


def test_the_sampled_fisher_tends_to_the_closed_form() -> None:
    """Targets are drawn one by one, so the variances of their scores p_c (1 - p_c) add up."""
    seen = batch()
    p = np.exp(log_p(PARAMS, seen.x.ids)) * np.asarray(seen.counted)[..., None]
    exact = np.zeros((V, V))
    np.add.at(exact, np.asarray(seen.x.ids).ravel(), (p * (1 - p)).reshape(-1, V))
    exact /= 6 * L
    found = diagonal_fisher(KEY, MODEL, PARAMS, seen, kind="sampled", samples=4000)["table"]
    np.testing.assert_allclose(found, exact, rtol=0.1, atol=0.002)
    other = diagonal_fisher(jax.random.key(1), MODEL, PARAMS, seen, kind="sampled", samples=4000)["table"]
    assert not np.allclose(found, other, rtol=1e-6, atol=0)


def test_the_most_probable_targets_and_whole_batches() -> None:
    seen = batch()
    best = seen._replace(y=jnp.argmax(MODEL.apply(PARAMS, seen.x), -1).astype(jnp.int32))
    one, other = (diagonal_fisher(KEY, MODEL, PARAMS, b, kind=k) for b, k in ((seen, "argmax"), (best, "empirical")))
    np.testing.assert_allclose(one["table"], other["table"], **ROUNDING)
    alone = diagonal_fisher(KEY, MODEL, PARAMS, seen, kind="batched", batch_size=1)["table"]
    empirical = diagonal_fisher(KEY, MODEL, PARAMS, seen, kind="empirical")["table"]
    np.testing.assert_allclose(alone, empirical, **ROUNDING)


def test_the_exact_fisher_of_text_is_refused() -> None:
    with pytest.raises(UserError, match="use kind 'sampled'"):
        diagonal_fisher(KEY, MODEL, PARAMS, batch())


@pytest.fixture(scope="module")
def text() -> Data:
    return split_source(sources.load("text:made_support,made_prose?context=32&bytes=30000"), 0.1)


def test_evaluation_is_by_tokens_and_by_bytes(text: Data) -> None:
    """Against the rows themselves, one by one."""
    model = bigrams(256)
    params = model.init(KEY, None)
    view = View(Domains(num_tasks=2).build(text), "domain")
    curriculum = make_curriculum(KEY, view.stream, text)
    found = evaluate(model, lambda task: params, view, curriculum, text, jnp.int32(1))
    labels = np.asarray(text.labels)
    for at, split in enumerate(("validation", "test")):
        first, size = text.bounds(split)
        for domain in range(2):
            rows = np.asarray(text.images[first : first + size])[labels[first : first + size] == domain].astype(int)
            nats = right = targets = length = 0.0
            for row in rows:
                for t in range(1, len(row)):
                    same = row[t, 1] // 2 == row[t - 1, 1] // 2 > 0
                    if same and row[t, 1] % 2:
                        z = np.asarray(params["table"][row[t - 1, 0]], np.float64)
                        nats += np.log(np.exp(z).sum()) - z[row[t, 0]]
                        right += z.argmax() == row[t, 0]
                        targets += 1
                        length += row[t, 2]
            np.testing.assert_allclose(found[at, METRICS.index("loss"), domain], nats / length, rtol=1e-5)
            np.testing.assert_allclose(found[at, METRICS.index("accuracy"), domain], right / targets, rtol=1e-5)


def test_rows_are_read_within_documents() -> None:
    ids = [9, 1, 2, 9, 9, 3, 0]
    marks = [2 * 1, 2 * 1 + 1, 2 * 1, 2 * 1 + 1, 2 * 2, 2 * 2 + 1, 0]
    sizes = [0, 1, 0, 0, 0, 1, 0]
    tokens, targets = read_rows(jnp.asarray([list(zip(ids, marks, sizes, strict=True))], jnp.uint8))
    np.testing.assert_array_equal(tokens.ids, [[9, 1, 2, 9, 9, 3]])
    np.testing.assert_array_equal(tokens.segments, [[1, 1, 1, 1, 2, 2]])
    np.testing.assert_array_equal(targets.ids, [[1, 2, 9, 9, 3, 0]])
    np.testing.assert_array_equal(targets.counted, [[1, 0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(targets.bytes, [[1, 0, 0, 0, 1, 0]])

"""iCaRL: the loss by hand, the sets a boundary leaves against a loop, and what is evaluated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.batch import Batch, Reference, Task, whole_task
from cl_jax.errors import UserError
from cl_jax.losses import weighted_loss
from cl_jax.method import Method, chain
from cl_jax.methods.icarl import icarl
from cl_jax.methods.replay import replay
from cl_jax.models.mlp import mlp
from tests.test_exemplars import by_hand, divided, herd_by_hand

KEY = jax.random.key(0)
MODEL = mlp((7,), 6)
ROUNDING = dict(rtol=2e-5, atol=1e-6)  # float32 sums of a few dozen terms


def task_of(classes, num=20, seed=0, active=None) -> Batch:
    generator = np.random.default_rng(seed)
    x = jnp.asarray(generator.normal(size=(num, 5)), jnp.float32)
    y = jnp.asarray(generator.choice(classes, num), jnp.int32)
    outputs = None if active is None else jnp.asarray(np.isin(np.arange(6), list(active)))
    return Batch(x, y, None if outputs is None else jnp.broadcast_to(outputs, (num, 6)))


def parameters(seed=0):
    return MODEL.init(jax.random.key(seed), jnp.zeros((1, 5)))


def compiled(method: Method) -> Method:
    slots = {name: jax.jit(getattr(method, name)) for name in ("draw", "loss", "end_task", "evaluated")}
    return method._replace(**slots)


def after_tasks(method: Method, *tasks: Batch, like: Batch | None = None):
    """The state after the boundaries of some tasks, each with weights of its own: those of seed 1, 2, ..."""
    state = method.init(KEY, parameters(), tasks[0] if like is None else like)
    for number, batch in enumerate(tasks):
        key = jax.random.fold_in(KEY, number)
        state = method.end_task(key, state, parameters(number + 1), whole_task(number, batch))
    return state


def sets_of(state) -> list[tuple[int, list[list[float]]]]:
    """Each set's class and inputs in the order of herding, as the buffer has them."""
    held = int(state.buffer.occupied.sum())
    assert state.buffer.occupied.tolist() == [True] * held + [False] * (len(state.rank) - held)
    assert not state.buffer.items.x[held:].any()
    return [(int(state.buffer.items.y[i]), state.buffer.items.x[i].tolist()) for i in range(held)]


def chosen(batch: Batch, params, of_class: int, num: int) -> list[tuple[int, list[float]]]:
    rows = np.flatnonzero(np.asarray(batch.y) == of_class)
    order = rows[herd_by_hand(divided(by_hand(params, batch.x))[rows], num)]
    return [(of_class, batch.x[i].tolist()) for i in order]


def test_a_boundary_adds_sets_and_cuts_the_older_ones():
    """Sizes are capacity / classes so far, and what is left of an older set is its beginning."""
    method, first, second = compiled(icarl(MODEL, 11)), task_of([0, 1]), task_of([2, 4], seed=1)
    state = after_tasks(method, first)
    expected = chosen(first, parameters(1), 0, 5) + chosen(first, parameters(1), 1, 5)
    assert sorted(sets_of(state)) == sorted(expected)
    assert sorted(state.rank[:10].tolist()) == sorted([*range(5)] * 2)

    state = after_tasks(method, first, second)
    expected = [chosen(first, parameters(1), c, 2) for c in (0, 1)]
    expected += [chosen(second, parameters(2), c, 2) for c in (2, 4)]
    assert sorted(sets_of(state)) == sorted(itertools.chain(*expected))
    assert [y in (2, 4) for y, _ in sets_of(state)] == [True] * 4 + [False] * 4  # newest first
    assert state.learned.tolist() == [True, True, True, False, True, False]
    assert int(state.num_sets) == 4 and int(state.buffer.seen) == 40


def test_a_class_of_several_tasks_has_a_set_of_each():
    method, first, second = compiled(icarl(MODEL, 8)), task_of([0, 1]), task_of([0, 1], seed=1)
    expected = [chosen(task, parameters(n), c, 2) for n, task in ((1, first), (2, second)) for c in (0, 1)]
    assert sorted(sets_of(after_tasks(method, first, second))) == sorted(itertools.chain(*expected))


def test_a_bound_on_the_size_of_a_set():
    method, first = compiled(icarl(MODEL, 12, most_per_class=3)), task_of([0, 1])
    expected = chosen(first, parameters(1), 0, 3) + chosen(first, parameters(1), 1, 3)
    assert sorted(sets_of(after_tasks(method, first))) == sorted(expected)


def test_more_sets_than_room_leave_out_the_oldest():
    method, tasks = compiled(icarl(MODEL, 3)), [task_of([0, 1]), task_of([2, 3], seed=1)]
    kept = sets_of(after_tasks(method, *tasks))
    assert sorted(y for y, _ in kept[:2]) == [2, 3] and kept[2][0] in (0, 1) and len(kept) == 3


def test_padding_and_all_but_the_candidates_are_never_chosen():
    batch = task_of([0, 1], num=30)
    for candidates in (None, 12):
        method = compiled(icarl(MODEL, 30, num_candidates=candidates))
        state = method.init(KEY, parameters(), batch)
        valid = jnp.arange(30) < 25
        rows = []
        for seed in range(4):
            end = method.end_task(jax.random.key(seed), state, parameters(1), Task(jnp.int32(0), batch, valid))
            held = np.asarray(end.buffer.items.x)[np.asarray(end.buffer.occupied)]
            rows.append(sorted(int(np.flatnonzero((np.asarray(batch.x) == x).all(axis=1))[0]) for x in held))
            assert len(set(rows[-1])) == len(rows[-1]) == (candidates or 25) and max(rows[-1]) < 25
        assert (len({tuple(each) for each in rows}) == 1) == (candidates is None)


def loss_by_hand(logits, y, active, weight, old_logits, learned, incoming) -> float:
    """The paper's sum over outputs, one number at a time."""
    total = 0.0
    for i in range(len(y)):
        for c in range(logits.shape[1]):
            if not active[i, c]:
                continue
            g = 1 / (1 + np.exp(-logits[i, c]))
            target = float(y[i] == c)
            if learned[c] and not (incoming[i] and learned[y[i]]):
                target = 1 / (1 + np.exp(-old_logits[i, c]))
            total -= weight[i] * (target * np.log(g) + (1 - target) * np.log(1 - g))
    return total


@pytest.mark.parametrize(
    ("loss", "scenario"), [("distillation", "class"), ("distillation", "domain"), ("binary", "class")]
)
def test_the_loss_by_hand(loss, scenario):
    classes = [[0, 1], [2, 3] if scenario == "class" else [0, 1]]
    active = [0, 1, 2, 3] if scenario == "class" else [0, 1]
    method = compiled(icarl(MODEL, 8, batch_size=5, loss=loss, task_size=20))
    first, batch = (task_of(c, num=n, seed=n, active=active) for c, n in zip(classes, (20, 6), strict=True))
    state, params = after_tasks(method, first), parameters(7)
    drawn = method.draw(KEY, state, params, batch)
    logits = MODEL.apply(params, drawn.x)
    total = float(weighted_loss(logits, drawn) + method.loss(state, logits, drawn))

    weight = [20 / 28 / 6] * 6 + [8 / 28 / 5] * 5  # 8 exemplars beside a task of 20
    np.testing.assert_allclose(drawn.weight, weight, **ROUNDING)
    np.testing.assert_array_equal(drawn.x[:6], batch.x)
    stored = {tuple(x) for _, x in sets_of(state)}
    assert {tuple(x) for x in drawn.x[6:].tolist()} <= stored
    learned = [loss == "distillation" and c in (0, 1) for c in range(6)]
    expected = loss_by_hand(
        np.asarray(logits, np.float64), np.asarray(drawn.y), np.asarray(drawn.active), weight,
        np.asarray(MODEL.apply(parameters(1), drawn.x), np.float64), learned, [True] * 6 + [False] * 5,
    )  # fmt: skip
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_before_the_first_boundary_there_are_no_exemplars_and_nothing_to_distil():
    method, batch = compiled(icarl(MODEL, 8, batch_size=3)), task_of([0, 1], num=6)
    state = method.init(KEY, parameters(), batch)
    drawn = method.draw(KEY, state, parameters(), batch)
    np.testing.assert_allclose(drawn.weight, [1 / 6] * 6 + [0] * 3, rtol=1e-6)
    np.testing.assert_array_equal(drawn.extra["icarl"]["target"][:6], np.eye(6)[np.asarray(batch.y)])
    jax.tree.map(np.testing.assert_array_equal, method.evaluated(state, parameters()), parameters())


def test_softmax_leaves_the_task_loss_alone():
    method, batch = compiled(icarl(MODEL, 8, loss="softmax", batch_size=4)), task_of([2, 3], num=6)
    state = after_tasks(method, task_of([0, 1]))
    drawn = method.draw(KEY, state, parameters(), batch)
    np.testing.assert_allclose(drawn.weight, [1 / 10] * 10, rtol=1e-6)  # without the size of a task: as rows of a batch
    assert drawn.extra is None and state.old == ()
    assert float(method.loss(state, MODEL.apply(parameters(), drawn.x), drawn)) == 0.0


def test_what_is_evaluated_is_the_nearest_mean_of_exemplars():
    method, asked = compiled(icarl(MODEL, 11)), task_of([0], num=100, seed=9)
    state, params = after_tasks(method, task_of([0, 1]), task_of([2, 4], seed=1)), parameters(5)
    predicted = np.argmax(MODEL.apply(method.evaluated(state, params), asked.x), axis=1)
    held, labels = np.asarray(state.buffer.items.x)[:8], np.asarray(state.buffer.items.y)[:8]
    means = [divided(divided(by_hand(params, held[labels == c])).mean(axis=0)) for c in (0, 1, 2, 4)]
    distances = np.linalg.norm(divided(by_hand(params, asked.x))[:, None] - np.stack(means)[None], axis=-1)
    np.testing.assert_array_equal(predicted, np.array([0, 1, 2, 4])[np.argmin(distances, axis=1)])
    own = icarl(MODEL, 11, nearest_mean_of_exemplars=False)
    assert own.evaluated(state, params) is params


def test_replay_may_be_evaluated_so_too():
    method, batch = compiled(replay(30, insert="boundary", nearest_mean_of=MODEL)), task_of([0, 1], num=20)
    state = method.end_task(KEY, method.init(KEY, parameters(), batch), parameters(), whole_task(0, batch))
    predicted = np.argmax(MODEL.apply(method.evaluated(state, parameters(5)), batch.x), axis=1)
    phi, y = divided(by_hand(parameters(5), batch.x)), np.asarray(batch.y)
    means = np.stack([divided(phi[y == c].mean(axis=0)) for c in (0, 1)])
    np.testing.assert_array_equal(predicted, np.argmin(np.linalg.norm(phi[:, None] - means[None], axis=-1), axis=1))


def test_references_are_kept_and_rendered():
    data = task_of([0, 1, 2], num=40)

    def render(reference: Reference) -> Batch:
        return Batch(data.x[reference.row], data.y[reference.row], reference=reference)

    rows = jnp.arange(10, 40, dtype=jnp.int32)
    references = Reference(rows, jnp.zeros_like(rows))
    method = icarl(MODEL, 9, store=lambda batch: batch.reference, load=render, render=render)
    method = compiled(chain(icarl=method, more=replay(4, store=lambda batch: batch.reference, load=render)))
    incoming = render(jax.tree.map(lambda leaf: leaf[:5], references))
    state = method.init(KEY, parameters(), incoming)
    state = method.end_task(KEY, state, parameters(1), Task(jnp.int32(0), references, jnp.ones(30, bool)))
    held = np.asarray(state["icarl"].buffer.items.row)
    assert len(set(held)) == 9 and held.min() >= 10
    assert sorted(np.asarray(data.y)[held].tolist()) == [0] * 3 + [1] * 3 + [2] * 3
    drawn = method.draw(KEY, state, parameters(), incoming)  # 5 incoming, 5 exemplars, 10 of an empty buffer
    assert drawn.extra["icarl"]["binary"].tolist() == [1.0] * 10 + [0.0] * 10
    np.testing.assert_array_equal(drawn.x[5:10], data.x[drawn.reference.row[5:10]])
    assert np.isfinite(method.loss(state, MODEL.apply(parameters(), drawn.x), drawn))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(capacity=0), "capacity 0"),
        (dict(capacity=5, loss="distilation"), "unknown iCaRL loss 'distilation'.*Did you mean 'distillation'"),
        (dict(capacity=5, most_per_class=0), "most_per_class 0"),
        (dict(capacity=5, batch_size=0), "batch_size 0"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments, message):
    with pytest.raises(UserError, match=message):
        icarl(MODEL, **arguments)

"""The encoder against a reference in numpy, what it must not see, and the laws of members that tell texts' classes."""

import functools
import math
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import plan, sources, waves
from cl_jax.adapters import Freeze, FreezeLayers, Lora
from cl_jax.batch import Batch
from cl_jax.checks import check_experiment, check_run, check_runs
from cl_jax.compiled import Programs
from cl_jax.config import replace
from cl_jax.data import Data, split_source
from cl_jax.errors import UserError
from cl_jax.exemplars import head_of
from cl_jax.experiment import Decoder, Encoder, Experiment, Mlp, Run, load_experiment, members
from cl_jax.experiment import sweep as entries_of
from cl_jax.fisher import diagonal_fisher
from cl_jax.methods import Ewc, GenerativeReplay, Icarl, Replay
from cl_jax.models.encoder import encoder
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Domains, Permuted, Repeated, Split
from cl_jax.tasks.render import _whole_texts
from cl_jax.tokens import Tokens
from tests.test_waves import two_tasks

KEY = jax.random.key(0)
TINY = dict(num_tokens=11, width=12, layers=2, heads=3, hidden=20, positions=9)
CLASSES = 4
# float32 sums of a few dozen products in another order, through two layers.
ROUNDING = dict(rtol=1e-4, atol=1e-5)
# Batched and single products round differently, and training carries it on.
TRAINED = dict(rtol=2e-3, atol=2e-4)


def texts(lengths=(7, 4), length=7, seed=0):
    """Rows of texts of these lengths; what stands in the padding is of no kind."""
    ids = np.random.default_rng(seed).integers(0, 11, (len(lengths), length)).astype(np.int32)
    segments = (np.arange(length)[None] < np.array(lengths)[:, None]).astype(np.int32)
    return Tokens(jnp.asarray(ids), jnp.asarray(segments))


made = functools.cache(lambda **switches: encoder(CLASSES, **TINY | switches))  # so that tests share what is compiled
applied = functools.cache(lambda **switches: jax.jit(made(**switches).apply))


@functools.cache
def drawn(scale=0.4):
    """Parameters large enough, in every array, that nothing of the model can be left out unseen."""
    generator = np.random.default_rng(1)

    def draw(path, leaf):
        middle = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(middle + scale * generator.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(made().init, KEY, texts()))


# --- an independent reference: one text, one head and one token at a time, float64


def norm(x, p):
    return p["scale"] * (x - x.mean()) / np.sqrt(x.var() + 1e-12) + p["bias"]


def reference(params, ids, heads=3, normalize=False):
    """Features [D] of one text, and its logits."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    table, gauss = params["embedding"], np.vectorize(lambda z: 0.5 * z * (1 + math.erf(z / math.sqrt(2))))
    x = [
        norm(table["embedding"][i] + table["position"][t] + table["kind"][0], table["norm"]) for t, i in enumerate(ids)
    ]
    for number in range(len(params["layers"]["query"]["kernel"])):
        p = jax.tree.map(lambda leaf, number=number: leaf[number], params["layers"])
        query, key, value = (
            [(h @ p[n]["kernel"] + p[n]["bias"]).reshape(heads, -1) for h in x] for n in ("query", "key", "value")
        )
        for t, h in enumerate(x):
            found = []
            for head in range(heads):
                scores = np.exp([query[t][head] @ k[head] / np.sqrt(k.shape[1]) for k in key])
                found.append(sum(s * v[head] for s, v in zip(scores / scores.sum(), value, strict=True)))
            h = norm(h + np.concatenate(found) @ p["output"]["kernel"] + p["output"]["bias"], p["attention_norm"])
            wide = gauss(h @ p["mlp_up"]["kernel"] + p["mlp_up"]["bias"])
            x[t] = norm(h + wide @ p["mlp_down"]["kernel"] + p["mlp_down"]["bias"], p["mlp_norm"])
    mean = sum(x) / len(x)
    mean = mean / np.linalg.norm(mean) if normalize else mean
    return mean, mean @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize("normalize", [False, True], ids=["", "normalized"])
def test_is_the_reference(normalize):
    x = texts()
    logits = applied(normalize=normalize)(drawn(), x)
    assert logits.dtype == jnp.float32
    for one, ids, count in zip(logits, np.asarray(x.ids), (7, 4), strict=True):
        np.testing.assert_allclose(one, reference(drawn(), ids[:count], normalize=normalize)[1], **ROUNDING)


def test_padding_is_neither_seen_nor_counted():
    x = texts()
    other = x._replace(ids=jnp.where(x.segments > 0, x.ids, (x.ids + 5) % 11))
    np.testing.assert_array_equal(applied()(drawn(), x), applied()(drawn(), other))
    longer = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (0, 2))), x)
    np.testing.assert_allclose(applied()(drawn(), x), applied()(drawn(), longer), **ROUNDING)
    changed = x._replace(ids=x.ids.at[:, 3].set((x.ids[:, 3] + 1) % 11))
    assert np.abs(applied()(drawn(), x) - applied()(drawn(), changed)).min(axis=1).max() > 1e-3


def test_no_tokens_are_finite_and_an_unforeseen_text_is_not():
    x = texts(lengths=(7, 0))
    assert np.isfinite(applied()(drawn(), x)).all()
    logits = applied()(drawn(), x._replace(segments=x.segments.at[1].set(-1)))
    assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).all()


def test_gradients_reach_everything_but_other_kinds_and_positions():
    def loss(params):
        return jnp.sum(jnp.cos(made().apply(params, texts())))

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(drawn())):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        reached = {"embedding/kind": 1, "embedding/position": 7}.get(name)
        if name == "layers/key/bias":  # one number more for every score, which the softmax takes away again
            np.testing.assert_allclose(leaf, 0.0, atol=1e-5)
        elif reached is not None:
            assert (leaf[:reached] != 0).all() and (leaf[reached:] == 0).all(), name
        elif name != "embedding/embedding":
            assert (np.abs(leaf) > 1e-9).mean() > 0.95, name


def test_more_layers_than_are_unrolled():
    layers = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 4 + [leaf[:1]]), drawn()["layers"])
    params = {**drawn(), "layers": layers}
    logits = jax.jit(encoder(CLASSES, **TINY | {"layers": 9}).apply)(params, texts((7, 7)))
    expected = [reference(params, ids)[1] for ids in np.asarray(texts().ids)]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_its_tap_tells_of_the_features():
    tap = made().tap
    assert tap is not None and head_of(made(), drawn(), Batch(texts(), jnp.zeros((2,), jnp.int32))) == "head"
    _, inputs = tap(drawn(), {}, texts((7, 7)))
    expected = [reference(drawn(), ids)[0] for ids in np.asarray(texts().ids)]
    np.testing.assert_allclose(inputs["head"], expected, **ROUNDING)


def test_the_fisher_is_of_single_texts():
    x, y = texts((5, 2), length=5), jnp.array([0, 3], jnp.int32)
    found = jax.jit(lambda p: diagonal_fisher(KEY, made(), p, Batch(x, y), kind="empirical"))(drawn())

    def loss(params, one, label):
        return -jax.nn.log_softmax(made().apply(params, jax.tree.map(lambda leaf: leaf[None], one)))[0, label]

    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(drawn(), x, y)
    expected = jax.tree.map(lambda leaf: jnp.mean(jnp.square(leaf), axis=0), each)
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-6)


def test_members_side_by_side_are_one_by_one():
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * 0.9]), drawn())
    side = jax.jit(jax.vmap(made().apply, (0, None)))(many, texts())
    for number in range(2):
        alone = applied()(jax.tree.map(lambda leaf, number=number: leaf[number], many), texts())
        np.testing.assert_allclose(side[number], alone, **ROUNDING)


@pytest.mark.parametrize(
    ("switches", "message"), [({"heads": 5}, "width 12 is not divisible by 5 heads"), ({"positions": 4}, "4 positions")]
)
def test_what_makes_no_model_is_told(switches, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(encoder(CLASSES, **TINY | switches).init, KEY, texts())
    with pytest.raises(UserError, match="reads texts with labels"):
        made().init(KEY, jnp.zeros((1, 8, 8, 1)))


# --- in the engine

LABELLED = "labelled:made?classes=6&context=24"
BASE = Run(
    data=LABELLED, stream=Split(num_tasks=3), scenario="class", optimizer=Sgd(learning_rate=0.5), steps=10,
    batch_size=8, model=Encoder(num_tokens=256, width=8, layers=1, heads=2, hidden=8, positions=24),
)  # fmt: skip
LORA = Lora(rank=2, first_task="lora", targets="layers/.*kernel", whole="head/")
RUNS: dict[str, Run] = {
    "ewc": replace(BASE, {"methods": {"ewc": Ewc(strength=10.0, kind="sampled", num_examples=8)}}),
    "replay, lora": replace(BASE, {"methods": {"replay": Replay(capacity=20)}, "adapter": LORA}),
    "icarl, freeze": replace(BASE, {
        "methods": {"icarl": Icarl(capacity=12)}, "adapter": FreezeLayers(first=1.0, from_task=0),
    }),
    "task": replace(BASE, {"scenario": "task", "adapter": Freeze(pattern="embedding/")}),
}  # fmt: skip


@functools.cache
def data() -> Data:
    return split_source(sources.load(LABELLED), 0.1)


@functools.cache
def programs() -> Programs:
    return Programs(devices=jax.devices()[:1])


def lived(run: Run, width: int) -> tuple[Any, np.ndarray]:
    entries = entries_of("m", run, {"optimizer.learning_rate": [0.1, 0.05]})
    chosen = members(Experiment(name="t", description="", entries=entries, seeds=(0, 1)), {LABELLED: "sha"})
    return two_tasks(waves.crew_of(plan.Shard(folder=Path(), members=tuple(chosen), width=width), data(), programs()))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_runs_side_by_side_are_one_by_one(name: str) -> None:
    alone, side = lived(RUNS[name], 1), lived(RUNS[name], 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TRAINED), alone[0].trainable, side[0].trainable)
    np.testing.assert_allclose(alone[1], side[1], rtol=2e-3, atol=0.05)
    assert not np.isnan(side[1]).any() and not side[0].diverged.any()


@pytest.mark.slow
def test_lora_trains_the_head_and_the_factors_alone() -> None:
    state, _ = lived(RUNS["replay, lora"], 2)
    assert set(state.trainable.factors) > {"head/kernel", "head/bias", "layers/query/kernel"}
    assert set(state.trainable.factors["head/kernel"]) == {"whole"}
    assert np.abs(state.trainable.factors["head/bias"]["whole"]).max() > 0
    assert np.abs(state.trainable.factors["layers/query/kernel"]["b"]).max() > 0
    before = np.asarray(state.base["head"]["kernel"])
    assert np.abs(before - state.trainable.factors["head/kernel"]["whole"]).max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Mlp()}, r"model Mlp does not read texts with labels.*use model Encoder\(\)"),
        ({"model": Decoder()}, "model Decoder does not read texts with labels"),
        ({"stream": Permuted(num_tasks=3)}, r"stream Permuted\(\) changes how images look.*use stream Split\(\)"),
        ({"stream": Domains(num_tasks=2)}, r"texts with labels: use Split\(\)"),
        ({"stream": Repeated(stream=Permuted(num_tasks=3))}, "changes how images look"),
        ({"model.num_tokens": 100}, "Encoder knows 100 tokens, and the tokenizer of the data has 256"),
        ({"model.positions": 8}, "has 8 positions, and the texts are of 24 tokens: lower context"),
        ({"methods": {"g": GenerativeReplay()}}, "methods.g: GenerativeReplay is of images, and the data are texts"),
        (
            {"adapter": replace(LORA, {"first_task": "full"})},
            "adapter.whole: was given 'head/' beside first_task 'full'",
        ),
        ({"adapter": replace(LORA, {"whole": "hed"})}, "adapter.whole: 'hed' matches none of the parameters"),
        ({"adapter": replace(LORA, {"whole": "("})}, "adapter.whole: .* is not a regular expression"),
        ({"model.weights": "/nowhere"}, "config.json is not there"),
        ({"model.weights": 7}, "weights expects the path of a folder or wheel, was given 7"),
    ],
)
def test_what_labelled_texts_cannot_be_used_for_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_run(replace(BASE, changes), data(), "x")


def test_an_encoder_is_not_for_text_that_goes_on() -> None:
    text = split_source(sources.load("text:made_support,made_prose?context=16&bytes=40000"), 0.1)
    with pytest.raises(UserError, match="tells the class of a text, and the data are text that goes on"):
        check_run(replace(BASE, {"stream": Domains(), "scenario": "domain"}), text, "x")


def test_what_trains_whole_beside_the_factors() -> None:
    params = {"head": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros((2,))}, "query": {"kernel": jnp.ones((3, 3))}}
    adapter = Lora(rank=1, first_task="lora", whole="head/", merge=True).build()
    base, trainable = adapter.init(KEY, params)
    assert set(trainable.factors) == {"head/kernel", "head/bias", "query/kernel"}
    chex.assert_trees_all_equal(adapter.effective(base, trainable, jnp.int32(0)), params)
    moved = trainable._replace(factors=jax.tree.map(lambda leaf: leaf + 1.0, trainable.factors))
    effective = adapter.effective(base, moved, jnp.int32(0))
    chex.assert_trees_all_equal(effective["head"], jax.tree.map(lambda leaf: leaf + 1.0, params["head"]))
    again = adapter.effective(*adapter.end_task(KEY, base, moved, jnp.int32(0)), jnp.int32(1))
    chex.assert_trees_all_equal(again, effective)


def test_rows_become_texts_and_unforeseen_ones_are_marked() -> None:
    rows = jnp.array([[5, 0, 7, -1], [3, -1, -1, -1]], jnp.int32)
    x = _whole_texts(rows, None)
    assert x.ids.tolist() == [[5, 0, 7, 0], [3, 0, 0, 0]] and x.segments.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert _whole_texts(rows, jnp.array([True, False])).segments.tolist() == [[1, 1, 1, 0], [-1, -1, -1, -1]]


def test_the_experiment_is_sound_without_files() -> None:
    experiments = Path(__file__).parent.parent / "experiments"
    smoke = load_experiment(experiments / "banking77", "smoke")
    check_experiment(smoke)
    found = {(run.data, run.validation): split_source(sources.load(run.data), run.validation) for run in (
        entry.run for entry in smoke.entries
    )}  # fmt: skip
    check_runs(smoke.entries, found)
    mini = load_experiment(experiments / "banking77", "mini")
    check_experiment(mini)
    assert {entry.label for entry in mini.entries} == {entry.label for entry in smoke.entries}

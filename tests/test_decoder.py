"""The decoder against a reference in numpy, and what a language model must not see."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.errors import UserError
from cl_jax.experiment import MODELS, Decoder
from cl_jax.models.attention import attention, sight
from cl_jax.models.decoder import decoder
from cl_jax.models.rotary import angles, rotate
from cl_jax.tokens import Tokens

KEY = jax.random.key(0)
TINY = dict(width=12, layers=2, heads=4, head_width=4, hidden=20)
TOKENS = 11
EPSILON = 1e-5
# float32 sums of a few dozen products in another order, through two layers.
ROUNDING = dict(rtol=1e-4, atol=1e-5)


def rows(num=2, length=9, seed=0):
    """Rows of two documents, the last of them followed by padding."""
    ids = np.random.default_rng(seed).integers(1, TOKENS, (num, length)).astype(np.int32)
    segments = np.ones((num, length), np.int32)
    segments[:, 4:] = 2
    segments[-1, -2:], ids[-1, -2:] = 0, 0
    return Tokens(jnp.asarray(ids), jnp.asarray(segments))


def member(tree, number):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[number], tree)


made = functools.cache(lambda **switches: decoder(TOKENS, **TINY | switches))  # so that tests share what is compiled


def built(scale=0.4, **switches):
    """A model and parameters large enough, in every array, that nothing of it can be left out unseen."""
    model = made(**switches)
    params = jax.eval_shape(model.init, KEY, rows())
    generator = np.random.default_rng(1)

    def draw(path, leaf):
        middle = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(middle + scale * generator.normal(size=leaf.shape), jnp.float32)

    return model, jax.tree_util.tree_map_with_path(draw, params)


# --- an independent reference: one sequence, one head and one position at a time, float64


def norm(x, scale):
    return scale * x / np.sqrt(np.mean(x**2) + EPSILON)


def turned(x, position, base=10000.0):
    """Numbers i and i + E / 2 of a head are the real and imaginary part of one complex number, which is turned."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def reference(params, ids, segments, heads, kv_heads):
    """Logits [L, V] of one row."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    table, stacked = params["embedding"]["embedding"], params["layers"]
    positions = [sum(segments[:i] == segments[i]) for i in range(len(ids))]
    x = [table[token] for token in ids]
    for number in range(stacked["attention_norm"]["scale"].shape[0]):
        p = member(stacked, number)

        def project(name, i, normal, p=p):
            y = normal @ p[name]["kernel"] + p[name].get("bias", 0.0)
            y = y.reshape(heads if name == "query" else kv_heads, -1)
            if f"{name}_norm" in p:
                y = np.stack([norm(head, p[f"{name}_norm"]["scale"]) for head in y])
            return y if name == "value" else np.stack([turned(head, positions[i]) for head in y])

        normal = [norm(one, p["attention_norm"]["scale"]) for one in x]
        query, key, value = ([project(name, i, h) for i, h in enumerate(normal)] for name in ("query", "key", "value"))
        for i in range(len(ids)):
            found = []
            for head in range(heads):
                shared = head * kv_heads // heads
                seen = [j for j in range(i + 1) if segments[j] == segments[i]]
                scores = np.exp([query[i][head] @ key[j][shared] / np.sqrt(query[i].shape[1]) for j in seen])
                found.append(sum(s * value[j][shared] for s, j in zip(scores / sum(scores), seen, strict=True)))
            x[i] = x[i] + np.concatenate(found) @ p["output"]["kernel"]
            h = norm(x[i], p["mlp_norm"]["scale"])
            gate = h @ p["mlp_gate"]["kernel"]
            x[i] = x[i] + (gate / (1 + np.exp(-gate)) * (h @ p["mlp_up"]["kernel"])) @ p["mlp_down"]["kernel"]
    head = params["head"]["kernel"] if "head" in params else table.T
    return np.stack([norm(one, params["norm"]["scale"]) @ head for one in x])


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("qkv_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["", "norm"])
def test_is_the_reference(kv_heads, tied, qkv_bias, qk_norm):
    model, params = built(kv_heads=kv_heads, tied=tied, qkv_bias=qkv_bias, qk_norm=qk_norm)
    tokens = rows()
    logits = jax.jit(model.apply)(params, tokens)
    assert logits.dtype == jnp.float32
    for one, ids, segments in zip(logits, *map(np.asarray, tokens), strict=True):
        np.testing.assert_allclose(one, reference(params, ids, segments, 4, kv_heads), **ROUNDING)


def test_parameters_are_laid_out_as_told():
    model = Decoder(**TINY, kv_heads=2, tied=False, qkv_bias=True, qk_norm=True).build(TOKENS)
    expected = {
        "embedding": {"embedding": (11, 12)},
        "layers": {
            "attention_norm": {"scale": (2, 12)}, "mlp_norm": {"scale": (2, 12)},
            "query": {"kernel": (2, 12, 16), "bias": (2, 16)}, "key": {"kernel": (2, 12, 8), "bias": (2, 8)},
            "value": {"kernel": (2, 12, 8), "bias": (2, 8)}, "output": {"kernel": (2, 16, 12)},
            "query_norm": {"scale": (2, 4)}, "key_norm": {"scale": (2, 4)}, "mlp_gate": {"kernel": (2, 12, 20)},
            "mlp_up": {"kernel": (2, 12, 20)}, "mlp_down": {"kernel": (2, 20, 12)},
        },
        "norm": {"scale": (12,)},
        "head": {"kernel": (12, 11)},
    }  # fmt: skip
    params = jax.eval_shape(model.init, KEY, rows())
    assert jax.tree.map(lambda leaf: leaf.shape, params) == expected
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_first_weights_follow_their_laws_and_no_switch_moves_another_s():
    switches = dict(tied=False, qkv_bias=True, qk_norm=True, remat=True)
    plain, more = (jax.jit(decoder(256, layers=2, **more).init)(KEY, rows()) for more in ({}, switches))
    for name, std in (("query", 0.02), ("mlp_up", 0.02), ("output", 0.01), ("mlp_down", 0.01)):
        kernel = plain["layers"][name]["kernel"]
        # 2 x 96 x 96 numbers at the least: the deviation is known to half a per cent.
        np.testing.assert_allclose(np.std(kernel, axis=(1, 2)), std, rtol=0.03)
        np.testing.assert_array_equal(kernel, more["layers"][name]["kernel"])
    np.testing.assert_array_equal(plain["embedding"]["embedding"], more["embedding"]["embedding"])
    kernels = [leaf.reshape(-1)[:1000] for leaf in jax.tree.leaves(plain["layers"]) if leaf.ndim == 3]
    related = np.corrcoef(np.stack([*kernels, plain["embedding"]["embedding"].reshape(-1)[:1000]]))
    assert np.max(np.abs(related - np.eye(8))) < 0.2  # each of 28 has a deviation of 0.03
    np.testing.assert_array_equal(plain["norm"]["scale"], 1.0)
    np.testing.assert_array_equal(more["layers"]["key"]["bias"], 0.0)
    np.testing.assert_array_equal(more["layers"]["query_norm"]["scale"], 1.0)
    np.testing.assert_allclose(np.std(more["head"]["kernel"]), 0.02, rtol=0.03)


def test_default_is_of_the_size_told():
    params = jax.eval_shape(Decoder().build(256).init, KEY, rows())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 357_024
    assert params["layers"]["mlp_up"]["kernel"].shape == (3, 96, 256)
    assert jax.eval_shape(decoder(9, width=64).init, KEY, rows())["layers"]["mlp_up"]["kernel"].shape == (3, 64, 176)


def test_rotation_turns_pairs_of_halves():
    """E = 2: one pair, turned by the position itself; the product of two depends on their distance alone."""
    positions = jnp.asarray([[0.0, 1.0, 2.5]])
    x = jnp.asarray([[[[3.0, 4.0]] * 3]])  # [B, H, L, E]
    found = rotate(x, angles(positions, 2, 10000.0))[0, 0]
    for one, angle in zip(found, (0.0, 1.0, 2.5), strict=True):
        expected = [3 * np.cos(angle) - 4 * np.sin(angle), 3 * np.sin(angle) + 4 * np.cos(angle)]
        np.testing.assert_allclose(one, expected, rtol=1e-6)

    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)), jnp.float32)

    def product(i, j):
        one, two = (rotate(v, angles(jnp.full((1, 1), p), 8, 100.0)) for v, p in zip(vectors, (i, j), strict=True))
        return jnp.sum(one * two)

    np.testing.assert_allclose(product(7.0, 3.0), product(104.0, 100.0), rtol=1e-5)
    assert abs(product(7.0, 3.0) - product(7.0, 4.0)) > 1e-2


@pytest.mark.parametrize(("groups", "size"), [(1, 2.0), (3, 2.0), (1, 60.0)])
def test_attention_and_its_gradient_are_the_library_s(groups, size):
    """Also where the exponential of a score overflows."""
    segments = rows().segments
    generator = np.random.default_rng(2)
    query, key, value = (
        jnp.asarray(scale * generator.normal(size=(2, num, 9, 4)), jnp.float32)
        for num, scale in ((2 * groups, size), (2, 1.0), (2, 1.0))
    )
    place = np.arange(9)
    seen = (segments[:, None, :, None] == segments[:, None, None, :]) & (place[:, None] >= place)[None, None]

    def own(query, key, value):
        return attention(query.reshape(2, 2, groups * 9, 4), key, value, sight(segments).bias).reshape(query.shape)

    def library(*arrays):
        arrays = (array.swapaxes(1, 2) for array in arrays)
        return jax.nn.dot_product_attention(*arrays, mask=seen).swapaxes(1, 2)

    def results(function):
        y, pull_back = jax.vjp(function, query, key, value)
        return y, pull_back(jnp.sin(y))

    chex.assert_trees_all_close(
        *(jax.jit(results, static_argnums=0)(f) for f in (own, library)), rtol=1e-4, atol=1e-5 * size
    )


def test_positions_begin_anew_in_each_segment():
    """Which no logits show: they depend on distances alone."""
    positions = sight(jnp.asarray([[1, 1, 1, 2, 3, 3, 0, 0]], jnp.int32)).positions
    np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 0, 1, 0, 1]])


def test_a_later_token_changes_no_earlier_logits():
    model, params = built()
    tokens = rows()
    apply = jax.jit(model.apply)
    before = apply(params, tokens)
    after = apply(params, tokens._replace(ids=tokens.ids.at[:, 6].add(1)))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.all(np.any(before[:, 6] != after[:, 6], axis=1))


def test_a_document_is_the_same_behind_others_as_alone():
    model, params = built()
    apply = jax.jit(model.apply)
    generator = np.random.default_rng(3)
    documents = [generator.integers(1, TOKENS, size).astype(np.int32) for size in (3, 5, 4)]
    ids = jnp.asarray(np.concatenate([*documents, np.zeros(2, np.int32)]))[None]
    segments = jnp.asarray(np.repeat([1, 2, 3, 0], [3, 5, 4, 2]).astype(np.int32))[None]
    packed = apply(params, Tokens(ids, segments))[0]
    start = 0
    for document in documents:
        size = len(document)
        # Alone in a row of the same length, so that one program is compiled: what follows it is never seen.
        row = jnp.asarray(np.pad(document, (0, len(ids[0]) - size)))[None]
        alone = apply(params, Tokens(row, jnp.asarray(np.arange(len(ids[0])) < size, jnp.int32)[None]))[0]
        np.testing.assert_allclose(packed[start : start + size], alone[:size], **ROUNDING)
        start += size


def test_padding_is_finite_and_moves_nothing():
    model, params = built()
    ids = jnp.ones((2, 5), jnp.int32)
    tokens = Tokens(ids, jnp.asarray([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], jnp.int32))

    def loss(params, ids):
        logits = model.apply(params, tokens._replace(ids=ids))
        return jnp.sum(jax.nn.logsumexp(logits[0, :3], axis=-1)), logits

    compute = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, logits), gradient = compute(params, ids)
    chex.assert_tree_all_finite((value, logits, gradient))
    np.testing.assert_array_equal(value, compute(params, ids.at[0, 3:].set(7).at[1].set(5))[0][0])


@functools.cache
def objective(model):
    def loss(params, tokens):
        return jnp.mean(jax.nn.logsumexp(model.apply(params, tokens), axis=-1) ** 2)

    return jax.jit(jax.value_and_grad(loss))


def test_rematerialised_is_the_same():
    (plain, params), (remat, _) = built(), built(remat=True)
    chex.assert_trees_all_close(objective(plain)(params, rows()), objective(remat)(params, rows()), **ROUNDING)
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(remat.apply(p, rows()))))(params))
    assert "checkpoint" in jaxpr or "remat" in jaxpr


def test_looped_layers_are_unrolled_ones(monkeypatch):
    """And both are a loop in numpy. Which of the two a model has is decided by its number of layers."""
    found = []
    for most, loops in ((1, 2), (2, 0)):  # forward and backward
        monkeypatch.setattr("cl_jax.models.decoder.MOST_UNROLLED", most)
        model, (_, params) = decoder(TOKENS, **TINY), built()
        lowered = objective(model).lower(params, rows())
        found.append(lowered.compile()(params, rows()))
        assert lowered.as_text().count("stablehlo.while") == loops
    chex.assert_trees_all_close(*found, **ROUNDING)


def test_bfloat16_is_near():
    """8 bits of mantissa: a relative error of 2^-9 in each of a few dozen roundings that follow one another."""
    (exact, params), (rough, _) = built(scale=0.2), built(scale=0.2, compute="bfloat16")
    (loss, gradient), (near_loss, near_gradient) = (objective(m)(params, rows()) for m in (exact, rough))
    logits, near = (jax.jit(m.apply)(params, rows()) for m in (exact, rough))
    assert near.dtype == jnp.float32 and 0 < jnp.max(jnp.abs(near - logits)) < 0.05 * jnp.max(jnp.abs(logits))
    np.testing.assert_allclose(near_loss, loss, rtol=0.02)
    chex.assert_trees_all_equal_dtypes(near_gradient, params)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(near_gradient), strict=True):
        assert np.linalg.norm(np.asarray(one) - np.asarray(two)) < 0.1 * np.linalg.norm(one)


def test_members_side_by_side_are_members_one_by_one():
    model, params = built()
    members = jax.tree.map(lambda leaf: np.stack([leaf, 1.1 * leaf]), params)
    side_by_side = jax.jit(jax.vmap(objective(model), in_axes=(0, None)))(members, rows())
    for number in range(2):
        alone = objective(model)(member(members, number), rows())
        chex.assert_trees_all_close(member(side_by_side, number), alone, **ROUNDING)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 98}, "98 is not divisible by 4 heads.*96 or 100"),
        ({"width": 12}, "3 numbers.*even"),
        ({"head_width": 5}, "5 numbers.*even"),
        ({"heads": 6, "kv_heads": 4}, "1, 2, 3, 6. Did you mean 3"),
        ({"kv_heads": 8}, "1, 2, 4. Did you mean 4"),
        ({"rope_base": 0.0}, "above 0"),
        ({"rope_scaling": (8.0, 4.0, 1.0, 8192)}, "0 < low < high"),
        ({"rope_scaling": (8.0,)}, "0 < low < high"),
        ({"norm_epsilon": -1.0}, "at least 0"),
        ({"compute": "float16"}, "Did you mean 'bfloat16'"),
    ],
)
def test_impossible_numbers_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Decoder(**fields).build(256)


def test_reads_text_alone():
    model = MODELS["decoder"]().build(256)
    images = jnp.zeros((2, 8, 8, 1))
    for call in (lambda: model.init(KEY, images), lambda: model.apply({}, images)):
        with pytest.raises(UserError, match=r"reads text.*\[8, 8, 1\].*text:"):
            call()

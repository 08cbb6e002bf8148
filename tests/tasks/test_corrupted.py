"""Corruptions against SciPy and NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cl_jax.batch import Reference
from cl_jax.data import Data, split_source
from cl_jax.sources import Source
from cl_jax.tasks import Corrupted
from cl_jax.tasks.corrupted import BLUR, CONTRAST, NOISE
from cl_jax.tasks.render import render
from cl_jax.tasks.stream import View

HEIGHT, WIDTH, CHANNELS = 9, 12, 3
FLOAT32_SUMS = 1e-4  # of some ten products of values up to 200


@functools.cache
def source() -> Data:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 201, (60, HEIGHT, WIDTH, CHANNELS)).astype(np.uint8)
    images[1:3] = 100  # two equal images, grey
    return split_source(Source("noise", images, np.arange(60, dtype=np.int32) % 3, None, None, 3, 200), 0.2)


@functools.cache
def transforming(kind: str, severity: int) -> Any:
    stream = Corrupted(kinds=(kind, kind), severity=severity).build(source())

    def transform(seed: jax.Array, task: jax.Array, images: jax.Array) -> jax.Array:
        return stream.transform(stream.tables(jax.random.key(seed), source()), task, images)

    return jax.jit(transform)


def seen(kind: str, severity: int, seed: int = 0, task: int = 0, images: Any = None) -> np.ndarray:
    shown = source().images if images is None else images
    return np.asarray(transforming(kind, severity)(jnp.int32(seed), jnp.int32(task), shown))


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_blur_and_contrast(severity: int) -> None:
    images = np.asarray(source().images, np.float64)
    deviation = (0, BLUR[severity - 1], BLUR[severity - 1], 0)
    blurred = ndimage.gaussian_filter(images, deviation, mode="nearest", truncate=4.0)
    np.testing.assert_allclose(seen("blur", severity), blurred, atol=FLOAT32_SUMS)
    mean = images.mean(axis=(1, 2), keepdims=True)
    contrast = np.clip((images - mean) * CONTRAST[severity - 1] + mean, 0, 200)
    np.testing.assert_allclose(seen("contrast", severity), contrast, atol=FLOAT32_SUMS)
    np.testing.assert_array_equal(seen("none", severity), images)


@pytest.mark.parametrize("severity", [1, 5])
def test_noise_is_gaussian_and_each_images_own(severity: int) -> None:
    images, noisy = np.asarray(source().images, np.float64), seen("noise", severity)
    assert noisy.min() >= 0 and noisy.max() <= 200
    inside = (images > 80) & (images < 120)  # four deviations from being cut
    noise = (noisy - images)[inside] / (200 * NOISE[severity - 1])
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size) and abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)
    np.testing.assert_array_equal(noisy, seen("noise", severity))
    np.testing.assert_array_equal(noisy[5:9], seen("noise", severity, images=source().images[::-1])[::-1][5:9])
    grey = np.flatnonzero((images == 100).all(axis=(1, 2, 3)))
    np.testing.assert_array_equal(*noisy[grey])  # equal images look equal
    apart = [(noisy - images)[0], (noisy - images)[3]]
    apart += [seen("noise", severity, seed, task)[0] - images[0] for seed, task in ((1, 0), (0, 1))]
    for one in range(4):
        for other in range(one):
            assert abs(np.corrcoef(apart[one].ravel(), apart[other].ravel())[0, 1]) < 0.35  # 6 deviations


def test_tasks_have_their_corruptions_one_by_one_and_together() -> None:
    kinds = ("none", "noise", "blur", "contrast", "blur")
    config = Corrupted(kinds=kinds, severity=2)
    stream = config.build(source())
    assert config.num_tasks == stream.num_tasks == 5
    view, rows = View(stream, "domain"), jnp.arange(10, dtype=jnp.int32)

    @functools.partial(jax.jit, static_argnums=1)
    def shown(task: jax.Array, one_task: bool) -> jax.Array:
        tables, reference = stream.tables(jax.random.key(0), source()), Reference(rows, task)
        return render(view, tables, source(), reference, jnp.int32(0), mask="seen", one_task=one_task).x

    mixed = shown(rows % 5, False)
    for task, kind in enumerate(kinds):
        alone = shown(jnp.full_like(rows, task), True)
        np.testing.assert_allclose(alone * 200, seen(kind, 2, task=task)[:10], atol=FLOAT32_SUMS)
        np.testing.assert_allclose(mixed[task::5], alone[task::5], atol=FLOAT32_SUMS)

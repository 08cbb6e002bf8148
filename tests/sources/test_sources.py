"""What every source has in common, and the digits."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from cl_jax.errors import UserError
from cl_jax.sources import Source, load

DIGITS_SHA256 = "cef1c51bcace5bbfff787c1ae41483b5a8285849d89b7042976e0b5f4e96a58d"


def small() -> Source:
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)
    return Source("small", images, np.array([0, 1, 0], np.int32), None, None, num_classes=2, pixel_max=255)


def test_digits_are_those_of_scikit_learn() -> None:
    source = load("digits")
    assert source.train_images.shape == (1797, 8, 8, 1) and source.train_images.dtype == np.uint8
    assert source.train_labels.shape == (1797,) and source.train_labels.dtype == np.int32
    assert source.test_images is None and source.test_labels is None
    assert (source.num_classes, source.pixel_max) == (10, 16)
    assert source.train_images.min() == 0 and source.train_images.max() == 16
    assert np.bincount(source.train_labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # A change of this digest means that every result on digits is of other data.
    assert source.sha256 == DIGITS_SHA256


def test_digest_sees_every_array_shape_and_dtype() -> None:
    source = small()
    flipped = source.train_images.copy()
    flipped[2, 1, 1, 0] ^= 1
    others = [
        dataclasses.replace(source, train_images=flipped),
        dataclasses.replace(source, train_images=source.train_images.reshape(3, 1, 4, 1)),
        dataclasses.replace(source, train_images=source.train_images.view(np.int8)),
        dataclasses.replace(source, train_labels=source.train_labels[::-1].copy() + 1),
        dataclasses.replace(source, test_images=source.train_images, test_labels=source.train_labels),
    ]
    assert len({source.sha256, *(other.sha256 for other in others)}) == 1 + len(others)


def test_digest_is_of_values_not_of_memory_layout() -> None:
    source = small()
    assert dataclasses.replace(source, name="renamed").sha256 == source.sha256
    assert dataclasses.replace(source, train_images=np.asfortranarray(source.train_images)).sha256 == source.sha256
    assert dataclasses.replace(source, train_labels=source.train_labels.astype(">i4")).sha256 == source.sha256


def test_arrays_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        small().train_images[0] = 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [("digit", "'digits'"), ("mnist", "'tfds:mnist'"), ("tfds:", "'tfds:"), ("tdfs:mnist", "'tfds:mnist'")],
)
def test_unknown_source_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"unknown data source '{name}'; known: digits.*Did you mean {hint}"):
        load(name)


def test_import_is_light() -> None:
    code = (
        "import sys, cl_jax.sources; print([m for m in ('jax', 'sklearn', 'tensorflow_datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"

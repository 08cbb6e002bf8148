"""Handwritten digits that come with scikit-learn: the set of every quickstart and test, no network, no files."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from cl_jax.sources import Source


def load() -> Source:
    """1797 images uint8 [N, 8, 8, 1] in 0..16 and labels 0..9, in scikit-learn's order; no official test split.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (its test part), UCI repository.
    """
    # The file alone: importing scikit-learn takes a second or two.
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return Source(
        name="digits",
        train_images=table[:, :-1].reshape(-1, 8, 8, 1),
        train_labels=table[:, -1].astype(np.int32),
        test_images=None,
        test_labels=None,
        num_classes=10,
        pixel_max=16,
    )

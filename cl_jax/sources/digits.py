"""Handwritten digits that come with scikit-learn: the set of every quickstart and test, no network, no files."""

import numpy as np

from cl_jax.sources import Source


def load() -> Source:
    """1797 images uint8 [N, 8, 8, 1] in 0..16 and labels 0..9, in scikit-learn's order; no official test split.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (its test part), UCI repository.
    """
    from sklearn.datasets import load_digits  # a second to import

    images, labels = load_digits(return_X_y=True)
    return Source(
        name="digits",
        train_images=images.reshape(-1, 8, 8, 1).astype(np.uint8),
        train_labels=labels.astype(np.int32),
        test_images=None,
        test_labels=None,
        num_classes=10,
        pixel_max=16,
    )

"""The data set on the device: uint8 once, for all tasks and all members."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.errors import UserError
from cl_jax.sources import Source

SPLITS = ("train", "validation", "test")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Rows ordered train, validation, test; everything but the two arrays is static."""

    images: jax.Array  # uint8 [N, H, W, C]
    labels: jax.Array  # int32 [N]
    sizes: tuple[int, int, int] = dataclasses.field(metadata={"static": True})  # rows of each split
    class_counts: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})  # [split][class]
    pixel_max: int = dataclasses.field(metadata={"static": True})  # value that becomes 1.0
    sha256: str = dataclasses.field(metadata={"static": True})  # of the source's arrays

    def bounds(self, split: str) -> tuple[int, int]:
        """First row of a split and its number of rows."""
        at = SPLITS.index(split)
        return sum(self.sizes[:at]), self.sizes[at]

    @property
    def num_classes(self) -> int:
        return len(self.class_counts[0])


def split_source(source: Source, validation: float, test: float = 0.2) -> Data:
    """Puts a source on the device with disjoint train, validation and test rows.

    The validation rows are a random share of the source's training rows; the test rows are the source's own test set
    or, where it has none, another random share. The split is the same for every seed and every experiment: seeds vary
    what a method sees of the training set, never what it is judged on.

    Args:
        source: images and labels on the host.
        validation: share of the training rows kept for choosing hyper-parameters, in [0, 1).
        test: share kept for testing where the source has no test set.

    Raises:
        UserError: a split would be empty.
    """
    images, labels = source.train_images, source.train_labels
    order = np.random.default_rng(0).permutation(len(labels))
    if source.test_images is None or source.test_labels is None:
        num_test = round(test * len(labels))
        test_images, test_labels = images[order[:num_test]], labels[order[:num_test]]
        order = order[num_test:]
    else:
        test_images, test_labels = source.test_images, source.test_labels
    num_validation = round(validation * len(order))
    held_out, kept = order[:num_validation], order[num_validation:]
    parts = [(images[kept], labels[kept]), (images[held_out], labels[held_out]), (test_images, test_labels)]
    sizes = (len(kept), len(held_out), len(test_labels))
    if min(sizes) == 0:
        raise UserError(
            f"data {source.name!r} with validation={validation} leaves {sizes[0]} training, {sizes[1]} validation and "
            f"{sizes[2]} test examples; each needs at least one: choose validation between 0 and 1"
        )
    counts = tuple(tuple(np.bincount(y, minlength=source.num_classes).tolist()) for _, y in parts)
    return Data(
        images=jnp.asarray(np.concatenate([x for x, _ in parts])),
        labels=jnp.asarray(np.concatenate([y for _, y in parts]), jnp.int32),
        sizes=sizes,
        class_counts=counts,
        pixel_max=source.pixel_max,
        sha256=source.sha256,
    )

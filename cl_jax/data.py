"""The data set: whole numbers once, for all tasks and all members, on the device or, if too large, on the host."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.errors import UserError
from cl_jax.sources import Source
from cl_jax.text.format import LabelledFormat, TextFormat

SPLITS = ("train", "validation", "test")


class HostImages:
    """The images of a data set that streams: the source's own arrays, in memory or mapped files, never copied whole.

    Args:
        parts: (images [n, ...] of one integer dtype, index [k]) each: the rows of the data set are images[index], part
            after part.
        budget: bytes of images that one device may hold.
    """

    def __init__(self, parts: Sequence[tuple[np.ndarray, np.ndarray]], budget: int):
        self.parts, self.budget = tuple(parts), budget
        self.starts = np.cumsum([0, *(len(index) for _, index in parts)])
        self.shape: tuple[int, ...] = parts[0][0].shape[1:]
        self.dtype = parts[0][0].dtype

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Images [B, ...] for rows int [B], in any order."""
        images = np.empty((len(rows), *self.shape), self.dtype)
        for (part, index), first, end in zip(self.parts, self.starts[:-1], self.starts[1:], strict=True):
            here = np.flatnonzero((rows >= first) & (rows < end))
            if len(here) == len(rows):
                np.take(part, index[rows - first], axis=0, out=images, mode="clip")  # "raise" would copy once more
            elif len(here):
                images[here] = part[index[rows[here] - first]]
        return images


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Rows ordered train, validation, test; everything but the arrays is static.

    Resident: `images` holds every row. Streamed (`host` is set): `images` is a window, the rows that the next program
    asks for, found through `slots`; or, where no window can be known or is large enough, it is empty (`slots` None)
    and programs call the host for every batch, which works everywhere and is slow on an accelerator.
    """

    images: jax.Array  # uint8 [N, H, W, C], or a window's [M, H, W, C]; of text rows of tokens, see `cl_jax.tokens`
    labels: jax.Array  # int32 [N]
    slots: jax.Array | None = None  # int32 [N], of a window: each row's place in `images`, -1: not there
    host: HostImages | None = dataclasses.field(default=None, metadata={"static": True})  # of streamed data
    sizes: tuple[int, int, int] = dataclasses.field(metadata={"static": True})  # rows of each split
    class_counts: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})  # [split][class]
    pixel_max: int = dataclasses.field(metadata={"static": True})  # value that becomes 1.0
    sha256: str = dataclasses.field(metadata={"static": True})  # of the source's arrays
    text: TextFormat | None = dataclasses.field(default=None, metadata={"static": True})  # None: no rows of text
    labelled: LabelledFormat | None = dataclasses.field(default=None, metadata={"static": True})  # both None: images

    def bounds(self, split: str) -> tuple[int, int]:
        """First row of a split and its number of rows."""
        at = SPLITS.index(split)
        return sum(self.sizes[:at]), self.sizes[at]

    @property
    def num_classes(self) -> int:
        return len(self.class_counts[0])

    def pixels(self, rows: jax.Array) -> jax.Array:
        """The images of rows int32 [B], [B, ...] as stored; of one outside the window (see `holds`) any image."""
        if self.slots is not None:
            return self.images[self.slots[rows]]
        if self.host is None:
            return self.images[rows]
        like = jax.ShapeDtypeStruct((*rows.shape, *self.host.shape), self.images.dtype)
        # One member at a time: JAX copies arguments above 100 kB on the CPU's worker threads, and where callbacks of
        # several devices occupy all of these, they wait for each other for ever (seen with 64 members a device).
        return jax.pure_callback(self._call_host, like, rows, vmap_method="sequential")

    def _call_host(self, rows: jax.Array) -> np.ndarray:
        assert self.host is not None
        return self.host.read(np.asarray(rows))

    def holds(self, rows: jax.Array) -> jax.Array | None:
        """bool [B], which rows the window holds; None: every row is at hand."""
        return None if self.slots is None else self.slots[rows] >= 0


def split_source(source: Source, validation: float, test: float = 0.2, *, budget: int | None = None) -> Data:
    """Puts a source on the device with disjoint train, validation and test rows.

    The validation rows are the source's own, or a random share of its training rows; the test rows are the source's own
    or, where it has none, another random share. The split is the same for every seed and every experiment: seeds vary
    what a method sees of the training set, never what it is judged on.

    Args:
        source: images and labels on the host.
        validation: share of the training rows kept for choosing hyper-parameters, in [0, 1); a source with validation
            rows of its own has decided that.
        test: share kept for testing where the source has no test set.
        budget: leave the images on the host; programs may hold that many bytes of them at a time. None: all of them.

    Raises:
        UserError: a split would be empty.
    """
    order = np.random.default_rng(0).permutation(len(source.train_labels))
    train = (source.train_images, source.train_labels)
    if source.test_images is None or source.test_labels is None:
        num_test = round(test * len(order))
        tested, order, of_test = order[:num_test], order[num_test:], train
    else:
        of_test = (source.test_images, source.test_labels)
        tested = np.arange(len(source.test_labels))
    if source.validation_images is None or source.validation_labels is None:
        num_validation = round(validation * len(order))
        held_out, order, of_validation = order[:num_validation], order[num_validation:], train
    else:
        of_validation = (source.validation_images, source.validation_labels)
        held_out = np.arange(len(source.validation_labels))
    parts = [(*train, order), (*of_validation, held_out), (*of_test, tested)]
    sizes = (len(order), len(held_out), len(tested))
    if min(sizes) == 0:
        raise UserError(
            f"data {source.name!r} with validation={validation} leaves {sizes[0]} training, {sizes[1]} validation and "
            f"{sizes[2]} test examples; each needs at least one: choose validation between 0 and 1"
        )
    labels = [y[index] for _, y, index in parts]
    counts = tuple(tuple(np.bincount(y, minlength=source.num_classes).tolist()) for y in labels)
    host = HostImages([(images, index) for images, _, index in parts], budget=budget or 0)
    return Data(
        images=jnp.asarray(host.read(np.arange(len(host) if budget is None else 0))),
        labels=jnp.asarray(np.concatenate(labels), jnp.int32),
        host=None if budget is None else host,
        sizes=sizes,
        class_counts=counts,
        pixel_max=source.pixel_max,
        sha256=source.sha256,
        text=source.text,
        labelled=source.labelled,
    )

"""Where images (or rows of text) and labels come from: `load(name)` gives one `Source`, whatever the format behind it.

Host arrays only; nothing here imports JAX, and a reader is imported only when asked for.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path

import numpy as np

from cl_jax import errors
from cl_jax.text.format import LabelledFormat, TextFormat

KNOWN = {
    "digits": "1797 handwritten digits, 8 x 8; comes with scikit-learn, no files, no network.",
    "idx:<folder>": "A folder of the four files of MNIST's format, gzipped or not.",
    "tfds:mnist": "70000 handwritten digits, 28 x 28, from TensorFlow Datasets.",
    "tfds:fashion_mnist": "70000 pieces of clothing, 28 x 28, from TensorFlow Datasets.",
    "tfds:kmnist": "70000 handwritten hiragana, 28 x 28, from TensorFlow Datasets.",
    "tfds:<name>": "Any other set there of uint8 images of one shape with one label; needs TensorFlow to prepare it.",
    "text:<domains>": "Text: code, support, prose, maths, made_support, made_prose, or <name>=<folder>, by commas.",
    "labelled:<texts>": "Texts with a label each: banking77, made, or a folder or file of csv or jsonl.",
}

_LATER = ("validation_images", "validation_labels")  # absent, they leave a digest as it was before there were any


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A classification set of images, as read: nothing scaled, shuffled or left out. The arrays are read-only.

    Divide by `pixel_max` to get [0, 1]. The test arrays are None where a set has no official test split. Of text (see
    `text`) images are rows of tokens, as in `cl_jax.tokens`, and the label is the domain; of texts with a label each
    (see `labelled`) they are rows int32 [N, L] of ids, see `cl_jax.text.labelled`.
    """

    name: str  # as `load` takes it; for TFDS with the version that was read
    train_images: np.ndarray  # uint8 [N, H, W, C], C = 1 for grey; rows of text uint8, uint16 or int32 [N, L + 1, 3]
    train_labels: np.ndarray  # int32 [N], in 0..num_classes-1
    test_images: np.ndarray | None  # [M, ...], as those of training
    test_labels: np.ndarray | None  # int32 [M]
    num_classes: int
    pixel_max: int  # 16 for digits, 1 for text, 255 for all others
    validation_images: np.ndarray | None = None  # [V, ...]; None: to be drawn from the training rows
    validation_labels: np.ndarray | None = None  # int32 [V]
    text: TextFormat | None = None  # how to read the rows
    labelled: LabelledFormat | None = None  # how to read rows of texts with a label each

    def __post_init__(self) -> None:
        for array in self._arrays().values():
            if array is not None:
                array.setflags(write=False)

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of names, shapes, dtypes (little-endian) and bytes of the arrays: ties a result to its data.

        The order of examples counts, the source's name does not: one set read from gzip and from raw files is equal.
        The tokenizer of text counts, the names of its domains do not.
        """
        digest, format = hashlib.sha256(), self.text or self.labelled
        if format is not None:
            digest.update(f"{format.num_tokens} {format.tokenizer_sha256}\n".encode())
        for name, array in self._arrays().items():
            if array is None:
                if name not in _LATER:
                    digest.update(f"{name} none\n".encode())
                continue
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.data)
        return digest.hexdigest()

    @property
    def image_bytes(self) -> int:
        images = (self.train_images, self.validation_images, self.test_images)
        return sum(array.nbytes for array in images if array is not None)

    def _arrays(self) -> dict[str, np.ndarray | None]:
        first = ("train_images", "train_labels", "test_images", "test_labels")
        return {name: getattr(self, name) for name in (*first, *_LATER)}


def load(name: str, folder: Path | None = None) -> Source:
    """Reads a data source by name.

    Args:
        name: one of
            `digits`: 1797 handwritten digits of 8 x 8 pixels in 0..16, part of scikit-learn, no test split;
            `idx:<folder>`, or `idx` with `folder`: a folder of four IDX files, the format of MNIST, in their order;
            `tfds:<name>[/config][:version]`: an image-classification set of TensorFlow Datasets, in its order
            (a hash shuffle, equal everywhere, which is not the order of the original files);
            `text:<domains>[?<options>]`: rows of tokens, see `cl_jax.text.source`;
            `labelled:<texts>[?<options>]`: texts with a label each, see `cl_jax.text.labelled`.
        folder: for `idx:<folder>` what a relative folder is relative to (default: where the process runs); for `tfds`
            a folder of prepared TFDS data or of the original files, see `cl_jax.sources.tfds`; for `text` and
            `labelled` the data folder, see `cl_jax.text.domains`; no meaning to `digits`.

    Raises:
        UserError: an unknown name, or data that is absent or not what it should be.
    """
    kind, _, rest = name.partition(":")
    if name == "digits":
        from cl_jax.sources import digits

        return digits.load()
    if kind == "idx":
        from cl_jax.sources import idx

        if not rest and folder is None:
            raise errors.UserError("data source 'idx' needs the folder of its files: 'idx:<folder>'.")
        return idx.load((folder or Path()) / Path(rest).expanduser(), name)
    if kind == "tfds" and rest:
        from cl_jax.sources import tfds

        return tfds.load(rest, folder)
    if name.startswith("text:"):
        from cl_jax.text import source

        return source.load(name, folder)
    if name.startswith("labelled:"):
        from cl_jax.text import labelled

        return labelled.load(name, folder)
    raise errors.unknown("data source", name, KNOWN)

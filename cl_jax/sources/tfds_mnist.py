"""Prepares the MNIST family of TensorFlow Datasets without TensorFlow.

TFDS's own builders extract and read these files through TensorFlow. Here the stock builder is subclassed under its own
name and version, with the same files, checksums, keys and features, so what is written is what the stock builder reads.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cl_jax.sources import idx

FAMILY = ("mnist", "fashion_mnist", "kmnist")
_FILES = {part: (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k")}


def builder_class(stock: Any, url_infos: dict[str, Any]) -> Any:
    """The TensorFlow-free twin of a stock builder class of the family.

    Args:
        stock: the builder class of TFDS.
        url_infos: url -> size, checksum and file name of each original; what does not match them is refused.
    """
    import PIL.Image
    from tensorflow_datasets.core import registered

    # Only `download`, never `download_and_extract`: extraction is TensorFlow's, and it keeps its results by file name,
    # which mnist and fashion_mnist share.
    def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
        urls = {Path(url).name: url for url in url_infos}
        paths = {part: [dl_manager.download(urls[name]) for name in names] for part, names in _FILES.items()}
        return {"train": self._generate_examples(*paths["train"]), "test": self._generate_examples(*paths["t10k"])}

    def generate_examples(self: Any, images: Any, labels: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        pairs = zip(idx.read(Path(images), 3), idx.read(Path(labels), 1), strict=True)
        for key, (image, label) in enumerate(pairs):
            # An array would be encoded by TensorFlow, an image object is encoded by Pillow.
            yield key, {"image": PIL.Image.fromarray(image), "label": int(label)}

    content = {
        "name": stock.name,
        "url_infos": url_infos,
        "__module__": __name__,
        "_split_generators": split_generators,
        "_generate_examples": generate_examples,
    }
    with registered.skip_registration():
        return type(stock)(stock.__name__, (stock,), content)

"""IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST: a short header and the bytes of one array.

Header: two zero bytes, one byte of dtype (0x08: uint8, the only one taken), one byte D = number of dimensions, then
D big-endian uint32 sizes. The files are untrusted: no more memory is taken than the header claims, and no header is
believed that claims more than the file can hold.

Source: LeCun, Cortes and Burges 1998, the MNIST database.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from cl_jax.errors import UserError
from cl_jax.sources import Source

_STEMS = {
    "images": ("{}-images-idx3-ubyte", "{}-images.idx3-ubyte"),
    "labels": ("{}-labels-idx1-ubyte", "{}-labels.idx1-ubyte"),
}
_LISTED = 8  # names of a folder's content that a message shows
_DEFLATE_RATIO = 1032  # DEFLATE never expands by more
_CHUNK = 1 << 20  # bytes read at a time


def load(folder: Path, name: str) -> Source:
    """Reads the four IDX files of a folder, in their order.

    Args:
        folder: holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
            t10k-labels-idx1-ubyte, each gzipped (with or without `.gz`) or not, also with `.idx` for `-idx`. Where a
            file is there both ways, the one without `.gz` is read.
        name: what to call the source.

    Returns:
        Images [N, H, W, 1]; num_classes = largest label + 1.

    Raises:
        UserError: a file is missing or broken, or the files do not belong together.
    """
    paths = _find(folder)
    train_images, train_labels = _pair(paths["train", "images"], paths["train", "labels"])
    test_images, test_labels = _pair(paths["t10k", "images"], paths["t10k", "labels"])
    if train_images.shape[1:] != test_images.shape[1:]:
        sizes = " and ".join("{} x {}".format(*images.shape[1:3]) for images in (train_images, test_images))
        raise UserError(f"training and test images in {folder} differ in size: {sizes}; put files of one set there.")
    num_classes = 1 + int(max(train_labels.max(), test_labels.max()))
    return Source(name, train_images, train_labels, test_images, test_labels, num_classes, pixel_max=255)


def read(path: Path, num_dimensions: int) -> np.ndarray:
    """One IDX file of bytes, gzipped or not (its first bytes tell, not its name), as uint8 [...].

    Raises:
        UserError: not a readable file; not IDX, of another dtype or number of dimensions; empty, shorter or longer
            than its header says; damaged gzip data.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; an IDX file is expected there.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not compressed:
                return _parse(file, path, num_dimensions, size)
            with gzip.GzipFile(fileobj=file) as stream:
                return _parse(stream, path, num_dimensions, size * _DEFLATE_RATIO)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; download or copy it again.") from error


def _parse(stream: IO[bytes] | gzip.GzipFile, path: Path, num_dimensions: int, limit: int) -> np.ndarray:
    expected = bytes([0, 0, 0x08, num_dimensions])
    magic = stream.read(4)
    if magic != expected:
        raise UserError(
            f"{path} starts with bytes {magic.hex(' ') or 'none (it is empty)'}, expected {expected.hex(' ')}: IDX of "
            f"uint8 with {num_dimensions} dimension{'s' * (num_dimensions > 1)}; download or copy it again."
        )
    sizes = stream.read(4 * num_dimensions)
    if len(sizes) < 4 * num_dimensions:
        raise UserError(f"{path} ends within its header; download or copy it again.")
    shape = struct.unpack(f">{num_dimensions}I", sizes)
    count, text = math.prod(shape), " x ".join(map(str, shape))
    if count == 0:
        raise UserError(f"{path} has no data: its header says {text}; a set needs at least one example.")
    if count > limit:
        raise UserError(
            f"{path}: its header says {text} = {count} bytes, more than a file of its size can hold; "
            "download or copy it again."
        )
    try:
        array = np.empty(count, np.uint8)
    except MemoryError as error:
        raise UserError(f"{path} needs {count / 2**30:.1f} GiB of memory, more than there is.") from error
    filled = 0
    while chunk := stream.read(min(_CHUNK, count - filled)):
        array[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
        filled += len(chunk)
    # Reading past the end also makes gzip compare its checksum.
    if filled < count or stream.read(1):
        found = f"only {filled}" if filled < count else "more"
        raise UserError(f"{path}: its header says {text} = {count} bytes, it holds {found}; download or copy it again.")
    return array.reshape(shape)


def _pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read(images_path, 3), read(labels_path, 1)
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} has {len(images)} images, {labels_path.name} beside it has {len(labels)} labels; "
            "put files of one set there."
        )
    return images[..., None], labels.astype(np.int32)


def _find(folder: Path) -> dict[tuple[str, str], Path]:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is {'not a folder' if folder.exists() else 'not there'}; give a folder of IDX files."
        )
    paths, missing = {}, []
    for part in ("train", "t10k"):
        for content, stems in _STEMS.items():
            names = [stem.format(part) + suffix for suffix in ("", ".gz") for stem in stems]
            there = [folder / name for name in names if (folder / name).exists()]
            if there:
                paths[part, content] = next((path for path in there if path.is_file()), there[0])
            else:
                missing.append(f"{stems[0].format(part)}[.gz]")
    if missing:
        held = sorted(path.name for path in folder.iterdir())
        more = f" and {len(held) - _LISTED} more" if len(held) > _LISTED else ""
        raise UserError(
            f"{folder} lacks {', '.join(missing)}; it holds {', '.join(held[:_LISTED]) or 'nothing'}{more}. "
            "An IDX source is a folder with the four files of MNIST's format."
        )
    return paths

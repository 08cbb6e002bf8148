"""Small IDX folders to read, and the real MNIST files where they are at hand."""

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ARRAYS = {
    "train-images-idx3-ubyte": (6, 5, 4),
    "train-labels-idx1-ubyte": (6,),
    "t10k-images-idx3-ubyte": (3, 5, 4),
    "t10k-labels-idx1-ubyte": (3,),
}


@pytest.fixture
def idx_arrays() -> Callable[..., dict[str, np.ndarray]]:
    """Arrays of a small set by file name; images of 5 x 4 pixels (or as said), labels in 0..3."""

    def make(seed: int = 0, size: tuple[int, int] = (5, 4)) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        arrays = {}
        for name, (count, *rest) in ARRAYS.items():
            top = 256 if rest else 4
            arrays[name] = rng.integers(0, top, (count, *size) if rest else (count,)).astype(np.uint8)
        return arrays

    return make


@pytest.fixture
def write_idx() -> Callable[..., Path]:
    """Writes arrays as IDX files, byte by byte from the format's description; returns the folder."""

    def write(folder: Path, arrays: dict[str, np.ndarray], compressed: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            path = folder / (f"{name}.gz" if compressed else name)
            path.write_bytes(gzip.compress(content, mtime=0) if compressed else content)
        return folder

    return write


@pytest.fixture
def data_folder(pytestconfig: pytest.Config) -> Path:
    """A folder with mnist/ and fashion_mnist/ in their original files; the test is skipped without it."""
    given = os.environ.get("CL_JAX_DATA")
    folder = Path(given) if given else pytestconfig.rootpath.parent / "shared" / "data"
    if not (folder / "mnist" / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no MNIST files in {folder}; set CL_JAX_DATA to a folder with mnist/ and fashion_mnist/")
    return folder

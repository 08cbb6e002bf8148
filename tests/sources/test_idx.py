"""IDX files: what is written is read, and nothing broken or hostile gets through or raises anything but UserError."""

import gzip
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cl_jax.errors import UserError
from cl_jax.sources import load

FUZZ_ROUNDS = 300
TRAIN_HISTOGRAM = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # as published for MNIST
TEST_HISTOGRAM = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"


@pytest.fixture
def folder(tmp_path: Path, idx_arrays: Callable, write_idx: Callable) -> Path:
    return write_idx(tmp_path / "set", idx_arrays())


@pytest.mark.parametrize("compressed", [False, True])
def test_round_trip(tmp_path: Path, idx_arrays: Callable, write_idx: Callable, compressed: bool) -> None:
    arrays = idx_arrays()
    name = f"idx:{write_idx(tmp_path / 'set', arrays, compressed)}"
    source = load(name)
    assert source.name == name and source.pixel_max == 255
    assert source.train_images.shape == (6, 5, 4, 1) and source.train_images.dtype == np.uint8
    assert source.train_labels.dtype == np.int32
    np.testing.assert_array_equal(source.train_images[..., 0], arrays[IMAGES])
    np.testing.assert_array_equal(source.train_labels, arrays[LABELS])
    np.testing.assert_array_equal(source.test_images[..., 0], arrays["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(source.test_labels, arrays["t10k-labels-idx1-ubyte"])
    assert source.num_classes == 1 + max(arrays[LABELS].max(), arrays["t10k-labels-idx1-ubyte"].max())


def test_folder_is_named_in_three_ways(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = load(f"idx:{folder}").sha256
    assert load("idx", folder).sha256 == digest
    assert load(f"idx:{folder.name}", folder.parent).sha256 == digest
    monkeypatch.chdir(folder.parent)
    assert load(f"idx:{folder.name}").sha256 == digest
    with pytest.raises(UserError, match="needs the folder"):
        load("idx")


def test_gzip_is_told_by_content_and_dots_stand_for_dashes(folder: Path) -> None:
    digest = load("idx", folder).sha256
    (folder / IMAGES).rename(folder / "train-images.idx3-ubyte")
    (folder / LABELS).rename(folder / f"{LABELS}.gz")  # unpacked on the way, name kept
    test_images = folder / "t10k-images-idx3-ubyte"
    test_images.write_bytes(gzip.compress(test_images.read_bytes()))
    assert load("idx", folder).sha256 == digest


def test_real_mnist(data_folder: Path) -> None:
    source = load("idx:mnist", data_folder)
    assert source.train_images.shape == (60000, 28, 28, 1) and source.test_images.shape == (10000, 28, 28, 1)
    assert np.bincount(source.train_labels).tolist() == TRAIN_HISTOGRAM
    assert np.bincount(source.test_labels).tolist() == TEST_HISTOGRAM
    assert source.num_classes == 10 and source.train_images.max() == 255


def header(*shape: int, dtype: int = 8) -> bytes:
    return bytes([0, 0, dtype, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


BROKEN = {
    "empty": (IMAGES, b"", "it is empty"),
    "web page": (IMAGES, b"<!DOCTYPE html>", "3c 21 44 4f.*expected 00 00 08 03"),
    "other dtype": (IMAGES, header(6, 5, 4, dtype=0x0D) + bytes(480), "00 00 0d 03.*expected 00 00 08 03"),
    "other dimensions": (IMAGES, header(120) + bytes(120), "00 00 08 01.*3 dimensions"),
    "half a header": (IMAGES, header(6, 5, 4)[:9], "ends within its header"),
    "no examples": (IMAGES, header(0, 5, 4), "no data.*0 x 5 x 4"),
    "claims more": (IMAGES, header(7, 5, 4) + bytes(120), "7 x 5 x 4 = 140 bytes, more than"),
    "claims a little more": (IMAGES, header(2, 6, 11) + bytes(120), "2 x 6 x 11 = 132 bytes, it holds only 120"),
    "gzip that claims more": (IMAGES, gzip.compress(header(7, 5, 4) + bytes(120)), "140 bytes, it holds only 120"),
    "claims everything": (IMAGES, header(2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(120), "more than a file"),
    "claims less": (IMAGES, header(5, 5, 4) + bytes(120), "5 x 5 x 4 = 100 bytes, it holds more"),
    "images and labels": (LABELS, header(5) + bytes(5), "6 images.*5 labels"),
    "other size": (IMAGES, header(6, 4, 5) + bytes(120), "4 x 5 and 5 x 4"),
    "gzip cut short": (IMAGES, gzip.compress(header(6, 5, 4) + bytes(120))[:-12], "cannot be read"),
    "gzip with a wrong checksum": (
        IMAGES,
        gzip.compress(header(6, 5, 4) + bytes(120))[:-8] + bytes(8),
        "cannot be read",
    ),
    "gzip of nothing": (IMAGES, gzip.compress(b""), "it is empty"),
    "gzip in name only": (IMAGES, b"\x1f\x8b" + bytes(50), "cannot be read"),
    "gzip that claims everything": (IMAGES, gzip.compress(header(2**31, 2**31, 4) + bytes(120)), "more than a file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_is_refused_by_name(folder: Path, case: str) -> None:
    name, content, message = BROKEN[case]
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load("idx", folder)
    assert str(folder) in str(caught.value)
    if case != "other size":
        assert name in str(caught.value)


def test_missing_files_are_listed(folder: Path) -> None:
    (folder / LABELS).unlink()
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(UserError) as caught:
        load("idx", folder)
    lacks, holds = str(caught.value).split("it holds")
    assert f"{LABELS}[.gz]" in lacks and "t10k-images-idx3-ubyte[.gz]" in lacks and IMAGES not in lacks
    assert IMAGES in holds and "t10k-labels-idx1-ubyte" in holds


def test_folders_that_are_none(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="not there"):
        load("idx", tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a folder"):
        load("idx", folder / IMAGES)
    (folder / LABELS).unlink()
    (folder / LABELS).mkdir()
    with pytest.raises(UserError, match=f"{LABELS} is not a file"):
        load("idx", folder)


def test_no_more_is_unpacked_than_the_header_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / LABELS).write_bytes(gzip.compress(header(6) + bytes(50_000_000)))
    unpacked = []
    read = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int = -1) -> bytes:
        unpacked.append(read(self, size))
        return unpacked[-1]

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(UserError, match="holds more"):
        load("idx", folder)
    assert sum(map(len, unpacked)) == len(header(6)) + 6 + 1


def mutate(content: bytes, rng: random.Random) -> bytes:
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(content) or 1)
        kind = rng.choice(["flip", "set", "cut", "insert", "drop", "header"])
        if kind == "flip" and content:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == "set" and content:
            content[at] = rng.choice([0, 1, 8, 0x7F, 0x80, 0xFF])
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = rng.randbytes(rng.randint(1, 20))
        elif kind == "drop":
            del content[at : at + rng.randint(1, 20)]
        else:
            content[: rng.randint(1, 16)] = rng.randbytes(rng.randint(1, 16))
    return bytes(content)


def test_fuzz(tmp_path: Path, idx_arrays: Callable, write_idx: Callable) -> None:
    rng = random.Random(0)
    originals = [write_idx(tmp_path / str(compressed), idx_arrays(), compressed) for compressed in (False, True)]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(FUZZ_ROUNDS):
        folder = tmp_path / "mutated"
        shutil.copytree(rng.choice(originals), folder)
        path = rng.choice(sorted(folder.iterdir()))
        path.write_bytes(mutate(path.read_bytes(), rng))
        try:
            source = load("idx", folder)
            assert len(source.train_images) == len(source.train_labels) > 0
            outcomes["read"] += 1
        except UserError:
            outcomes["refused"] += 1
        shutil.rmtree(folder)
    assert outcomes["read"] > 10 and outcomes["refused"] > 100, outcomes

"""TensorFlow Datasets without TensorFlow: small originals stand in for the real ones, which only slow tests prepare."""

import contextlib
import functools
import hashlib
import http.server
import importlib.util
import io
import json
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cl_jax.errors import UserError
from cl_jax.sources import Source, idx, load, tfds_prepare

SIZE = (28, 28)  # TFDS fixes the family's image size


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees or leaves data outside its own folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A machine without network; returns the addresses asked for."""
    asked = []

    def refuse(address: tuple[str, int], timeout: float) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    return asked


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the small files of a folder those that TFDS registered for a set."""
    registered: dict[str, dict[str, Any]] = {}
    real = tfds_prepare._originals

    def use(name: str, folder: Path, url: str = "http://original.invalid/") -> None:
        from tensorflow_datasets.core.download import checksums

        registered[name] = {
            f"{url}{path.name}": checksums.UrlInfo(
                size=path.stat().st_size, checksum=hashlib.sha256(path.read_bytes()).hexdigest(), filename=path.name
            )
            for path in sorted(folder.iterdir())
        }

    monkeypatch.setattr(tfds_prepare, "_originals", lambda builder: registered.get(builder.name) or real(builder))
    return use


@pytest.fixture
def small(tmp_path: Path, idx_arrays: Callable, write_idx: Callable, register: Callable) -> Callable[..., Path]:
    """Writes and registers the originals of a small set of the family."""

    def make(name: str = "mnist", seed: int = 0, folder: Path | None = None) -> Path:
        folder = write_idx(folder or tmp_path / f"{name}-originals", idx_arrays(seed, SIZE), compressed=True)
        register(name, folder)
        return folder

    return make


def examples(source: Source) -> list[list[tuple[bytes, int]]]:
    """Images and labels of both splits, in an order of their own."""
    splits = [(source.train_images, source.train_labels), (source.test_images, source.test_labels)]
    return [sorted(zip(map(bytes, images), labels.tolist(), strict=True)) for images, labels in splits]


def test_prepared_from_originals_and_read_again(small: Callable, places: Path, offline: list) -> None:
    folder = small()
    source = load("tfds:mnist", folder)
    assert source.name == "tfds:mnist:3.0.1" and source.num_classes == 10 and source.pixel_max == 255
    assert source.train_images.shape == (6, *SIZE, 1) and source.train_images.dtype == np.uint8
    assert source.train_labels.dtype == np.int32
    assert examples(source) == examples(load("idx", folder))
    shutil.rmtree(folder)
    for name, where in [("tfds:mnist", None), ("tfds:mnist:3.0.1", None), ("tfds:mnist", places / "tfds")]:
        assert load(name, where).sha256 == source.sha256
    assert not offline and not (places / "cache").exists() and not (places / "home").exists()


def test_stock_builder_reads_what_was_prepared(small: Callable, places: Path) -> None:
    import tensorflow_datasets as tfds

    source = load("tfds:mnist", small())
    stock = tfds.builder("mnist", data_dir=places / "tfds", file_format="array_record").as_data_source("train")
    assert [example["label"] for example in stock] == source.train_labels.tolist()
    np.testing.assert_array_equal(np.stack([example["image"] for example in stock]), source.train_images)


def test_sets_that_share_file_names_stay_apart(small: Callable, places: Path, offline: list) -> None:
    both = places / "both"
    for seed, name in enumerate(("mnist", "fashion_mnist", "kmnist")):
        small(name, seed, both / name)
    sources = {name: load(f"tfds:{name}", both) for name in ("mnist", "fashion_mnist", "kmnist")}
    for name, source in sources.items():
        assert examples(source) == examples(load(f"idx:{name}", both))
    assert len({source.sha256 for source in sources.values()}) == 3


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_damaged_original_is_refused_by_name(small: Callable, places: Path, name: str) -> None:
    folder = small()
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is not the original of TFDS set 'mnist'.*original.invalid"):
        load("tfds:mnist", folder)
    assert not (places / "tfds" / "mnist").exists()


def test_downloaded(small: Callable, register: Callable, places: Path) -> None:
    folder = small()
    handler = functools.partial(QuietHandler, directory=folder)
    with served(handler) as url:
        register("mnist", folder, url)
        source = load("tfds:mnist")
    assert examples(source) == examples(load("idx", folder))


def test_downloaded_page_that_is_not_the_file_is_refused(small: Callable, register: Callable, places: Path) -> None:
    folder = small()
    with served(functools.partial(QuietHandler, directory=folder)) as url:
        register("mnist", folder, url)
        (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>please log in</html>")
        with pytest.raises(UserError, match=r"could not be prepared.*t10k-labels-idx1-ubyte\.gz.*wrong checksum"):
            load("tfds:mnist")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def served(handler: Any) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_neither_data_nor_network(places: Path, offline: list, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        load("tfds:mnist")
    for part in (
        "train-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "storage.googleapis.com",
        str(places / "tfds"),
    ):
        assert part in str(caught.value)
    assert offline == [("storage.googleapis.com", 443)]
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    with pytest.raises(UserError, match="does not answer"):
        load("tfds:mnist")
    assert offline[1:] == [("proxy.invalid", 3128)]


def test_only_what_is_missing_is_asked_of_the_network(small: Callable, offline: list) -> None:
    folder = small()
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        UserError, match=r"-originals lacks t10k-labels-idx1-ubyte\.gz; and original\.invalid does not answer"
    ):
        load("tfds:mnist", folder)


def test_probe_does_not_wait_for_a_slow_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def wait(address: tuple[str, int], timeout: float) -> io.BytesIO:
        release.wait(10)
        return io.BytesIO()

    monkeypatch.setattr(socket, "create_connection", wait)
    assert not tfds_prepare._reachable("https://slow.invalid/file")
    release.set()


def test_data_in_another_format_is_passed_over(small: Callable, places: Path) -> None:
    other = places / "tfds" / "mnist" / "3.0.1"
    other.mkdir(parents=True)
    (other / "dataset_info.json").write_text(
        json.dumps({"name": "mnist", "version": "3.0.1", "fileFormat": "tfrecord"})
    )
    folder = small()
    assert examples(load("tfds:mnist", folder)) == examples(load("idx", folder))
    assert (places / "cache" / "cl_jax" / "tfds" / "mnist" / "3.0.1" / "dataset_info.json").exists()
    assert [path.name for path in other.iterdir()] == ["dataset_info.json"]


def test_cache_is_used_without_a_local_data_folder_of_tfds(
    small: Callable, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/tfds")
    monkeypatch.chdir(places)
    load("tfds:mnist", small())
    assert (places / "cache" / "cl_jax" / "tfds" / "mnist").is_dir() and not (places / "gs:").exists()


def test_broken_prepared_data_is_refused_by_folder(small: Callable, places: Path) -> None:
    folder = small()
    load("tfds:mnist", folder)
    data = places / "tfds" / "mnist" / "3.0.1"
    shard = next(data.glob("mnist-train*"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match=r"3\.0\.1 cannot be read.*delete that folder"):
        load("tfds:mnist", folder)
    (data / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"3\.0\.1 is broken.*delete that folder"):
        load("tfds:mnist", folder)
    (data / "dataset_info.json").unlink()
    with pytest.raises(UserError, match=r"3\.0\.1 is there without data; delete that folder"):
        load("tfds:mnist", folder)


def test_two_that_prepare_at_once(small: Callable, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one prepares, another starts with the same random state, finishes first, and both read the same data."""
    folder, read, sources, unfinished = small(), idx.read, [], []

    def read_after_the_other(path: Path, num_dimensions: int) -> np.ndarray:
        if not sources:
            sources.append(None)
            random.seed(0)
            sources[0] = load("tfds:mnist", folder)
            unfinished.extend((places / "tfds" / "mnist").glob("incomplete*"))
        return read(path, num_dimensions)

    monkeypatch.setattr(idx, "read", read_after_the_other)
    random.seed(0)
    state = random.getstate()
    source = load("tfds:mnist", folder)
    assert len(unfinished) == 1, "both wrote into one folder"
    assert sources[0].sha256 == source.sha256
    assert examples(source) == examples(load("idx", folder))
    assert [path.name for path in (places / "tfds" / "mnist").iterdir()] == ["3.0.1"]
    assert random.getstate() == state


def prepare_small_cifar(folder: Path, test_split: bool, label: int = 7) -> np.ndarray:
    """CIFAR-10 of four training images in TFDS's own format, made without the real files."""
    import PIL.Image
    import tensorflow_datasets as tfds

    stock = tfds.builder_cls("cifar10")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    with tfds.core.registered.skip_registration():

        class Small(stock):
            name = "cifar10"

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                splits = ("train", "test") if test_split else ("train",)
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                for key, image in enumerate(images):
                    yield key, {"id": f"{split}_{key}", "image": PIL.Image.fromarray(image), "label": label}

    Small(data_dir=folder, file_format="array_record").download_and_prepare()
    return images


@pytest.mark.parametrize("test_split", [False, True])
def test_any_prepared_set_of_images_is_read(places: Path, offline: list, test_split: bool) -> None:
    images = prepare_small_cifar(places / "mine", test_split)
    source = load("tfds:cifar10", places / "mine")
    assert source.name == "tfds:cifar10:3.0.2" and source.num_classes == 10
    assert sorted(map(bytes, source.train_images)) == sorted(map(bytes, images))
    assert source.train_labels.tolist() == [7] * 4
    assert (source.test_images is not None) == (source.test_labels is not None) == test_split


def test_unlabelled_set_is_refused(places: Path) -> None:
    prepare_small_cifar(places / "mine", test_split=False, label=-1)
    with pytest.raises(UserError, match="without labels"):
        load("tfds:cifar10", places / "mine")


def test_other_sets_need_tensorflow(offline: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs TensorFlow.*pip install 'cl_jax\[tensorflow\]'"):
        load("tfds:cifar10")
    assert not offline


@pytest.mark.parametrize("name", ["emnist/letters:3.1.0", "emnist/letters"])
def test_other_sets_are_prepared_by_their_own_builder(places: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The set's own code stands in for what would run TensorFlow; configuration and version must reach it."""
    import PIL.Image
    import tensorflow_datasets as tfds

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
        image = PIL.Image.fromarray(np.full(SIZE, len(self.builder_config.name), np.uint8))
        return {"train": iter([(0, {"image": image, "label": 36})])}

    monkeypatch.setattr(tfds.builder_cls("emnist"), "_split_generators", split_generators)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    monkeypatch.setattr(tfds_prepare, "_originals", lambda builder: {})
    source = load(f"tfds:{name}")
    assert source.name == "tfds:emnist/letters:3.1.0" and source.num_classes == 37 and source.test_images is None
    assert np.unique(source.train_images).tolist() == [len("letters")] and source.train_labels.tolist() == [36]
    assert (places / "tfds" / "emnist" / "letters" / "3.1.0").is_dir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnst", "unknown TFDS set 'mnst'.*Did you mean 'mnist'"),
        ("CIFAR10", "unknown TFDS set 'CIFAR10'.*Did you mean 'cifar10'"),
        ("emnist/lettres", "known: balanced.*Did you mean 'letters'"),
        ("mnist/letters", "'mnist' has no configurations"),
        ("mnist:9.9.9", r"mnist:9\.9\.9.*only: 3\.0\.1"),
        ("mnist/a=3", "not of the form"),
        ("../mnist", "not of the form"),
        ("ag_news_subset", "'ag_news_subset' is not a set of uint8 images.*title: Text"),
        ("imagenet2012", r"not a set of uint8 images of one shape.*None, None, 3"),
        ("celeb_a", "not a set of uint8 images.*attributes"),
    ],
)
def test_wrong_name_is_refused(offline: list, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(f"tfds:{name}")


def test_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not there"):
        load("tfds:mnist", tmp_path / "nowhere")


def test_nothing_is_printed_and_settings_are_left_alone(
    small: Callable,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from absl import logging
    from tensorflow_datasets.core.utils import tqdm_utils

    folder = small()
    before = logging.get_verbosity()
    monkeypatch.setattr(tqdm_utils, "_active", True)
    logging.set_verbosity(logging.INFO)
    try:
        load("tfds:mnist", folder)
        assert (logging.get_verbosity(), tqdm_utils._active) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.slow
def test_real_mnist_and_then_fashion_mnist(data_folder: Path, offline: list) -> None:
    mnist, fashion = (load(f"tfds:{name}", data_folder) for name in ("mnist", "fashion_mnist"))
    assert examples(mnist) == examples(load("idx:mnist", data_folder))
    assert examples(fashion) == examples(load("idx:fashion_mnist", data_folder))
    assert mnist.sha256 != fashion.sha256

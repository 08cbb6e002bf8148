"""Files that nobody vouches for: what the format allows is read right, all else is refused with a message."""

import json
import random
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cl_jax.errors import UserError
from cl_jax.weights import safetensors, strict_json

FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, bytes or what is to be JSON, by the format's description."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def read(tmp_path: Path, content: bytes) -> safetensors.File:
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    return safetensors.read(path)


def every_dtype() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {
        "f64": rng.normal(size=(2, 3)), "f32": rng.normal(size=(3, 1, 2)).astype(np.float32),
        "f16": rng.normal(size=5).astype(np.float16), "bf16": rng.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
        "i64": rng.integers(-9, 9, (2, 0, 3)), "i32": rng.integers(-9, 9, 3).astype(np.int32),
        "i16": np.array(-7, np.int16), "i8": rng.integers(-9, 9, 3).astype(np.int8), "u8": np.array([255], np.uint8),
        "bool": np.array([True, False, True]),
    }  # fmt: skip
    made["f32"][0, 0] = [np.nan, -np.inf]
    return made


def test_what_is_written_is_read_back_in_every_dtype(tmp_path: Path) -> None:
    tensors = every_dtype()
    path = tmp_path / "folder" / "all.safetensors"
    safetensors.write(path, {**tensors, "transposed": tensors["f64"].T}, {"about": "nothing"})
    held = safetensors.read(path)
    assert held.metadata == {"about": "nothing"}
    assert held.tensors.keys() == tensors.keys() | {"transposed"}
    np.testing.assert_array_equal(held.tensors["transposed"], tensors["f64"].T)
    for name, array in tensors.items():
        assert held.tensors[name].dtype == array.dtype and held.tensors[name].shape == array.shape
        assert held.tensors[name].tobytes() == array.tobytes()
        assert held.tensors[name].flags.aligned and not held.tensors[name].flags.writeable
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half-written is left


def test_the_bytes_written_are_those_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    safetensors.write(path, {"w": np.array([1, 2], np.int16)})
    content = path.read_bytes()
    header = b'{"__metadata__":{"format":"pt"},"w":{"dtype":"I16","shape":[2],"data_offsets":[0,4]}}'
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0 and content[8 : 8 + length].rstrip(b" ") == header
    assert content[8 + length :] == b"\1\0\2\0"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    class Broken(np.ndarray):
        def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
            raise OSError("no such disk")

    path = tmp_path / "one.safetensors"
    safetensors.write(path, {"w": np.ones(3)})
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"unknown dtype of 'z'.*complex64"):
        safetensors.write(path, {"w": np.zeros(3), "z": np.ones(2, np.complex64)})
    with pytest.raises(UserError, match="__metadata__"):
        safetensors.write(path, {"__metadata__": np.zeros(3)})
    assert path.read_bytes() == before


def test_unaligned_data_and_unsorted_names_are_read(tmp_path: Path) -> None:
    header = {
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
        "empty": {"dtype": "F32", "shape": [0, 7], "data_offsets": [1, 1]},
        "a": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]},
    }
    held = read(tmp_path, packed(header, b"\7" + np.float32(1.5).tobytes())).tensors
    assert (held["a"][()], held["b"][0], held["empty"].shape) == (7, 1.5, (0, 7))
    assert read(tmp_path, packed({})) == ({}, {})


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {**FLOAT, **changes}}


HOLE = {
    "v": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    "w": {**FLOAT, "shape": [1], "data_offsets": [4, 8]},
}
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "fewer than 8 bytes"),
    "seven bytes": (b"1234567", "fewer than 8 bytes"),
    "no header": (b"\0" * 8, "begins with b''"),
    "a length beyond the file": (packed(entry(), bytes(8), 10**6), "says that its header has 1000000 bytes"),
    "the largest length": (b"\xff" * 8 + b"{}", "says that its header has 18446744073709551615 bytes"),
    "a header too long": (packed(b"{" + b" " * strict_json.LARGEST + b"}"), "has a header of 8388610 bytes; the most"),
    "no object": (packed(b"[1]"), "not with '{'"),
    "no JSON": (packed(b"{w}"), "not valid JSON"),
    "two objects": (packed(b"{}{}"), "not valid JSON"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "not valid JSON.*utf-8"),
    "UTF-16": (packed('{"w": 1}'.encode("utf-16-le")), "not valid JSON"),
    "NaN": (packed(b'{"w": NaN}'), "NaN is not a number of JSON"),
    "a giant number": (packed(b'{"w": ' + b"9" * 5000 + b"}"), "a number of 5000 digits"),
    "deep": (packed(b'{"w": ' + b"[" * 200_000), "nested too deeply|not valid JSON"),
    "deep but closed": (packed(b'{"w": ' + b"[" * 900 + b"]" * 900 + b"}"), "nested too deeply|should have data_off"),
    "a name twice": (packed(b'{"w": %b, "w": 1}' % json.dumps(FLOAT).encode(), bytes(8)), "'w' is given twice"),
    "a field twice": (packed(b'{"w": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' is given twice"),
    "no fields": (packed({"w": 3}), "tensor 'w' should have data_offsets, dtype, shape and nothing else, not 3"),
    "a field missing": (packed({"w": {"dtype": "F32", "shape": []}}), "should have data_offsets, dtype, shape"),
    "a field more": (packed(entry(strides=[1]), bytes(8)), "and nothing else"),
    "another dtype": (packed(entry(dtype="FP32"), bytes(8)), "unknown dtype of tensor 'w'.*Did you mean 'F32'"),
    "a dtype that is none": (packed(entry(dtype=["F32"]), bytes(8)), "unknown dtype"),
    "a float as size": (packed(entry(shape=[2.0]), bytes(8)), r"has shape \[2.0\]"),
    "true as size": (packed(entry(shape=[True, 2]), bytes(8)), "has shape"),
    "a negative size": (packed(entry(shape=[-2]), bytes(8)), r"has shape \[-2\]"),
    "two negative sizes": (packed(entry(shape=[-1, -2]), bytes(8)), "has shape"),
    "no list as shape": (packed(entry(shape=2), bytes(8)), "has shape 2"),
    "too many dimensions": (packed(entry(shape=[1] * 8 + [2]), bytes(8)), "up to 8"),
    "a size that wraps around": (packed(entry(shape=[2**32, 2**32, 2]), bytes(8)), "larger than any array"),
    "a size that wraps around beside 0": (packed(entry(shape=[0, 2**61], data_offsets=[0, 0])), "larger than any"),
    "a large size": (packed(entry(shape=[2**40]), bytes(8)), "needs 4398046511104 bytes; data_offsets give 8"),
    "one offset": (packed(entry(data_offsets=[8]), bytes(8)), "expected two counts"),
    "negative offsets": (packed(entry(data_offsets=[-8, 0]), bytes(8)), "expected two counts"),
    "offsets beyond the data": (packed(entry(data_offsets=[8, 16]), bytes(8)), "bytes 8 to 16 of data that has 8"),
    "offsets the wrong way round": (packed(entry(data_offsets=[8, 0]), bytes(8)), "bytes 8 to 0"),
    "cut off": (packed(entry(), bytes(7)), "bytes 0 to 8 of data that has 7"),
    "shape and offsets differ": (packed(entry(shape=[1]), bytes(8)), "needs 4 bytes; data_offsets give 8"),
    "more data": (packed(entry(), bytes(9)), "1 bytes after tensor 'w' belong to no tensor"),
    "data of nothing": (packed({}, bytes(9)), "9 bytes after the beginning belong to no tensor"),
    "a hole": (packed(HOLE, bytes(8)), "'v' and tensor 'w' leave 3 bytes between them"),
    "a hole at the beginning": (packed(entry(shape=[1], data_offsets=[4, 8]), bytes(8)), "leave 4 bytes"),
    "an overlap": (packed({**entry(), "v": {**FLOAT, "data_offsets": [4, 12]}}, bytes(12)), "and tensor 'v' overlap"),
    "one place for two": (packed({**entry(), "v": FLOAT}, bytes(8)), "overlap"),
    "a BOOL of 2": (packed(entry(dtype="BOOL", data_offsets=[0, 2]), b"\1\2"), "neither 0 nor 1"),
    "metadata of numbers": (packed({"__metadata__": {"n": 1}}), "__metadata__ should be an object of texts"),
    "metadata a text": (packed({"__metadata__": "pt"}), "__metadata__ should be an object of texts"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_a_message(what: str, tmp_path: Path) -> None:
    content, words = REFUSED[what]
    with pytest.raises(UserError, match=words) as error:
        read(tmp_path, content)
    message = str(error.value)
    assert "some.safetensors" in message and len(message) < 700 + len(str(tmp_path))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "is not a file"), (tmp_path / "none", "is not there")):
        with pytest.raises(UserError, match=words):
            safetensors.read(path)


def by_description(content: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes of each tensor of a file that was accepted, read a second way."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    held = {}
    for name, fields in header.items():
        begin, end = (8 + length + offset for offset in fields["data_offsets"])
        assert end <= len(content) and end - begin == ITEM[fields["dtype"]] * int(
            np.prod(fields["shape"], dtype=object)
        )
        held[name] = (fields["dtype"], fields["shape"], content[begin:end])
    assert sum(len(raw) for _, _, raw in held.values()) == len(content) - 8 - length
    return held


VALUES = (
    0, 1, -1, 4, 7, 8, 2**31, 2**32, 2**53 + 1, 2**62, 2**63, 2**64, 10**19, 10**30, 1.5, -0.0, 1e308, True, None, "",
    "F32", "F64", "BF16", "F8_E4M3", "__metadata__", [], [0], [8, 0], [0, 8], [2**62, 2**62], [1] * 70, {}, {"w": 1},
)  # fmt: skip
SPLICES = (
    b"[" * 3000, b"{" * 3000, b'{"a":' * 2000, b"NaN", b"Infinity", b"-", b"9" * 400, b"1e999", b"\xff\xfe", b"\xc3",
    b"\0", b'"\\ud800"', b"\xef\xbb\xbf", b"}", b'"', b",", b'"f32":{}', b" " * 500, b"[[],[],[]]" * 100,
)  # fmt: skip


def flipped(rng: random.Random, content: bytes, low: int, high: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def mutations(valid: bytes) -> dict[str, Callable[[random.Random], bytes]]:
    """Ways to break a file, each with its own place to do it."""
    length = int.from_bytes(valid[:8], "little")
    header, data = json.loads(valid[8 : 8 + length]), valid[8 + length :]
    names = [name for name in header if name != "__metadata__"]

    def other_value(rng: random.Random) -> bytes:
        changed = json.loads(json.dumps(header))
        fields, key = changed[rng.choice(names)], rng.choice(("dtype", "shape", "data_offsets"))
        if key != "dtype" and fields[key] and rng.random() < 0.6:
            fields[key][rng.randrange(len(fields[key]))] = rng.choice(VALUES)
        else:
            fields[key] = rng.choice(VALUES)
        return packed(changed, data)

    def moved(rng: random.Random) -> bytes:
        changed = json.loads(json.dumps(header))
        offsets = changed[rng.choice(names)]["data_offsets"]
        step = rng.choice((-8, -4, -1, 1, 4, 8, len(data)))
        for i in rng.choice(((0,), (1,), (0, 1))):
            offsets[i] += step
        return packed(changed, data)

    def exchanged(rng: random.Random) -> bytes:
        changed = json.loads(json.dumps(header))
        one, two = rng.choice(names), rng.choice(names)
        key = rng.choice(("data_offsets", "shape", "dtype"))
        changed[one][key] = changed[two][key]
        return packed(changed, data)

    def spliced(rng: random.Random) -> bytes:
        at = rng.randrange(8, 8 + length)
        end = at + rng.choice((0, 0, 1, 5))
        text = valid[8:at] + rng.choice(SPLICES) + valid[end : 8 + length]
        return packed(text, data, None if rng.random() < 0.8 else length)

    def twice(rng: random.Random) -> bytes:
        name = rng.choice(names)
        again = json.dumps({rng.choice((name, "another")): header[name]}).encode()
        return packed(json.dumps(header).encode()[:-1] + b"," + again[1:], data)

    def other_length(rng: random.Random) -> bytes:
        wrong = rng.choice((0, 1, length - 1, length + 1, length + 8, 2**20, 2**31, 2**40, 2**63, 2**64 - 1))
        return wrong.to_bytes(8, "little") + valid[8:]

    return {
        "cut anywhere": lambda rng: valid[: rng.randrange(len(valid))],
        "cut in the header": lambda rng: valid[: rng.randrange(8 + length)],
        "longer": lambda rng: valid + rng.randbytes(rng.choice((1, 8, 1000))),
        "bits of the length": lambda rng: flipped(rng, valid, 0, 8),
        "bits of the header": lambda rng: flipped(rng, valid, 8, 8 + length),
        "bits of the data": lambda rng: flipped(rng, valid, 8 + length, len(valid)),
        "another value": other_value,
        "moved": moved,
        "exchanged": exchanged,
        "spliced": spliced,
        "twice": twice,
        "another length": other_length,
        "noise": lambda rng: rng.randbytes(rng.randrange(200)),
    }


def test_mutated_files_are_read_right_or_refused_and_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "mutated.safetensors"
    safetensors.write(path, every_dtype())
    ways = mutations(path.read_bytes())
    outcomes: Counter[tuple[str, str]] = Counter()
    rng = random.Random(0)
    tracemalloc.start()
    try:
        for i in range(1950):
            way = list(ways)[i % len(ways)]
            content = ways[way](rng)
            path.write_bytes(content)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                held = safetensors.read(path)
            except UserError as error:
                outcome = "refused"
                assert path.name in str(error) and len(str(error)) < 700 + len(str(path))
            else:
                outcome = "read"
            taken = tracemalloc.get_traced_memory()[1] - before
            assert taken < 40_000 + 10 * len(content), (way, i, taken, len(content))
            outcomes[way, outcome] += 1
            if outcome == "read":
                expected = by_description(content)
                assert held.tensors.keys() == expected.keys()
                for name, (dtype, shape, raw) in expected.items():
                    array = held.tensors[name]
                    assert (safetensors.DTYPES[dtype], tuple(shape)) == (array.dtype, array.shape)
                    assert array.tobytes() == raw
                del held
    finally:
        tracemalloc.stop()
    # Every way breaks files, and some of what it makes is still in the format where it can be.
    assert {way for way, outcome in outcomes if outcome == "refused"} == ways.keys()
    assert {"bits of the header", "bits of the data", "exchanged", "spliced", "twice"} <= {
        way for way, outcome in outcomes if outcome == "read"
    }


def test_a_header_full_of_small_values_takes_no_more_than_some_30_times_its_size(tmp_path: Path) -> None:
    path = tmp_path / "full.safetensors"
    for content in (b'{"w":[' + b",".join([b"{}"] * 50_000) + b"]}", b'{"w":[' + b",".join([b"[]"] * 50_000) + b"]}",
                    b'{"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(30_000)) + b"}}"):  # fmt: skip
        path.write_bytes(packed(content))
        tracemalloc.start()
        try:
            safetensors.read(path)
        except UserError as error:
            assert re.search("should have data_offsets", str(error))
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert taken < 40 * len(content)

"""Text by name: domains, splits by document, caps, digests; and what a mistake in the name is answered."""

import dataclasses
import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cl_jax.errors import UserError
from cl_jax.sources import Source, load
from cl_jax.text import made
from cl_jax.text.source import SPLITS, manifest, parse, split_of
from cl_jax.text.tokenizer import Bytes

MADE = "text:made_support,made_prose?bytes=60000&context=256"
# A change of this digest means that every result on made text is of other data.
MADE_SHA256 = "9b805cdf3702388d1c1433c843adf05072a44aad9069f6a8533e5d2adb47d69a"


@pytest.fixture(scope="module")
def source() -> Source:
    return load(MADE)


@pytest.fixture
def data_folder(pytestconfig: pytest.Config) -> Path:
    """A folder with banking77/, sgd/, text/ and gsm8k/; the test is skipped without it."""
    given = os.environ.get("CL_JAX_DATA")
    folder = Path(given) if given else pytestconfig.rootpath.parent / "shared" / "data"
    if not (folder / "text" / "tinyshakespeare.txt").is_file():
        pytest.skip(f"no texts in {folder}; set CL_JAX_DATA to a folder with banking77/, sgd/, text/ and gsm8k/")
    return folder


def arrays(source: Source) -> list[tuple[np.ndarray, np.ndarray]]:
    parts = [getattr(source, f"{split}_{part}") for split in SPLITS for part in ("images", "labels")]
    return list(zip(parts[::2], parts[1::2], strict=True))


def texts(rows: np.ndarray) -> set[bytes]:
    """Documents of rows of bytes, none left out: from an opening 255, maybe over several rows, to the closing one."""
    found, text = set(), None
    for row in rows:
        again = text is not None  # the first token was the last of the row before
        for token, mark, _ in row.tolist()[again:]:
            if mark > 1 and token == 255:
                found |= {text} if text is not None else set()
                text = None if text is not None else b""
            elif mark > 1:
                assert text is not None
                text += bytes([token])
    return found


def test_rows_labels_and_format(source: Source) -> None:
    for rows, labels in arrays(source):
        assert rows.dtype == np.uint8 and rows.shape == (len(labels), 257, 3)
        assert labels.dtype == np.int32 and labels.tolist() == sorted(labels) and set(labels) == {0, 1}
        assert not rows.flags.writeable and not labels.flags.writeable
    assert (source.name, source.num_classes, source.pixel_max) == (MADE, 2, 1)
    text = source.text
    assert text is not None and hash(text) == hash(dataclasses.replace(text))
    assert (text.num_tokens, text.context, text.domains) == (256, 256, ("made_support", "made_prose"))
    assert (text.tokenizer, text.tokenizer_sha256, text.start, text.end) == ("bytes", Bytes.sha256, 255, 255)
    assert source.image_bytes == sum(rows.nbytes for rows, _ in arrays(source))


def test_made_text_is_the_same_everywhere(source: Source) -> None:
    assert source.sha256 == MADE_SHA256 and load(MADE).sha256 == source.sha256


def test_splits_are_of_whole_documents_by_their_digest(source: Source) -> None:
    made_up = {document.text.encode() for document in made.support(60000) + made.prose(60000)}
    found = [texts(rows) for rows, _ in arrays(source)]
    assert found[0] | found[1] | found[2] == made_up and sum(map(len, found)) == len(made_up)
    for at, documents in enumerate(found):
        assert {split_of(hashlib.sha256(text).digest()) for text in documents} == {at}
    shares = np.array([sum(map(len, documents)) for documents in found]) / 120000
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.05)


def test_manifest_accounts_for_every_row_and_byte(source: Source) -> None:
    told = json.loads(json.dumps(manifest(source)))
    assert list(told) == ["made_support", "made_prose"]
    for label, (name, made_up) in enumerate([("made_support", made.support), ("made_prose", made.prose)]):
        documents, domain = made_up(60000), told[name]
        rows = {split: int((of == label).sum()) for split, (_, of) in zip(SPLITS, arrays(source), strict=True)}
        assert domain["rows"] == rows and domain["documents"] == len(documents) and domain["left_out"] == []
        assert domain["bytes"] == sum(document.size for document in documents) <= 60000
        counted = sum(int(part[of == label, :, 2].sum()) for part, of in arrays(source))
        assert domain["counted_bytes"] == counted == sum(document.counted_size for document in documents)
    again = manifest(load("text:made_support?bytes=60000&context=32"))["made_support"]
    assert again["sha256"] == told["made_support"]["sha256"] != told["made_prose"]["sha256"]
    with pytest.raises(UserError, match="'digits' is not of text"):
        manifest(load("digits"))


def write_documents(folder: Path, number: int, size: int = 100, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(first, first + number):
        (folder / f"{at}.txt").write_text(f"{at} ".ljust(size, "abcdefg"[at % 7]))
    return folder


def test_equal_documents_are_taken_once_whatever_their_names(tmp_path: Path) -> None:
    one, two = write_documents(tmp_path / "one", 80), tmp_path / "two"
    for path in one.iterdir():
        for copy in ("a", "b"):
            (two / copy).mkdir(parents=True, exist_ok=True)
            (two / copy / f"x{hash(path.name)}.txt").write_bytes(path.read_bytes())
    found = [load(f"text:mine={folder}") for folder in (one, two)]
    assert found[0].sha256 == found[1].sha256 and manifest(found[0]) == manifest(found[1])
    assert manifest(found[0])["mine"]["documents"] == 80
    assert load("text:mine=one", tmp_path).sha256 == found[0].sha256


def test_a_cap_leaves_documents_in_their_splits(tmp_path: Path) -> None:
    write_documents(tmp_path, 400)
    whole, some = load(f"text:mine={tmp_path}"), load(f"text:mine={tmp_path}?bytes=10000")
    for (every, _), (few, _), share in zip(arrays(whole), arrays(some), (0.8, 0.1, 0.1), strict=True):
        assert texts(few) < texts(every) and len(texts(few)) == pytest.approx(100 * share, abs=0.1)
    assert manifest(some)["mine"]["bytes"] == 10000
    # Beside other documents they stay, too.
    more = write_documents(write_documents(tmp_path / "more", 400), 100, first=1000)
    for (rows, _), (others, _) in zip(arrays(load(f"text:mine={more}")), arrays(whole), strict=True):
        assert texts(others) < texts(rows)


def test_a_large_document_is_still_held_out_and_training_makes_up_for_it(tmp_path: Path) -> None:
    write_documents(tmp_path, 60, size=1000)
    found = load(f"text:mine={tmp_path}?bytes=8000")
    assert [len(texts(rows)) for rows, _ in arrays(found)] == [6, 1, 1]
    with pytest.raises(UserError, match=r"'mine' has no rows for train within bytes=1500: of its 60 .*or more bytes"):
        load(f"text:mine={tmp_path}?bytes=1500")


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    write_documents(tmp_path, 1)
    with pytest.raises(
        UserError, match=r"text domain 'mine' has no rows for .* and .* within bytes=1000000: of its 1 "
    ):
        load(f"text:mine={tmp_path}")


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_documents(tmp_path, 60)
    for number in range(12):
        (tmp_path / f"latin{number:02}.txt").write_bytes(b"\xff")
    with caplog.at_level(logging.WARNING):
        found = load(f"text:mine={tmp_path}")
    told = manifest(found)["mine"]["left_out"]
    assert told[0] == "latin00.txt is not UTF-8 text (byte 0)" and told[-1] == "2 more" and len(told) == 11
    assert "'mine' leaves out: latin00.txt is not UTF-8" in caplog.text


def test_what_is_counted_counts_to_the_digest(tmp_path: Path) -> None:
    found = []
    for asker in ("user", "agent"):
        turns = [[{"role": asker, "content": f"{n}"}, {"role": "assistant", "content": "yes"}] for n in range(60)]
        lines = [json.dumps({"messages": both}).replace('"agent"', '"Customer"') for both in turns]
        path = tmp_path / f"{asker}.jsonl"
        path.write_text("\n".join(lines) if asker == "user" else "\n".join(lines).replace("assistant", "Agent"))
        found.append(load(f"text:mine={path}"))
    assert found[0].sha256 == found[1].sha256
    text = tmp_path / "all.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"Customer: {n}\nAgent: yes\n"}) for n in range(60)))
    other = load(f"text:mine={text}")
    assert [texts(rows) for rows, _ in arrays(other)] == [texts(rows) for rows, _ in arrays(found[0])]
    assert manifest(other)["mine"]["sha256"] != manifest(found[0])["mine"]["sha256"]


def test_digest_sees_validation_rows_and_the_tokenizer_but_not_names(source: Source) -> None:
    assert source.validation_images is not None and source.text is not None
    flipped = source.validation_images.copy()
    flipped[0, 0, 0] ^= 1
    others = [
        dataclasses.replace(source, validation_images=flipped),
        dataclasses.replace(source, validation_images=None, validation_labels=None),
        dataclasses.replace(source, text=dataclasses.replace(source.text, tokenizer_sha256="")),
        dataclasses.replace(source, text=None),
    ]
    assert len({source.sha256, *(other.sha256 for other in others)}) == 5
    renamed = dataclasses.replace(source.text, domains=("a", "b"))
    assert dataclasses.replace(source, name="other", text=renamed).sha256 == source.sha256


def test_code_is_this_pythons_library() -> None:
    found = load("text:code?bytes=150000")
    documents = set().union(*(texts(rows) for rows, _ in arrays(found)))
    library = {
        path.read_bytes().replace(b"\r\n", b"\n")
        for path in Path(os.__file__).parent.rglob("*.py")
        if not {"site-packages", "test", "idlelib"} & set(path.parts)
    }
    assert len(documents) > 10 and documents <= library
    assert max(map(len, documents)) <= 32 << 10
    assert manifest(found)["code"]["bytes"] == sum(map(len, documents)) <= 150000


def write_data_folder(folder: Path) -> Path:
    """A data folder with small files in the layouts of the published ones."""
    for inner in ("banking77", "sgd/train", "text", "gsm8k"):
        (folder / inner).mkdir(parents=True)
    for part, numbers in (("train", range(80)), ("test", range(60, 120))):
        rows = "".join(f"card {number} lost?,lost_card\n" for number in numbers)
        (folder / "banking77" / f"{part}.csv").write_text(f"text,category\n{rows}")
        lines = [json.dumps({"question": f"{number} + 1?", "answer": f"#### {number + 1}"}) for number in numbers]
        (folder / "gsm8k" / f"{part}.jsonl").write_text("\n".join(lines))
        articles = "".join(f" = A{number} = \n \n text {number} \n \n = = B = = \n \n" for number in numbers)
        (folder / "text" / f"wikitext-2.{part}.txt").write_text(f" \n{articles}")
    (folder / "text" / "wikitext-2.README").write_text("about")
    talks = [
        {"turns": [{"speaker": "USER", "utterance": f"{n}?"}, {"speaker": "SYSTEM", "utterance": "Yes."}]}
        for n in range(60)
    ]
    (folder / "sgd" / "train" / "dialogues_001.json").write_text(json.dumps(talks))
    (folder / "sgd" / "train" / "schema.json").write_text("[]")
    (folder / "text" / "tinyshakespeare.txt").write_text("".join(f"KING:\nline {n}\n\n" for n in range(20000)))
    return folder


def test_named_domains_in_a_data_folder(tmp_path: Path) -> None:
    folder = write_data_folder(tmp_path / "data")
    found = load("text:support,prose,maths,banking77,dialogues,shakespeare,wikitext", folder)
    told = manifest(found)
    documents = {name: domain["documents"] for name, domain in told.items()}
    expected = {"banking77": 120, "dialogues": 60, "support": 180, "wikitext": 120, "maths": 120}
    assert {name: documents[name] for name in expected} == expected
    assert documents["prose"] == 120 + documents["shakespeare"] and documents["shakespeare"] > 60
    by_label = [set().union(*(texts(rows[of == label]) for rows, of in arrays(found))) for label in range(7)]
    assert b"card 7 lost?\nIntent: lost_card\n" in by_label[0] and b"Customer: 7?\nAgent: Yes.\n" in by_label[0]
    assert b"Question: 7 + 1?\nAnswer: #### 8\n" in by_label[2]
    assert b" = A7 = \n \n text 7 \n \n = = B = = \n \n" in by_label[6]


@pytest.mark.parametrize(
    ("name", "inner"), [("banking77", "banking77"), ("dialogues", "sgd"), ("maths", "gsm8k"), ("prose", "text")]
)
def test_the_folder_of_one_set_will_do(tmp_path: Path, name: str, inner: str) -> None:
    folder = write_data_folder(tmp_path / "data")
    assert load(f"text:{name}", folder / inner).sha256 == load(f"text:{name}", folder).sha256


def test_a_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'banking77' needs a data folder that holds banking77/train.csv; give --data"):
        load("text:support")
    with pytest.raises(UserError, match=r"'maths': .* holds neither gsm8k/train.jsonl nor train.jsonl"):
        load("text:maths", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "text:suport",
            "unknown text domain 'suport'; known: banking77.*Did you mean 'support'.*<name>=<file or folder>",
        ),
        ("text:", "has a domain without a name; write text:<domain>,<domain>"),
        ("text", "unknown data source 'text'; known: .*text:<domains>"),
        ("text:code,,prose", "has a domain without a name"),
        ("text:mine=", "has a domain without a path"),
        ("text:code,code", "names code more than once; give each domain a name of its own"),
        ("text:code=a,code=b", "names code more than once"),
        ("text:mine=nothing", "nothing is not there; give a file or folder"),
        ("text:made_prose?contxt=3", "unknown option of a text source 'contxt'.*Did you mean 'context'"),
        ("text:made_prose?context", "option 'context' has no value"),
        ("text:made_prose?", "unknown option of a text source ''"),
        ("text:made_prose?context=0", "context is '0', expected a whole number from 1 to 131072"),
        ("text:made_prose?context=1e3", "context is '1e3', expected a whole number"),
        ("text:made_prose?bytes=99999999999999", "bytes is '99999999999999', expected a whole number from 1 to"),
        ("text:made_prose?bytes=\u0663", "bytes is '\u0663', expected"),
        ("text:made_prose?tokenizer=nothing", "nothing is not there; tokenizer is 'bytes' or a file's path"),
        ("text:made_prose?start=<s>", "start and end name tokens of a tokenizer.json"),
        ("texts:code", "unknown data source 'texts:code'"),
    ],
)
def test_mistakes_in_the_name(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(name)


def test_a_name_taken_apart() -> None:
    spec = parse("text:code, mine=~/a=b ,c=tfds:x/y:1.0.0:z?end=<|a=b|>&context=7&tokenizer=t/tokenizer.json")
    assert spec.domains == (("code", None), ("mine", "~/a=b"), ("c", "tfds:x/y:1.0.0:z"))
    assert (spec.context, spec.bytes, spec.tokenizer, spec.start, spec.end) == (
        7, 1000000, "t/tokenizer.json", None, "<|a=b|>"
    )  # fmt: skip


def test_a_tokenizer_of_the_library(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers", reason="the library 'tokenizers' is not installed")
    made_up = library.Tokenizer(library.models.BPE())
    made_up.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["</s>"], show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made_up.train_from_iterator([document.text for document in made.support(20000)], trainer)
    made_up.save(str(tmp_path / "tokenizer.json"))
    found = load("text:made_support,made_prose?bytes=60000&tokenizer=tokenizer.json", tmp_path)
    bytewise = load("text:made_support,made_prose?bytes=60000")
    assert found.text is not None and found.text.num_tokens == 600 and found.train_images.dtype == np.uint16
    assert found.text.start == found.text.end == made_up.token_to_id("</s>")
    assert found.train_images[..., 0].max() < 600 and len(found.train_images) < 0.6 * len(bytewise.train_images)
    for name, domain in manifest(found).items():
        assert domain["sha256"] == manifest(bytewise)[name]["sha256"]
    for (rows, _), (others, _) in zip(arrays(found), arrays(bytewise), strict=True):
        assert rows[..., 2].sum(dtype=np.int64) == others[..., 2].sum(dtype=np.int64)


def test_texts_of_tensorflow_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    stock = tfds.builder_cls("tiny_shakespeare")
    plays = {split: "".join(f"{split} é😀 {n}\n\n" for n in range(9000)) for split in ("train", "test")}
    content = {
        "name": stock.name,
        "_split_generators": lambda self, _: {split: iter([(split, {"text": plays[split]})]) for split in plays},
    }
    with registered.skip_registration():
        prepare = type(stock)(stock.__name__, (stock,), content)
    writer = prepare(data_dir=tmp_path / "tfds", file_format="array_record")
    writer.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    found = [load(f"text:plays=tfds:tiny_shakespeare{rest}") for rest in ("", ":text", ":1.0.0", ":1.0.0:text")]
    assert len({each.sha256 for each in found}) == 1
    joined = b"".join(sorted(b"".join(texts(rows)) for rows, _ in arrays(found[0])))
    assert len(joined) == sum(len(play.encode()) for play in plays.values()) and "é😀 77\n".encode() in joined
    with pytest.raises(UserError, match=r"'tiny_shakespeare' has no text 'txt'; its texts: text;.*Did you mean 'text'"):
        load("text:plays=tfds:tiny_shakespeare:txt")
    with pytest.raises(UserError, match=r"unknown TFDS set 'tiny_shakespare'.*'tiny_shakespeare'"):
        load("text:plays=tfds:tiny_shakespare")


def test_reading_needs_no_jax() -> None:
    code = (
        "import sys; from cl_jax.text import documents, records, tokenizer, made, domains, format; "
        "print([name for name in ('jax', 'tokenizers', 'tensorflow_datasets') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


REAL = {  # least documents, all bytes; by their files' sha256 the same for ever
    "banking77": 13000,
    "dialogues": 742,
    "shakespeare": 250,
    "wikitext": 120,
    "maths": 8700,
}


def test_real_domains(data_folder: Path) -> None:
    found = load("text:support,prose,maths?bytes=100000", data_folder)
    for name, domain in manifest(found).items():
        assert 70_000 < domain["bytes"] <= 100_000 and not domain["left_out"], name
        assert domain["rows"]["train"] > 4 * max(domain["rows"]["test"], domain["rows"]["validation"])
    assert b"Intent: " in found.train_images[..., 0].tobytes()
    assert found.text is not None and found.train_images.dtype == np.uint8


@pytest.mark.parametrize("name", REAL)
def test_real_sets_are_read_whole(data_folder: Path, name: str) -> None:
    from cl_jax.text import domains

    documents, left_out = domains.read(name, None, data_folder, 0)
    assert len(documents) >= REAL[name] and not left_out
    assert max(document.size for document in documents) < 200_000
    shares = {"banking77": 1.0, "dialogues": 0.49, "shakespeare": 1.0, "wikitext": 1.0, "maths": 0.54}
    counted = sum(document.counted_size for document in documents) / sum(document.size for document in documents)
    assert counted == pytest.approx(shares[name], abs=0.02)
    if name == "shakespeare":
        assert "".join(each.text for each in documents) == (data_folder / "text" / "tinyshakespeare.txt").read_text()


def test_what_is_evaluated_can_be_bounded_and_stays_a_sample_of_the_whole_split() -> None:
    whole, some = load("text:made_prose?bytes=200000"), load("text:made_prose?bytes=200000&heldout=4000")
    np.testing.assert_array_equal(whole.train_images, some.train_images)
    for name in ("validation_images", "test_images"):
        every, few = getattr(whole, name), getattr(some, name)
        place = [int(np.flatnonzero((every == row).all(axis=(1, 2)))[0]) for row in few]
        assert abs(int(few[..., 2].sum()) - 4000) < 1500 and place == sorted(place)
        assert place[0] == 0 and place[-1] == len(every) - 1 and max(np.diff(place)) <= 2 * min(np.diff(place))
    assert some.text is not None and some.text.manifest[0].rows[1:] == (
        len(some.validation_images),
        len(some.test_images),
    )

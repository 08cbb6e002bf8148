"""Texts with labels: rows as they are told of, splits, and tables that are refused with file and line."""

import json
from pathlib import Path

import numpy as np
import pytest

from cl_jax import sources
from cl_jax.data import split_source
from cl_jax.errors import UserError
from cl_jax.experiment import Run, stream_label
from cl_jax.tasks import Split
from cl_jax.text import made
from cl_jax.text.labelled import load, parse

TRAIN = 'text,category\nwhere is my card?,card\n"why, tell me",why\nwhen will it come,card\n'
TEST = "text,category\nis it here,card\nwhy so,why\n"


def folder_of(tmp_path: Path, **files: str) -> Path:
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        (tmp_path / f"{stem}.{suffix}").write_text(content)
    return tmp_path


def said(row: np.ndarray) -> str:
    """The text of a row of bytes, between an opening and a closing 255."""
    ids = row[row >= 0].tolist()
    assert ids[0] == ids[-1] == 255 and (row[len(ids) :] == -1).all()
    return bytes(ids[1:-1]).decode()


def test_rows_are_the_texts_and_labels_their_classes(tmp_path: Path) -> None:
    found = load(f"labelled:{folder_of(tmp_path, train_csv=TRAIN, test_csv=TEST)}?context=24")
    assert found.train_images.dtype == np.int32 and found.train_images.shape == (3, 24)
    assert [said(row) for row in found.train_images] == ["where is my card?", "why, tell me", "when will it come"]
    assert found.labelled is not None and found.labelled.classes == ("card", "why") and found.labelled.cut == 0
    assert found.train_labels.tolist() == [0, 1, 0] and found.num_classes == 2
    assert found.test_images is not None and [said(row) for row in found.test_images] == ["is it here", "why so"]
    assert found.validation_images is None and found.labelled.num_tokens == 256


def test_longer_texts_are_cut_and_keep_their_end(tmp_path: Path) -> None:
    found = load(f"labelled:{folder_of(tmp_path, train_csv=TRAIN)}?context=10")
    assert [said(row) for row in found.train_images] == ["where is", "why, tel", "when wil"]
    assert found.labelled is not None and found.labelled.cut == 3


def test_jsonl_is_the_same_and_a_label_may_be_a_number(tmp_path: Path) -> None:
    csv = load(f"labelled:{folder_of(tmp_path, train_csv=TRAIN)}")
    lines = [("where is my card?", 0), ("why, tell me", 1), ("when will it come", 0)]
    text = "\n\n".join(json.dumps({"Utterance": text, "intent": label}) for text, label in lines)
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    found = load("labelled:mine.jsonl", tmp_path)
    np.testing.assert_array_equal(found.train_images, csv.train_images)
    assert found.labelled is not None and found.labelled.classes == ("0", "1") and found.sha256 == csv.sha256


def test_splits_by_name_or_drawn(tmp_path: Path) -> None:
    files = dict(train_csv=TRAIN, valid_jsonl='{"text": "a", "label": "why"}', test_csv=TEST, other_csv="a,b\n")
    found = load(f"labelled:{folder_of(tmp_path / '.', **files)}")
    assert found.validation_labels is not None and found.validation_labels.tolist() == [1]
    (tmp_path / "train.csv").unlink()
    (tmp_path / "other.csv").write_text(TRAIN)
    together = load(f"labelled:{tmp_path}")
    assert len(together.train_labels) == 6 and together.test_images is None


def test_banking77_as_published(tmp_path: Path) -> None:
    (tmp_path / "banking77").mkdir()
    folder_of(tmp_path / "banking77", train_csv=TRAIN, test_csv=TEST)
    found = sources.load("labelled:banking77?context=16", tmp_path)
    assert len(found.train_labels) == 3 and found.test_labels is not None and len(found.test_labels) == 2
    again = sources.load("labelled:banking77?context=16", tmp_path / "banking77")
    assert found.sha256 == again.sha256 != sources.load("labelled:banking77?context=17", tmp_path).sha256


def test_made_requests_fill_class_incremental_tasks() -> None:
    found = sources.load("labelled:made?classes=6&context=48")
    assert len({text for text, _ in made.requests(6, 50)}) == 300
    data = split_source(found, 0.1)
    assert data.labelled == found.labelled and data.num_classes == 6 and min(map(min, data.class_counts)) > 0
    assert data.class_counts[2] == (10,) * 6
    run = Run(data="labelled:made?classes=6&context=48", stream=Split(num_tasks=3), scenario="class")
    assert stream_label(run) == "split-made/class"


def test_a_wordpiece_tokenizer(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers", reason="the library 'tokenizers' is not installed")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "where", "is", "my", "card", "##s", "?", "why"]
    pieces = library.Tokenizer(library.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    pieces.add_special_tokens(words[:4])
    pieces.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    pieces.save(str(tmp_path / "tokenizer.json"))
    folder_of(tmp_path, train_csv='text,label\nWhere is my cards?,a\n"why, [SEP]",b\n')
    found = load("labelled:train.csv?context=8&tokenizer=tokenizer.json", tmp_path)
    assert found.train_images[0].tolist() == [2, 4, 5, 6, 7, 8, 9, 3]
    assert found.train_images[1].tolist() == [2, 10, 1, 1, 1, 1, 3, -1]  # what a text says is no special token
    assert found.labelled is not None and found.labelled.num_tokens == 11


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", "text,category\na,b\nc\n", "line 3: 1 fields, the header has 2"),
        ("train.csv", "text,kind\na,b\n", "line 2: has text, kind, and no label; it is called one of category, intent"),
        ("train.csv", "category\na\n", "line 2: has category, and no text"),
        ("train.csv", "text,label\na,x\n ,y\n", "line 3: its text is ' '; give one"),
        ("train.csv", "text,label\na,\n", "line 2: its label is ''"),
        ("train.csv", "text,label\na,x\nb,x\n", "has the one label 'x'; .* give two or more"),
        ("train.csv", 'text,label\na,"x\n', "not CSV"),
        ("train.csv", "text,label\n", "holds no texts"),
        ("train.csv", "", "holds no texts"),
        ("train.jsonl", '{"text": "a", "label": 1}\n{"text"', "line 2: not JSON"),
        ("train.jsonl", "[1]\n", "line 1: is no object"),
        ("train.jsonl", '{"text": "a", "label": null}', "line 1: its label is 'None'"),
        ("train.jsonl", '{"text": ["a"], "label": 1}', "line 1: its text is"),
        ("train.txt", "a", "holds no file that ends in .csv or .jsonl"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_labelled_texts_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load(f"labelled:{tmp_path}")


def test_other_mistakes_are_told(tmp_path: Path) -> None:
    folder_of(tmp_path, train_csv=TRAIN, test_csv="text,category\na,other\n")
    (tmp_path / "latin.csv").write_bytes("text,label\n\xe9,a\n".encode("latin-1"))
    for name, message in {
        f"labelled:{tmp_path}": "test has the label 'other', and training has no text of it",
        f"labelled:{tmp_path / 'latin.csv'}": "is not UTF-8 text",
        f"labelled:{tmp_path / 'none'}": "is not there; give one of banking77, made, or a folder",
        f"labelled:{tmp_path / 'train.csv'}?tokenizer=nowhere": "nowhere is not there",
        "labelled:banking77": "need a data folder that holds banking77/train.csv; give --data-dir",
        "labelled:": "names no texts",
        "labelled:made?contxt=3": "unknown option .* 'contxt'; .* Did you mean 'context'",
        "labelled:made?context=1": "context is '1', expected a whole number from 2 to 16384",
        "labelled:made?classes=21": "classes is '21', expected a whole number from 2 to 20",
        "labelled:made?tokenizer=": "option 'tokenizer' has no value",
    }.items():
        with pytest.raises(UserError, match=message):
            load(name)
    with pytest.raises(UserError, match="holds neither banking77/ nor itself"):
        load("labelled:banking77", tmp_path / "none")
    assert parse("labelled:a/b?context=7").texts == "a/b"

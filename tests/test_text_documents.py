"""Documents from files: what is read, what of it is counted, and what hostile or broken files are answered."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_jax.errors import UserError
from cl_jax.text import documents, made
from cl_jax.text.documents import Document, read

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of text, bytes, or of anything as JSON; returns its path."""

    def to(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to


def only(path: Path) -> tuple[tuple[str, bool], ...]:
    (document,) = read(path).documents
    return document.pieces


def test_plain_files_are_documents_and_long_ones_collections(write: Write) -> None:
    assert only(write("a.txt", "one\n\ntwo")) == (("one\n\ntwo", True),)
    code = "x = 1\n\n\n" * 10_000
    assert only(write("a.py", code)) == ((code, True),)
    assert only(write("b.MD", b"\xef\xbb\xbf# T\r\nx\ry")) == (("# T\nx\ny", True),)
    paragraphs = [f"{number} " + "word " * 50 for number in range(200)]
    text = "\n \n\n".join(paragraphs)
    parts = [document.text for document in read(write("long.txt", text)).documents]
    assert "".join(parts) == text
    assert all(4096 <= len(part) < 4096 + 300 for part in parts[:-1])
    assert all(part.endswith("\n \n\n") for part in parts[:-1])


def test_a_long_paragraph_is_cut_at_line_ends_and_a_long_line_is_not(write: Write) -> None:
    lines, line = "a line of a log\n" * 5000, "x" * 50_000
    parts = [document.text for document in read(write("log.txt", f"{lines}\n\n{line}\n\nend")).documents]
    assert "".join(parts) == f"{lines}\n\n{line}\n\nend"
    assert max(len(part) for part in parts if "x" not in part) < 5000 and any(line in part for part in parts)


TURNS = [("user", "Hi\nthere "), ("assistant", "Hello"), ("tool", "42"), ("assistant", "It is 42")]
RENDERED = (
    ("Customer: Hi\nthere\nAgent:", False), (" Hello\n", True), ("Tool: 42\nAgent:", False), (" It is 42\n", True)
)  # fmt: skip


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": role, "content": said} for role, said in TURNS]},
        {"id": 3, "messages": [{"role": role, "content": [{"type": "text", "text": said}]} for role, said in TURNS]},
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(r, r), "value": s} for r, s in TURNS]},
        {"turns": [{"speaker": {"user": "USER", "assistant": "SYSTEM"}.get(r, r), "utterance": s} for r, s in TURNS]},
    ],
)
def test_of_conversations_the_replies_are_counted(write: Write, record: dict[str, Any]) -> None:
    assert only(write("a.jsonl", record)) == RENDERED
    assert only(write("a.json", [record])) == RENDERED
    assert only(write("b.json", json.dumps(record, indent=1))) == RENDERED


def test_a_system_prompt_is_no_reply_and_silence_no_turn(write: Write) -> None:
    messages = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": []}, {"role": "assistant", "content": "Hello"},
    ]  # fmt: skip
    pieces = only(write("a.jsonl", {"messages": messages}))
    assert pieces == (("System: Be kind.\nCustomer: Hi\nAgent:", False), (" Hello\n", True))


@pytest.mark.parametrize(
    ("record", "pieces"),
    [
        ({"prompt": "1 + 1 =", "completion": " 2"}, (("1 + 1 =", False), (" 2", True))),
        ({"prompt": "Say hi", "completion": "hi"}, (("Say hi\n", False), ("hi", True))),
        ({"prompt": "", "completion": "hi"}, (("hi", True),)),
        ({"question": "Why?", "answer": "So."}, (("Question: Why?\nAnswer:", False), (" So.\n", True))),
        ({"text": "é", "meta": {}}, (("é", True),)),
    ],
)
def test_pairs_and_texts(write: Write, record: dict[str, str], pieces: tuple[tuple[str, bool], ...]) -> None:
    assert only(write("a.jsonl", record)) == pieces


def test_tables_by_their_header(write: Write) -> None:
    table = 'text,category\n"one, ""1""\ntwo",a_b\n\nthree,\n'
    found = read(write("a.csv", table)).documents
    assert [document.text for document in found] == ['one, "1"\ntwo\nIntent: a_b\n', "three\n"]
    assert [document.origin for document in found] == ["a.csv#3", "a.csv#5"]
    assert all(document.counted_size == document.size for document in found)
    assert only(write("b.csv", "Answer,Question\nSo.,Why?\n")) == (("Question: Why?\nAnswer:", False), (" So.\n", True))


def test_a_folder_is_read_in_order_and_tells_what_it_left_out(write: Write, tmp_path: Path) -> None:
    for name in ("in/b/z.txt", "in/a.txt", "in/b.py", "in/.hidden.txt", "in/.git/x.txt", "in/picture.png", "out.txt"):
        write(name, name)
    write("in/empty.txt", "")
    write("in/latin.txt", "é".encode("latin-1"))
    write("in/chat.jsonl", {"messages": [{"role": "user", "content": "Hi"}]})
    write("in/schema.json", [{"service_name": "Banks"}])
    folder = tmp_path / "in"
    (folder / "link.txt").symlink_to(tmp_path / "out.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "broken.txt").symlink_to(tmp_path / "nothing.txt")
    os.mkfifo(folder / "pipe.txt")  # opening it would wait for ever
    found, left_out = read(folder)
    assert [document.text for document in found] == ["in/a.txt", "in/b.py", "in/b/z.txt"]
    assert [document.origin for document in found] == ["a.txt", "b.py", "b/z.txt"]
    assert [told.split(" is ")[0] for told in left_out] == [
        "latin.txt", "schema.json", "chat.jsonl#1: nothing to predict", "empty.txt: nothing to predict"
    ]  # fmt: skip
    (folder / "inside.txt").symlink_to(folder / "a.txt")
    assert [document.origin for document in read(folder).documents] == ["a.txt", "b.py", "b/z.txt", "inside.txt"]


DEEP = "[" * 100_000 + "]" * 100_000
BROKEN = {
    "half.jsonl": ('{"text": "a"}\n\n{"text": ', "half.jsonl, line 3, column 10: not JSON"),
    "half.json": ('[{"text": "a"},\n{"text"}]', "half.json, line 2, column 8: not JSON"),
    "deep.jsonl": (f'{{"text": "a"}}\n{DEEP}', "deep.jsonl, line 2: nested too deeply"),
    "deep.json": (DEEP, "deep.json: nested too deeply"),
    "digits.jsonl": ('{"text": ' + "9" * 5000 + "}", "digits.jsonl, line 1: not to be read: .*digits"),
    "other.jsonl": ('{"text": "a"}\n{"txt": "a"}', "other.jsonl, line 2: found txt; a record is one of"),
    "list.jsonl": ("[1]", "list.jsonl, line 1: found list"),
    "type.jsonl": ('{"text": 3}', 'type.jsonl, line 1: "text" is int, expected text'),
    "turns.jsonl": ('{"messages": "Hi"}', 'turns.jsonl, line 1: "messages" is str, expected a list'),
    "turn.jsonl": ('{"messages": ["Hi"]}', 'turn.jsonl, line 1: a turn of "messages" needs "role" and "content"'),
    "role.jsonl": ('{"messages": [{"role": "", "content": "a"}]}', "line 1: \"role\" of a turn is ''"),
    "content.jsonl": ('{"messages": [{"role": "user", "content": {}}]}', 'line 1: "content" is dict'),
    "half-emoji.jsonl": ('{"text": "\\ud83d"}', "half-emoji.jsonl, line 1: .*half of a character"),
    "entry.json": ('[{"text": "a"}, 3]', "entry.json, entry 2: found int"),
    "other.json": ('{"version": 1}', "other.json is not a list of conversations or texts"),
    "empty.json": ("[]", "empty.json is not a list of conversations or texts"),
    "header.csv": ("id,body\n1,a\n", "header.csv, line 1: its columns are id, body"),
    "twice.csv": ("text,Text\n1,a\n", "twice.csv, line 1: its columns are text, Text"),
    "empty.csv": ("", "empty.csv, line 1: its columns are none"),
    "fields.csv": ("text,label\na,b\na,b,c\n", "fields.csv, line 3: 3 fields, the header has 2"),
    "quote.csv": ('text\nx\n"a\n', "quote.csv, line 3: not CSV"),
    "field.csv": (f'text\n"{"a" * 200_000}"\n', "field.csv, line 2: not CSV: field larger"),
    "latin.txt": (b"ab\xff", "latin.txt is not UTF-8 text .byte 2."),
    "latin.csv": (b"text\n\xff\n", "latin.csv is not UTF-8 text"),
    "zip.gz": (b"\x1f\x8b", "zip.gz is of no known kind; files are read by suffix: .txt"),
    "near.text": ("a", "is of no known kind.*Did you mean '.txt'"),
    "empty.txt": ("", "empty.txt holds no documents .empty.txt: nothing to predict."),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_file_and_line(write: Write, name: str) -> None:
    content, message = BROKEN[name]
    path = write(name, content)
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("name", ["half.jsonl", "deep.json", "fields.csv", "entry.json"])
def test_broken_files_of_a_folder_are_refused_too(write: Write, tmp_path: Path, name: str) -> None:
    write("good.txt", "good")
    write(name, BROKEN[name][0])
    with pytest.raises(UserError, match=name):
        read(tmp_path)


def test_no_more_is_read_than_the_limits(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = write("huge.txt", "a")
    os.truncate(huge, 1 << 40)  # a sparse file of a terabyte
    with pytest.raises(UserError, match=r"huge.txt is larger than 64 MiB; split it"):
        read(huge)
    with pytest.raises(UserError, match=r"are larger than 512 MiB together"):
        read(tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is not there"):
        read(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no documents \(there are none\); files are read by suffix: .txt"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match=r"pipe.txt is no file or folder"):
        read(tmp_path / "pipe.txt")


@pytest.mark.parametrize("make", [made.support, made.prose])
def test_made_text_is_long_enough_varied_and_begins_alike(make: Callable[[int], list[Document]]) -> None:
    found = make(200_000)
    size = sum(document.size for document in found)
    assert 198_000 < size <= 200_000 and len({document.text for document in found}) == len(found) > 200
    assert make(20_000) == found[: len(make(20_000))]
    text = "".join(document.text for document in found)
    assert "{" not in text and text.isascii()


def test_made_text_of_two_kinds_differs() -> None:
    support, prose = made.support(200_000), made.prose(200_000)
    words = [{word for document in found for word in document.text.split()} for found in (support, prose)]
    assert len(words[0] & words[1]) < 0.3 * min(len(words[0]), len(words[1]))
    assert all(document.pieces[0][0].startswith("Customer:") and not document.pieces[0][1] for document in support)
    share = sum(document.counted_size for document in support) / sum(document.size for document in support)
    assert 0.4 < share < 0.7
    assert all(document.pieces[0][1] for document in prose)


def test_documents_are_small_to_keep() -> None:
    assert not hasattr(Document((), ""), "__dict__") and documents.LARGEST < documents.MOST

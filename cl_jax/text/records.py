"""Documents from records: conversations, prompts with completions, questions with answers, rows of a table.

The loss counts replies only: what an assistant says, completions, answers; and the whole of a plain text.
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_jax.errors import UserError
from cl_jax.text.documents import Document, PassedOver, read_text

CHATS = {  # of a conversation: key of its turns, of who speaks, of what is said
    "messages": ("role", "content"),
    "conversations": ("from", "value"),
    "turns": ("speaker", "utterance"),
}
PAIRS = {"prompt": "completion", "question": "answer"}
ROLES = {
    **dict.fromkeys(("user", "human", "customer"), "Customer"),
    **dict.fromkeys(("assistant", "gpt", "agent", "model", "bot"), "Agent"),
}
TEXT_COLUMNS = ("text", "sentence", "content", "utterance")
LABEL_COLUMNS = ("category", "intent", "label")
LAYOUTS = '{"messages"}, {"conversations"}, {"turns"}, {"prompt", "completion"}, {"question", "answer"} or {"text"}'
_ROLE_LENGTH = 40


class _Malformed(ValueError):
    """Why a record is no document."""


def read(path: Path, origin: str, suffix: str) -> list[Document]:
    """The documents of one file.

    .jsonl: a record a line; .json: a list of records, or one. A record is
        {"messages": [{"role", "content"}, ...]}, {"conversations": [{"from", "value"}, ...]} or, as in the
        Schema-Guided Dialogue sets, {"turns": [{"speaker", "utterance"}, ...]}: lines "Customer: ..." for user, human
        and customer, "Agent: ..." for assistant, gpt, agent, model and bot (and the system of "turns"), which are
        counted, and any other role by its own name;
        {"prompt", "completion"}: one after the other, on a new line where no white space parts them;
        {"question", "answer"}: lines "Question: ..." and "Answer: ...";
        {"text"}: the text, all of it counted.
    .csv: a header, then a record a row, of these keys or with a column text, sentence, content or utterance, counted;
        a column category, intent or label then adds a counted line "Intent: ...".

    Raises:
        UserError: malformed, with file and line.
        PassedOver: not UTF-8, or JSON of something else.
    """
    text = read_text(path)
    if suffix == ".csv":
        return _read_csv(text, path, origin)
    return _read_lines(text, path, origin) if suffix == ".jsonl" else _read_json(text, path, origin)


def _read_lines(text: str, path: Path, origin: str) -> list[Document]:
    documents = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            documents.append(_document(_parse(line, path, number), path, f"line {number}", f"{origin}#{number}"))
    return documents


def _read_json(text: str, path: Path, origin: str) -> list[Document]:
    found = _parse(text, path, None)
    records = found if isinstance(found, list) else [found]
    if not records or not _is_record(records[0]):
        raise PassedOver(f"is not a list of conversations or texts: {LAYOUTS}")
    return [
        _document(record, path, f"entry {number}", f"{origin}#{number}") for number, record in enumerate(records, 1)
    ]


def _parse(text: str, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise UserError(f"{path}, {place}: not JSON: {error.msg}; mend or leave out that record.") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        place = f", line {line}" if line else ""
        what = "nested too deeply" if isinstance(error, RecursionError) else f"not to be read: {error}"
        raise UserError(f"{path}{place}: {what}; a record is one of {LAYOUTS}.") from error


def _read_csv(text: str, path: Path, origin: str) -> list[Document]:
    reader, documents = csv.reader(io.StringIO(text, newline=""), strict=True), []
    try:
        header = [column.strip() for column in next(reader, [])]
        keys = {column.lower(): column for column in header}
        column = next((name for name in TEXT_COLUMNS if name in keys), None)
        label = next((name for name in LABEL_COLUMNS if name in keys), None)
        pair = any(first in keys and second in keys for first, second in PAIRS.items())
        if len(keys) < len(header) or (column is None and not pair):
            raise UserError(
                f"{path}, line 1: its columns are {', '.join(header)[:200] or 'none'}; a table of texts has different "
                f"names in its first line, one of them {', '.join(TEXT_COLUMNS)}, or prompt and completion, or "
                "question and answer."
            )
        for row in reader:
            place = f"line {reader.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{path}, {place}: {len(row)} fields, the header has {len(header)}; quote texts with commas."
                )
            record = dict(zip((name.lower() for name in header), row, strict=True))
            if column is not None:
                intent = f"Intent: {record[label]}\n" if label and record[label] else ""
                record = {"text": record[column] and f"{record[column]}\n{intent}"}
            documents.append(_document(record, path, place, f"{origin}#{reader.line_num}"))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV: {error}; mend or leave out that row.") from error
    return documents


def _is_record(found: object) -> bool:
    if not isinstance(found, Mapping):
        return False
    pair = any(first in found and second in found for first, second in PAIRS.items())
    return pair or "text" in found or any(key in found for key in CHATS)


def _document(record: object, path: Path, place: str, origin: str) -> Document:
    try:
        return Document(_merged(_pieces(record)), origin)
    except _Malformed as error:
        raise UserError(f"{path}, {place}: {error}; mend or leave out that record.") from error


def _pieces(record: object) -> list[tuple[str, bool]]:
    if not isinstance(record, Mapping) or not _is_record(record):
        keys = ", ".join(map(str, record))[:100] if isinstance(record, Mapping) else type(record).__name__
        raise _Malformed(f"found {keys or 'nothing'}; a record is one of {LAYOUTS}")
    for key in CHATS:
        if key in record:
            return _turns(record[key], key)
    if "prompt" in record and "completion" in record:
        prompt, completion = _text(record, "prompt"), _text(record, "completion")
        parted = prompt[-1:].isspace() or completion[:1].isspace() or not prompt
        return [(prompt + "\n" * (not parted), False), (completion, True)]
    if "question" in record and "answer" in record:
        answer = _text(record, "answer")
        return [(f"Question: {_text(record, 'question')}\nAnswer:", False), (answer and f" {answer}\n", True)]
    return [(_text(record, "text"), True)]


def _turns(turns: object, key: str) -> list[tuple[str, bool]]:
    if not isinstance(turns, list):
        raise _Malformed(f'"{key}" is {type(turns).__name__}, expected a list')
    who, what = CHATS[key]
    roles = {**ROLES, "system": "Agent"} if key == "turns" else ROLES
    pieces = []
    for turn in turns:
        if not isinstance(turn, Mapping) or who not in turn or what not in turn:
            raise _Malformed(f'a turn of "{key}" needs "{who}" and "{what}"')
        role, said = _text(turn, who).strip(), _said(turn, what).strip()
        if not role or len(role) > _ROLE_LENGTH or "\n" in role:
            raise _Malformed(f'"{who}" of a turn is {role[:_ROLE_LENGTH]!r}, expected a short name')
        name = roles.get(role.lower(), role.capitalize())
        if said:
            pieces += [(f"{name}:", False), (f" {said}\n", name == "Agent")]
    return pieces


def _said(turn: Mapping[str, Any], key: str) -> str:
    """What is said in a turn: a text, none (as where a tool is called), or a list of parts of which the texts count."""
    said = turn[key]
    if said is None:
        return ""
    if isinstance(said, list):
        texts = [part for part in said if isinstance(part, Mapping) and part.get("type") == "text" and "text" in part]
        return "".join(_text(part, "text") for part in texts)
    return _text(turn, key)


def _text(record: Mapping[str, Any], key: str) -> str:
    text = record[key]
    if not isinstance(text, str):
        raise _Malformed(f'"{key}" is {type(text).__name__}, expected text')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Malformed(f'"{key}" holds half of a character ({text[error.start]!r})') from error
    return text


def _merged(pieces: list[tuple[str, bool]]) -> tuple[tuple[str, bool], ...]:
    """Without empty pieces, and neighbours that are counted alike as one."""
    merged: list[tuple[str, bool]] = []
    for text, counted in pieces:
        if merged and merged[-1][1] == counted:
            merged[-1] = (merged[-1][0] + text, counted)
        elif text:
            merged.append((text, counted))
    return tuple(merged)

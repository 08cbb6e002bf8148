"""The report of a run: one HTML file that opens offline, its figure drawn inside."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_jax.conversations import figures, summary
from cl_jax.conversations.guard import ACCEPTED
from cl_jax.conversations.log import DECISIONS
from cl_jax.conversations.standing import WHOSE
from cl_jax.report.sections import text
from cl_jax.report.settings import format_value
from cl_jax.report.template import STYLE
from cl_jax.results import read_json, write_atomically

PAGE, FIGURE = "report.html", "adapt"
MOST_ROUNDS = 200  # of those that a guard stopped, told one by one
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_FIGURE = "max-width: 860px; width: 100%; background: #ffffff; border-radius: 6px"
WORDS = (
    ("Bits per byte", "-log2 of the probability that the model gave to the replies, over their UTF-8 bytes."),
    ("Scored before", "Each conversation is scored by the model before it learns from it: no number is of text that "
     "the model has seen."),
    ("Never learning", "The model of the start, scored on the same conversations."),
    ("Old text", "Stands for what the model could do at the start. Its test split takes part in nothing else; a guard "
     "keeps its budget on a split of its own."),
    ("Scaled back", "The update cost more than the budget: the largest of 1/2, 1/4, ... of it that did not was taken."),
    ("Rolled back", "No such part of the update was within the budget: the model is that of the last checkpoint."),
)  # fmt: skip


def write(out: Path) -> Path:
    """Writes the figure and the page of a run's folder into `report` there; returns the page."""
    found, folder = summary.read(out), out / "report"
    environment = read_json(out / "environment.json", {"versions": dict, "device": dict})
    settings = read_json(out / WHOSE, {"settings": dict})["settings"]
    folder.mkdir(parents=True, exist_ok=True)
    drawn = next(path for path in figures.write(found, folder / FIGURE) if path.suffix == ".svg")
    write_atomically(folder / PAGE, _page(out, found, environment, settings, drawn.read_bytes()).encode())
    return folder / PAGE


def _page(
    out: Path, found: summary.Summary, environment: Mapping[str, Any], settings: Mapping[str, Any], drawn: bytes
) -> str:
    title = f"{environment.get('conversations', 'Conversations')}: {found.policy}"
    said = "".join(f"<li>{text(one)}</li>" for one in summary.sentences(found, str(environment.get("old_text", "-"))))
    image = f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}"
    words = "".join(f"<dt>{text(term)}</dt><dd>{text(meaning)}</dd>" for term, meaning in WORDS)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{text(title)}</h1>
<section class="short"><h2>In short</h2><ul>{said}</ul></section>
<img style="{_FIGURE}" alt="Bits per byte of the conversations and of the old text" src="{image}">
{_decisions(out)}
<h2>What each number means</h2>
<dl>{words}</dl>
<footer>
<h3>How this was made</h3>
<dl class="facts">{_facts({**settings, "seed": found.seed} | _flat(environment))}</dl>
</footer>
</main>
</body>
</html>
"""


def _decisions(out: Path) -> str:
    """The rounds that the guard did not let pass as they were."""
    path = out / DECISIONS
    made = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    stopped = [each for each in made if each["decision"] != ACCEPTED]
    if not stopped:
        return ""
    rows = [
        [
            str(each["round"]),
            "{} to {}".format(*each["conversations"]),
            each["decision"],
            format_value(each["scale"]),
            ", ".join(_cost(one, each["base"]) for one in each["tried"]) or "diverged",
        ]
        for each in stopped[:MOST_ROUNDS]
    ]
    left = len(stopped) - len(rows)
    more = f'<p class="soft">{left} more are in {DECISIONS}.</p>' if left else ""
    headers = ("round", "conversations", "decision", "part taken", "what parts of the update cost")
    return f"<h2>Rounds that the guard stopped</h2>{_table(headers, rows)}{more}"


def _cost(tried: Mapping[str, float | None], base: float) -> str:
    value = tried["bits_per_byte"]
    return f"{tried['scale']:g}: {'no number' if value is None else f'{value - base:+.4f}'}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th class="words">{text(name)}</th>' for name in headers)
    lines = ["".join(f'<td class="words">{text(cell)}</td>' for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _facts(values: Mapping[str, Any]) -> str:
    return "".join(f"<dt>{text(name)}</dt><dd>{text(str(value))}</dd>" for name, value in values.items())

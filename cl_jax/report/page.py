"""One HTML file that holds the whole report: opens offline, asks nobody for anything."""

import html
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow

from cl_jax.report import charts, diagnostic_charts, measured, text_tables
from cl_jax.report.sections import in_short, stream_section, text
from cl_jax.report.streams import Stream, read
from cl_jax.report.summary import summarize
from cl_jax.report.tables import by_stream, plain_markdown, render_table
from cl_jax.report.template import ERROR_COUNTER, SCRIPT, STYLE, glossary
from cl_jax.selection import ALL, Protocol

# The browser itself refuses every request that leaves the file.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_page(
    table: pyarrow.Table,
    environment: Mapping[str, Any],
    experiment: Mapping[str, Any],
    path: str | Path,
    num_tasks: Mapping[str, int] | None = None,
    protocol: Protocol = ALL,
    diagnostics: pyarrow.Table | None = None,
) -> None:
    """Writes the report as one self-contained HTML file.

    Args:
        table: the tidy results table.
        environment: versions, device, command and the like, printed at the foot; nested mappings are flattened.
        experiment: `name` and `description`.
        path: the file to write; its folder exists.
        num_tasks: as in `streams.read`.
        protocol: how configurations are chosen.
        diagnostics: diagnostics.parquet, where there is one.
    """
    streams = read(table, num_tasks, protocol)
    _write(Path(path), page(streams, environment, experiment, measured.read(diagnostics, streams)))


def write_report(
    table: pyarrow.Table,
    environment: Mapping[str, Any],
    experiment: Mapping[str, Any],
    folder: str | Path,
    num_tasks: Mapping[str, int] | None = None,
    protocol: Protocol = ALL,
    diagnostics: pyarrow.Table | None = None,
) -> list[Path]:
    """Writes report.html, summary.csv, summary.md and figures/*.svg, pdf, png; returns the paths, the page first.

    The page is written last: where it is, all of the report is.
    """
    from cl_jax.report import diagnostic_figures  # matplotlib takes its time, and a page needs none of it
    from cl_jax.report.figures import write_figures

    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    streams = read(table, num_tasks, protocol)
    rows, found, paths = summarize(streams), measured.read(diagnostics, streams), []
    for stream, each, name in zip(streams, found, file_names([stream.label for stream in streams]), strict=True):
        paths += write_figures(stream, folder / "figures", name)
        paths += diagnostic_figures.write_figures(each, folder / "figures", name)
    texts = {
        "summary.csv": render_table(rows, "csv"),
        "summary.md": "\n".join([render_table(rows, "markdown"), *_more_tables(streams)]),
        "report.html": page(streams, environment, experiment, found),
    }
    for name, content in texts.items():
        _write(folder / name, content)
        paths.insert(0, folder / name)
    return paths


def file_names(labels: Sequence[str]) -> list[str]:
    """A distinct file name for each label: letters, digits and `-`; a number where two would be the same."""
    names: list[str] = []
    for label in labels:
        base = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:60] or "stream"
        name, count = base, 2
        while name in names:
            name, count = f"{base}-{count}", count + 1
        names.append(name)
    return names


def page(
    streams: Sequence[Stream], environment: Mapping[str, Any], experiment: Mapping[str, Any],
    found: Sequence[measured.Measured | None],
) -> str:  # fmt: skip
    """The HTML text of the report; `found` of each stream."""
    drawn = [
        charts.figures(stream) + diagnostic_charts.figures(each) for stream, each in zip(streams, found, strict=True)
    ]
    rows = summarize(streams)
    identifiers = file_names([stream.label for stream in streams])
    sections = [
        stream_section(stream, by_stream(rows)[stream.label], figures, identifier, diagnostic_charts.costs(each))
        for stream, figures, identifier, each in zip(streams, drawn, identifiers, found, strict=True)
    ]
    specifications = [chart._replace(title="")._asdict() for figures in drawn for f in figures for chart in f.charts]
    # "<" would end the script element early or open a comment in it; JSON may write it as an escape.
    data = json.dumps(specifications, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    name = text(str(experiment["name"]))
    terms = glossary([stream.measure for stream in streams])
    meanings = "".join(f"<dt>{text(term)}</dt><dd>{text(meaning)}</dd>" for term, meaning in terms)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>{STYLE}</style>
<script>{ERROR_COUNTER}</script>
</head>
<body>
<main>
<h1>{name}</h1>
<p>{text(str(experiment["description"]))}</p>
{_partial(environment)}
{in_short(streams, rows, identifiers)}
{"".join(sections)}
<h2>What each number means</h2>
<dl>{meanings}</dl>
<footer>
<h3>How this was made</h3>
<dl class="facts">{_facts(_selection([stream.protocol for stream in streams]) | _flat(environment))}</dl>
</footer>
</main>
<script type="application/json" id="charts">{data}</script>
<script>{library()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _partial(environment: Mapping[str, Any]) -> str:
    """A warning where the table is not whole."""
    return f"<p><strong>In part: {text(str(environment['partial']))}.</strong></p>" if "partial" in environment else ""


def _selection(protocols: Sequence[Protocol]) -> dict[str, str]:
    """Of the streams' protocols, which are one in the words of each stream."""
    return {
        "hyper-parameters chosen by": "; ".join(dict.fromkeys(each.words for each in protocols)),
        "as in": protocols[0].source,
        "option": f"--select {protocols[0].name}",
    }


def library() -> str:
    """The text of plotly.js."""
    # The file alone: to import plotly takes time that a page has no use for.
    file = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    return file.read_text(encoding="utf-8")


def _more_tables(streams: Sequence[Stream]) -> list[str]:
    return [plain_markdown(stream.label, each) for stream in streams for each in text_tables.tables(stream)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _facts(values: Mapping[str, Any]) -> str:
    return "".join(f"<dt>{text(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in values.items())


def _write(path: Path, content: str) -> None:
    # Whole or not at all: a report is rewritten while somebody may be reading it.
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)

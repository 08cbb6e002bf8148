"""One HTML file that holds the whole report: opens offline, asks nobody for anything."""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow

from cl_jax.report import charts, panels
from cl_jax.report.configurations import SELECTION_PROTOCOL, Configuration, Stream, read, validation_score
from cl_jax.report.summary import SummaryRow, short_names, summarize
from cl_jax.report.tables import columns, describe, number, printable, render_table, table_notes
from cl_jax.report.template import CAPTIONS, ERROR_COUNTER, GLOSSARY, SCRIPT, STYLE
from cl_jax.statistics import spread

# The browser itself refuses every request that leaves the file.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_WORDS = ("method", "chosen", "configuration", "runs")


def write_page(
    table: pyarrow.Table,
    environment: Mapping[str, Any],
    experiment: Mapping[str, Any],
    path: str | Path,
    num_tasks: Mapping[str, int] | None = None,
) -> None:
    """Writes the report as one self-contained HTML file.

    Args:
        table: the tidy results table.
        environment: versions, device, command and the like, printed at the foot; nested mappings are flattened.
        experiment: `name` and `description`.
        path: the file to write; its folder exists.
        num_tasks: as in `configurations.read`.
    """
    _write(Path(path), page(read(table, num_tasks), environment, experiment))


def write_report(
    table: pyarrow.Table,
    environment: Mapping[str, Any],
    experiment: Mapping[str, Any],
    folder: str | Path,
    num_tasks: Mapping[str, int] | None = None,
) -> list[Path]:
    """Writes report.html, summary.csv, summary.md and figures/*.svg, pdf, png; returns the paths, the page first."""
    from cl_jax.report.figures import write_figures  # matplotlib takes its time, and a page needs none of it

    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    streams = read(table, num_tasks)
    rows = summarize(streams)
    texts = {
        "report.html": page(streams, environment, experiment),
        "summary.csv": render_table(rows, "csv"),
        "summary.md": render_table(rows, "markdown"),
    }
    for name, text in texts.items():
        _write(folder / name, text)
    paths = [folder / name for name in texts]
    for stream, name in zip(streams, file_names([stream.label for stream in streams]), strict=True):
        paths += write_figures(stream, folder / "figures", name)
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


def page(streams: Sequence[Stream], environment: Mapping[str, Any], experiment: Mapping[str, Any]) -> str:
    """The HTML text of the report."""
    from plotly.offline import get_plotlyjs

    drawn = [charts.figures(stream) for stream in streams]
    rows = summarize(streams)
    identifiers = file_names([stream.label for stream in streams])
    sections = [
        _stream_section(stream, [row for row in rows if row.stream == stream.label], figures, identifier)
        for stream, figures, identifier in zip(streams, drawn, identifiers, strict=True)
    ]
    links = [f'<a href="#{name}">{_text(each.label)}</a>' for name, each in zip(identifiers, streams, strict=True)]
    contents = f"<p>Task streams: {' · '.join(links)}</p>" if len(streams) > 1 else ""
    specifications = [chart._replace(title="")._asdict() for figures in drawn for f in figures for chart in f.charts]
    # "<" would end the script element early or open a comment in it; JSON may write it as an escape.
    data = json.dumps(specifications, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    name = _text(str(experiment["name"]))
    glossary = "".join(f"<dt>{_text(term)}</dt><dd>{_text(meaning)}</dd>" for term, meaning in GLOSSARY)
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
<p>{_text(str(experiment["description"]))}</p>
{contents}
{"".join(sections)}
<h2>What each number means</h2>
<dl>{glossary}</dl>
<footer>
<h3>How this was made</h3>
<dl class="facts">{_facts({"hyper-parameters chosen by": SELECTION_PROTOCOL} | _flat(environment))}</dl>
</footer>
</main>
<script type="application/json" id="charts">{data}</script>
<script>{get_plotlyjs()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _stream_section(stream: Stream, rows: list[SummaryRow], figures: list[charts.Figure], identifier: str) -> str:
    notes = "".join(f"<li>{_text(line)}</li>" for line in table_notes(rows))
    drawings = "".join(_figure(figure) for figure in figures)
    return f"""
<section id="{identifier}">
<h2>{_text(stream.label)}</h2>
<p class="soft">{_overview(stream)}</p>
{_summary_table(stream, rows)}
<p class="caption">Percent on the test split, mean ± standard error over seeds. Each method is shown by the
configuration with the best validation accuracy; the test split took no part in that choice.</p>
{f'<ul class="notes">{notes}</ul>' if notes else ""}
{drawings}
{_all_configurations(stream)}
</section>"""


def _overview(stream: Stream) -> str:
    members = sum(len(each.members) for each in stream.configurations)
    unfinished = sum(int(each.unfinished.sum()) for each in stream.configurations)
    diverged = sum(int(each.diverged.sum()) for each in stream.configurations)
    parts = [_count(stream.num_tasks, "task"), _count(len(stream.chosen), "method")]
    parts += [_count(len(stream.configurations), "configuration"), _count(members, "run")]
    warnings = [f"{unfinished} unfinished"] * bool(unfinished) + [f"{diverged} diverged"] * bool(diverged)
    flags = [f'<span class="flag">{text}</span>' for text in warnings]
    return " · ".join([*parts, *flags])


def _summary_table(stream: Stream, rows: list[SummaryRow]) -> str:
    styles, shown = panels.styles(stream), columns()
    lines = []
    for row in rows:
        swatch = f'<span class="swatch" style="background:{styles[row.method].colour}"></span>'
        cells = [_text(cell(row)) for _, cell in shown]
        cells[0] = swatch + cells[0]
        cells[1] = cells[1].replace("(edge of grid)", '<span class="flag">(edge of grid)</span>')
        lines.append(cells)
    return _table([header for header, _ in shown], lines)


def _all_configurations(stream: Stream) -> str:
    headers = ["method", "configuration", "validation accuracy", "test accuracy", "forgetting", "learning accuracy"]
    table = _table([*headers, "runs"], [_configuration_cells(stream, each) for each in stream.configurations])
    count = _count(len(stream.configurations), "configuration")
    return f"<details><summary>All results: {count}, with the runs behind them</summary>{table}</details>"


def _configuration_cells(stream: Stream, configuration: Configuration) -> list[str]:
    short = short_names(stream.swept[configuration.method])
    settings = ", ".join(describe({short[name]: configuration.hyper_parameters[name] for name in short})) or "-"
    chosen = " (chosen)" if stream.chosen[configuration.method] is configuration else ""
    score = validation_score(configuration)
    metrics = ("average_accuracy", "forgetting", "learning_accuracy")
    means = [spread(configuration.scores(metric)).mean for metric in metrics]
    numbers = [number(value) for value in (score if math.isfinite(score) else math.nan, *means)]
    runs = [
        f"{member} (seed {seed}{', diverged' * bool(diverged)}{', unfinished' * bool(unfinished)})"
        for member, seed, diverged, unfinished in zip(
            configuration.members, configuration.seeds, configuration.diverged, configuration.unfinished, strict=True
        )
    ]
    return [_text(configuration.method), _text(settings + chosen), *numbers, _text(", ".join(runs))]


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already. Words stand left, numbers right."""
    marks = [' class="words"' if header in _WORDS else "" for header in headers]
    head = "".join(f"<th{mark}>{_text(header)}</th>" for mark, header in zip(marks, headers, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{mark}>{cell}</td>' for mark, cell in zip(marks, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(figure: charts.Figure) -> str:
    title, caption = CAPTIONS[figure.kind]
    legend = "".join(
        f'<span><i class="{mark}" style="--colour:{colour}"></i>{_text(text)}</span>'
        for mark, colour, text in figure.legend
    )
    drawings = "".join(
        f'<div class="panel">{f"<h4>{_text(chart.title)}</h4>" if chart.title else ""}'
        f'<div class="chart" data-figure="{figure.kind}" style="min-height:{chart.layout["height"]}px"></div></div>'
        for chart in figure.charts
    )
    wide = " wide" if figure.kind in ("average-accuracy", "plane") else ""
    return (
        f'<h3>{title}</h3><p class="caption">{_text(caption)}</p>'
        f'{f"<div class=legend>{legend}</div>" if legend else ""}<div class="panels{wide}">{drawings}</div>'
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _facts(values: Mapping[str, Any]) -> str:
    return "".join(f"<dt>{_text(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in values.items())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _text(text: str) -> str:
    return html.escape(printable(text))


def _write(path: Path, text: str) -> None:
    # Whole or not at all: a report is rewritten while somebody may be reading it.
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)

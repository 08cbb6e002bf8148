"""What the page says of one stream: the result in words, its tables, its figures. Everything is HTML, escaped."""

import html
import math
from collections.abc import Sequence

import numpy as np

from cl_jax.report import cells, charts, panels, styles, text_tables
from cl_jax.report.cells import printable
from cl_jax.report.comparison import Comparison, Outcome, compare, measured_on, sentences
from cl_jax.report.configurations import Configuration, tasks_done
from cl_jax.report.diagnostic_words import CAPTIONS as OF_DIAGNOSTICS
from cl_jax.report.measure import Format, Measure, spoken
from cl_jax.report.settings import EDGE, describe, short_names
from cl_jax.report.streams import Stream
from cl_jax.report.summary import SummaryRow
from cl_jax.report.template import EDGE_HINT, captions
from cl_jax.report.words import findings
from cl_jax.selection import ALL, Protocol
from cl_jax.statistics import Spread, spread


def text(words: str) -> str:
    """A user's string on one line, as HTML."""
    return html.escape(printable(words))


def in_short(streams: Sequence[Stream], rows: Sequence[SummaryRow], identifiers: Sequence[str]) -> str:
    """The result of every stream in sentences, the first thing on the page."""
    parts = []
    for stream, identifier in zip(streams, identifiers, strict=True):
        mine = [row for row in rows if row.stream == stream.label]
        heading = f'<h3><a href="#{identifier}">{text(stream.label)}</a></h3>' if len(streams) > 1 else ""
        sentences = "".join(f"<li>{text(sentence)}</li>" for sentence in findings(mine))
        parts.append(f"{heading}<ul>{sentences}</ul>")
    return f'<section class="short"><h2>In short</h2>{"".join(parts)}</section>'


def stream_section(
    stream: Stream, rows: Sequence[SummaryRow], drawn: Sequence[charts.Figure], identifier: str,
    costs: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None,
) -> str:  # fmt: skip
    """Tables and figures of one stream; `rows` are its own, `costs` of `diagnostic_charts.costs`."""
    notes = "".join(f"<li>{text(line)}</li>" for line in cells.notes(rows))
    measure = stream.measure
    order = f"{measure.good('low', 'high')} to {measure.good('high', 'low')} {measure.name}"
    undefined = " Forward transfer is undefined here: the classes of a later task have no outputs yet."
    return f"""
<section id="{identifier}">
<h2>{text(stream.label)}</h2>
<p class="soft">{_overview(stream)}</p>
{_summary_table(stream, rows)}
<p class="caption">{text(cells.caption(rows))} Each method is shown by the configuration that was best by that; the test
split took no part in the choice. Methods stand from {order} between the two
bounds.{undefined if stream.configurations[0].class_incremental else ""} Hover a number for more digits.</p>
{f'<ul class="notes">{notes}</ul>' if notes else ""}
{_every_metric(rows)}
{_all_configurations(stream)}
{_figures(stream, drawn)}{_costs(costs)}
{_protocols(compare(stream))}
</section>"""


def _overview(stream: Stream) -> str:
    members = sum(len(each.members) for each in stream.configurations)
    unfinished = sum(int(each.unfinished.sum()) for each in stream.configurations)
    diverged = sum(int(each.diverged.sum()) for each in stream.configurations)
    stopped = sum(int(each.stopped.sum()) for each in stream.configurations)
    parts = [stream.wording.several(stream.num_tasks), _count(len(stream.chosen), "method")]
    parts += [_count(len(stream.configurations), "configuration"), _count(members, "run")]
    parts += [f"{_count(stopped, 'run')} stopped early"] * bool(stopped)
    parts += [f"measured on {measured_on(stream)}"] * (stream.protocol.name != ALL.name)
    warnings = [f"{unfinished} unfinished"] * bool(unfinished) + [f"{diverged} diverged"] * bool(diverged)
    flags = [f'<span class="flag">{warning}</span>' for warning in warnings]
    return " · ".join([*parts, *flags])


def _summary_table(stream: Stream, rows: Sequence[SummaryRow]) -> str:
    looks, shown = styles.method_styles(stream), cells.columns(rows)
    lines = []
    for row in rows:
        line = [_hover(text(column.cell(row)), row, column.metric) for column in shown]
        swatch = f'<span class="swatch" style="background:{looks[row.method].colour}"></span>'
        line[0] = f'<span class="method">{swatch}<span>{line[0]}</span></span>'
        for index, column in enumerate(shown):
            if column.header == "chosen" and row.at_edge:
                # A hyper-parameter's name may hold the star, so it is found part by part.
                line[index] = ", ".join(map(_starred, describe(row.chosen, row.at_edge)))
        lines.append(line)
    return _table([(column.title or column.header, column.words) for column in shown], lines)


def _starred(part: str) -> str:
    star = f'<span class="flag" title="{EDGE_HINT}">{EDGE}</span>'
    return text(part.removesuffix(EDGE)) + star * part.endswith(EDGE)


def _hover(cell: str, row: SummaryRow, metric: str) -> str:
    if not metric or math.isnan(getattr(row, metric).mean):
        return cell
    value: Spread = getattr(row, metric)
    digits = row.measure.metrics[metric].format.digits
    return f'<span title="mean {digits(value.mean)}, std {digits(value.std)}, n = {value.n}">{cell}</span>'


def _every_metric(rows: Sequence[SummaryRow]) -> str:
    headers = [("method", True), ("metric", True), *((name, False) for name in ("mean", "std", "SEM", "n"))]
    lines = [
        [text(row.method), spoken(name), *map(metric.format.digits, getattr(row, name)[:3]), str(getattr(row, name).n)]
        for row in rows
        for name, metric in row.measure.metrics.items()
        if not math.isnan(getattr(row, name).mean)
    ]
    if not lines:
        return ""
    table = _table(headers, lines)
    return f"<details><summary>Every metric: mean, standard deviation and error, seeds</summary>{table}</details>"


def _all_configurations(stream: Stream) -> str:
    measure = stream.measure
    headers = [f"judged by (validation {measure.name})", f"test {measure.name}", "forgetting", spoken(measure.learning)]
    columns = [("method", True), ("configuration", True), *((name, False) for name in headers), ("runs", True)]
    table = _table(columns, [_configuration_cells(stream, each) for each in stream.configurations])
    count = _count(len(stream.configurations), "configuration")
    return f"<details><summary>All results: {count}, with the runs behind them</summary>{table}</details>"


def _configuration_cells(stream: Stream, configuration: Configuration) -> list[str]:
    short = short_names(stream.swept[configuration.method])
    settings = ", ".join(describe({short[name]: configuration.hyper_parameters[name] for name in short})) or "-"
    measure = stream.measure
    score = measure.sign * configuration.score if math.isfinite(configuration.score) else math.nan
    metrics = (measure.end, "forgetting", measure.learning)
    means = [spread(configuration.scores(metric)).mean for metric in metrics]
    numbers = [measure.format.number(value) for value in (score, *means)]
    runs = [_run(configuration, index) for index in range(len(configuration.members))]
    return [text(configuration.method), text(settings + _use(stream, configuration)), *numbers, text(", ".join(runs))]


def _use(stream: Stream, configuration: Configuration) -> str:
    """What was made of a configuration, as an appendix to its name."""
    if configuration.stopped.any():
        return " (stopped early)"
    rows = stream.choices[configuration.method].configuration
    index = next(i for i, each in enumerate(stream.of(configuration.method)) if each is configuration)
    taken = int((rows == index).sum())
    return " (chosen)" if taken == rows.size else f" (chosen for {taken} of {rows.size} rows)" if taken else ""


def _run(configuration: Configuration, index: int) -> str:
    """A member with its seed and what is special about it."""
    only = np.arange(len(configuration.members)) == index
    facts = [f"seed {configuration.seeds[index]}"]
    facts += ["used to choose, not reported"] * (not configuration.counted[index])
    facts += ["diverged"] * bool(configuration.diverged[index])
    facts += ["unfinished"] * bool(configuration.unfinished[index])
    if configuration.stopped[index]:
        facts.append(f"stopped after {configuration.wording.one(tasks_done(configuration, only))}")
    return f"{configuration.members[index]} ({', '.join(facts)})"


def _protocols(comparison: Comparison | None) -> str:
    """What each protocol would have chosen and reported, beside the best on test."""
    if comparison is None:
        return ""
    measure = comparison.measure
    title, caption = captions(measure)["selection"]
    columns = [("method", True), *((each.name, False) for each in comparison.protocols), ("best on test", False)]
    scopes = [f'<span class="soft">{text(each)}</span>' for each in ("measured on", *comparison.measured_on)]
    lines = [[*scopes, scopes[1]]]
    lines += [
        [text(method), *(_outcome(each, outcomes[0], measure.format) for each in outcomes)]
        for method, outcomes in comparison.methods.items()
    ]
    label = f"{measure.words.step.strip()} {measure.good('below', 'above')} the best on test, mean"
    lines.append([label, *map(measure.format.number, comparison.gaps), "-"])
    told = "".join(f"<li><b>{text(each.name)}</b>: {_in_full(each)}</li>" for each in comparison.protocols)
    said = text(" ".join(sentences(comparison)))
    return (
        f'<h3>{title}</h3><p class="caption">{text(caption)}</p><p>{said}</p>{_table(columns, lines)}'
        f'<ul class="notes">{told}</ul>'
    )


def _in_full(protocol: Protocol) -> str:
    return text(f"{protocol.words}." + f" {protocol.caution}." * bool(protocol.caution))


def _outcome(outcome: Outcome, first: Outcome, written: Format) -> str:
    """The number, and what was chosen for it: marked where it is not what the first protocol chose."""
    look = "soft" if outcome.chosen == first.chosen else "flag"
    return f'{written.mean(outcome.accuracy)}<br><span class="{look}">{text(outcome.chosen)}</span>'


def _table(columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already. Words stand left, numbers right."""
    marks = [' class="words"' * words for _, words in columns]
    head = "".join(f"<th{mark}>{text(name)}</th>" for mark, (name, _) in zip(marks, columns, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{mark}>{cell}</td>' for mark, cell in zip(marks, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _costs(costs: tuple[Sequence[str], Sequence[Sequence[str]]] | None) -> str:
    if costs is None:
        return ""
    title, caption = OF_DIAGNOSTICS["diagnostic-cost"]
    headers, lines = costs
    table = _table([(name, not index) for index, name in enumerate(headers)], [[*map(text, line)] for line in lines])
    return f'<h3>{title}</h3><p class="caption">{text(caption)}</p>{table}'


def _figures(stream: Stream, drawn: Sequence[charts.Figure]) -> str:
    """The figures, each with the tables that belong below it, and what is left over."""
    tables, kinds = text_tables.tables(stream), [figure.kind for figure in drawn]
    parts = []
    for figure in drawn:
        parts.append(_figure(figure, stream.measure))
        parts += [_plain_table(table) for table in tables if table.below == figure.kind]
    return "".join([*parts, *(_plain_table(table) for table in tables if table.below not in kinds)])


def _plain_table(table: text_tables.Table) -> str:
    body = _table(table.columns, [[*map(text, row)] for row in table.rows])
    return f'<h3>{text(table.title)}</h3><p class="caption">{text(table.caption)}</p>{body}'


def _figure(figure: charts.Figure, measure: Measure) -> str:
    title, caption = captions(measure)[figure.kind]
    legend = "".join(
        f'<span><i class="{mark}" style="--colour:{colour}"></i>{text(label)}</span>'
        for mark, colour, label in figure.legend
    )
    drawings = "".join(
        f'<div class="panel">{f"<h4>{text(chart.title)}</h4>" if chart.title else ""}'
        f'<div class="chart" data-figure="{figure.kind}" style="min-height:{chart.layout["height"]}px"></div></div>'
        for chart in figure.charts
    )
    columns = panels.num_columns(len(figure.charts))
    wide = " wide" if figure.wide else ""
    shared = f'<div class="legend">{legend}</div>' if legend else ""
    return (
        f'<h3>{title}</h3><p class="caption">{text(caption)}</p>{shared}'
        f'<div class="panels{wide}" style="--columns:{columns}">{drawings}</div>'
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)

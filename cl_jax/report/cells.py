"""What stands in the cells of a table: numbers, hyper-parameters, notes. Plain text."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cl_jax.report.configurations import BASELINE
from cl_jax.report.measure import Measure
from cl_jax.report.settings import EDGE, describe, format_value
from cl_jax.report.summary import SummaryRow
from cl_jax.wording import Wording

EDGE_NOTE = (
    f"{EDGE} the smallest or largest value tried: a better one may lie beyond it, widen the grid before comparing."
)


class Column(NamedTuple):
    """One column of the rounded tables."""

    header: str  # as short as a terminal wants it
    cell: Callable[[SummaryRow], str]
    words: bool = False  # stands left
    brief: bool = True  # in the terminal too
    title: str = ""  # the header where there is room for it
    metric: str = ""  # the spread it shows with its error
    meaning: str = ""  # of its numbers; {tasks}: those that they are of


def columns(rows: Sequence[SummaryRow], brief: bool = False, several: bool = False) -> list[Column]:
    """The columns of the rounded tables, without those in which no row has anything to say.

    Args:
        rows: of `summary`, of one measure.
        brief: leave out what is rarely read, and the number of seeds where it is the same everywhere.
        several: name the streams even if there is one.
    """
    several, measure = several or len({row.stream for row in rows}) > 1, rows[0].measure
    uneven = len({(row.num_complete, row.num_seeds) for row in rows}) > 1
    every = [
        Column("stream", lambda row: printable(row.stream) if several else "-", words=True, brief=False),
        Column("method", lambda row: printable(row.method), words=True),
        Column("chosen", lambda row: printable(", ".join(describe(row.chosen, row.at_edge))) or "-", words=True),
        Column("seeds", _seeds, brief=uneven),
        *(_of_metric(measure, name) for name in measure.columns),
        Column(f"vs {BASELINE} [95 %]", _difference),
    ]
    always = ("method", "seeds", measure.metrics[measure.end].header)
    wanted = [each for each in every if each.header in always or any(each.cell(row) != "-" for row in rows)]
    return [each for each in wanted if each.brief or not brief]


def _of_metric(measure: Measure, name: str) -> Column:
    metric = measure.metrics[name]

    def cell(row: SummaryRow) -> str:
        value = getattr(row, name)
        return metric.format.mean(value) if metric.error else metric.format.number(value.mean, metric.sign)

    shown = name if metric.error else ""
    return Column(metric.header, cell, False, metric.brief, metric.title, shown, metric.meaning)


def _seeds(row: SummaryRow) -> str:
    return str(row.num_complete) + f"/{row.num_seeds}" * (row.num_seeds > row.num_complete)


def caption(rows: Sequence[SummaryRow]) -> str:
    """What the numbers of the rounded tables are, and how the configurations were chosen."""
    counts = {(row.num_complete, row.num_seeds) for row in rows}
    finished, begun = next(iter(counts))
    if len(counts) == 1 and finished == begun:
        over = "one seed" if begun == 1 else f"mean ± standard error over {begun} seeds"
    else:
        over = "mean ± standard error over the seeds that have finished"
    protocol = rows[0].protocol
    said = f"{rows[0].measure.words.tables}, test split, {over}. Chosen by {protocol.words}."
    return said + f" {protocol.caution}." * bool(protocol.caution)


def tasks(row: SummaryRow) -> str:
    """The tasks that the numbers of a row are of."""
    return task_span(row.first_task, row.num_tasks, row.wording)


def task_span(first: int, num_tasks: int, wording: Wording) -> str:
    """The tasks of a stream from one on."""
    return f"all {wording.tasks}" if first == 1 else wording.span(first, num_tasks)


def notes(rows: Sequence[SummaryRow]) -> list[str]:
    """What a star means, then the grids tried and the warnings, rows with the same ones together."""
    several = len({row.stream for row in rows}) > 1
    lines: dict[str, list[str]] = {}
    for row in rows:
        tried = [f"tried {name} {', '.join(map(format_value, values))}" for name, values in row.tried.items()]
        if tried or row.warnings:
            where = f"{row.method} on {row.stream}" if several else row.method
            lines.setdefault("; ".join([*tried, *row.warnings]), []).append(where)
    star = [EDGE_NOTE] if any(row.at_edge for row in rows) else []
    return star + [printable(f"{', '.join(where)}: {line}.") for line, where in lines.items()]


def printable(text: str) -> str:
    """The text on one line, control characters (a terminal would obey them) as U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def cut(text: str, length: int) -> str:
    """The text on one line, its end as an ellipsis if it is too long."""
    text = printable(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def _difference(row: SummaryRow) -> str:
    if row.difference is None:
        return "-"
    mean, low, high, n = row.difference
    written = row.measure.format
    return written.number(mean, sign=True) + (f" {written.interval(low, high)}" if n > 1 else "")

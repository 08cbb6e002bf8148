"""What stands in the cells of a table: numbers in percent, hyper-parameters, notes. Plain text."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cl_jax.report.configurations import BASELINE
from cl_jax.report.settings import EDGE, describe, format_value
from cl_jax.report.summary import SummaryRow
from cl_jax.statistics import Spread

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


def columns(rows: Sequence[SummaryRow], brief: bool = False) -> list[Column]:
    """The columns of the rounded tables, without those in which no row has anything to say.

    Args:
        rows: of `summary`.
        brief: leave out what is rarely read, and the number of seeds where it is the same everywhere.
    """
    several = len({row.stream for row in rows}) > 1
    uneven = len({(row.num_complete, row.num_seeds) for row in rows}) > 1
    every = [
        Column("stream", lambda row: printable(row.stream) if several else "-", words=True, brief=False),
        Column("method", lambda row: printable(row.method), words=True),
        Column("chosen", lambda row: printable(", ".join(describe(row.chosen, row.at_edge))) or "-", words=True),
        Column("seeds", _seeds, brief=uneven),
        _mean("accuracy", "average_accuracy", title="average accuracy"),
        _mean("forgetting", "forgetting"),
        _mean("learning", "learning_accuracy", title="learning accuracy"),
        Column("AIA", lambda row: number(row.average_incremental_accuracy.mean), brief=False),
        Column("BWT", lambda row: number(row.backward_transfer.mean, sign=True), brief=False),
        Column("FWT", lambda row: number(row.forward_transfer.mean, sign=True), brief=False),
        Column(f"vs {BASELINE} [95 %]", _difference),
    ]
    always = ("method", "seeds", "accuracy")
    wanted = [each for each in every if each.header in always or any(each.cell(row) != "-" for row in rows)]
    return [each for each in wanted if each.brief or not brief]


def _mean(header: str, metric: str, title: str = "") -> Column:
    return Column(header, lambda row: percent(getattr(row, metric)), title=title, metric=metric)


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
    return f"Percent, test split, {over}. Chosen by {protocol.words}." + f" {protocol.caution}." * bool(
        protocol.caution
    )


def tasks(row: SummaryRow) -> str:
    """The tasks that the numbers of a row are of."""
    return task_span(row.first_task, row.num_tasks)


def task_span(first: int, num_tasks: int) -> str:
    """The tasks of a stream from one on."""
    if first == 1:
        return "all tasks"
    return f"tasks {first} to {num_tasks}" if first < num_tasks else f"task {num_tasks}"


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


def number(value: float, sign: bool = False) -> str:
    """A fraction in percent with one decimal; `-` for NaN."""
    if math.isnan(value):
        return "-"
    value = round(100 * value, 1) + 0.0  # + 0.0: no "-0.0"
    return f"{value:+.1f}" if sign and value else f"{value:.1f}"


def percent(value: Spread) -> str:
    """`51.8 ± 2.2`: mean and standard error; without the latter for a single seed."""
    return number(value.mean) + (f" ± {number(value.sem)}" if value.n > 1 and not math.isnan(value.mean) else "")


def interval(low: float, high: float) -> str:
    """`[+9.3, +14.9]`."""
    return f"[{number(low, sign=True)}, {number(high, sign=True)}]"


def printable(text: str) -> str:
    """The text on one line, control characters (a terminal would obey them) as U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _difference(row: SummaryRow) -> str:
    if row.difference is None:
        return "-"
    mean, low, high, n = row.difference
    return number(mean, sign=True) + (f" {interval(low, high)}" if n > 1 else "")

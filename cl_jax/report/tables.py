"""The summary as a table: terminal text, Markdown, LaTeX (booktabs) or CSV."""

import csv
import io
import itertools
import math
import re
from collections.abc import Sequence

import rich.box
import rich.console
import rich.table
import rich.text

from cl_jax.errors import unknown
from cl_jax.report import cells
from cl_jax.report.cells import printable
from cl_jax.report.configurations import BASELINE
from cl_jax.report.kinds import ACCURACY
from cl_jax.report.settings import describe, format_value
from cl_jax.report.summary import SummaryRow
from cl_jax.report.text_tables import Table
from cl_jax.report.words import findings

TERMINAL_WIDTH = 100
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def render_table(rows: Sequence[SummaryRow], format: str = "terminal") -> str:
    """The summary as text.

    Args:
        rows: of `summary`.
        format: "terminal" (at most 100 columns, with the result in words), "markdown", "latex" (booktabs): percent,
            rounded, mean and standard error; or "csv": every digit, accuracies as fractions.

    Raises:
        UserError: an unknown format.
    """
    formats = {"terminal": _terminal, "markdown": _markdown, "latex": _latex, "csv": _csv}
    if format not in formats:
        raise unknown("table format", format, formats)
    return formats[format](rows)


def by_stream(rows: Sequence[SummaryRow]) -> dict[str, list[SummaryRow]]:
    """The rows of each stream."""
    groups: dict[str, list[SummaryRow]] = {}
    for row in rows:
        groups.setdefault(row.stream, []).append(row)
    return groups


def by_measure(rows: Sequence[SummaryRow]) -> list[list[SummaryRow]]:
    """The rows of each measure, which share a table."""
    groups: dict[str, list[SummaryRow]] = {}
    for row in rows:
        groups.setdefault(row.measure.name, []).append(row)
    return list(groups.values())


def _terminal(rows: Sequence[SummaryRow]) -> str:
    out = io.StringIO()
    console = rich.console.Console(file=out, width=TERMINAL_WIDTH, color_system=None, highlight=False)
    for stream, group in by_stream(rows).items():
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
        shown = cells.columns(group, brief=True)
        for column in shown:
            justify = "left" if column.words else "right"
            table.add_column(column.header, justify=justify, overflow="fold", no_wrap=not column.words)
        for row in group:
            table.add_row(*(rich.text.Text(column.cell(row)) for column in shown))
        of = cells.tasks(group[0])
        meanings = [f"{each.header}: {each.meaning.format(tasks=of)}." for each in shown if each.meaning]
        tasks = group[0].wording.several(group[0].num_tasks)
        console.print(rich.text.Text(f"{printable(stream)}, {tasks}\n"))
        console.print(table)
        console.print(rich.text.Text(f"\n{' '.join([cells.caption(group), *meanings])}\n"))
        for lines in (findings(group), cells.notes(group)):
            console.print(rich.text.Text("\n".join(lines) + "\n" * bool(lines)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip() + "\n"


def _flat(rows: Sequence[SummaryRow], several: bool) -> tuple[list[str], list[list[str]], int]:
    """Header and rows of a table of all streams of a measure, and how many columns of words it starts with."""
    shown = cells.columns(rows, several=several)
    body = [[column.cell(row) for column in shown] for row in rows]
    return [column.title or column.header for column in shown], body, sum(column.words for column in shown)


def plain_markdown(stream: str, table: Table) -> str:
    """A table of a stream with its heading."""
    heading = f"## {_of_markdown(table.title)}: {_of_markdown(printable(stream))}"
    rows = [[printable(cell) for cell in row] for row in table.rows]
    lines = _markdown_lines([name for name, _ in table.columns], [words for _, words in table.columns], rows)
    return f"{heading}\n\n{lines}\n\n{_of_markdown(table.caption)}\n"


def _of_markdown(text: str) -> str:
    return "".join("\\" + character if character in "\\|`*_<>[]~" else character for character in text)


def _markdown_lines(header: Sequence[str], words: Sequence[bool], body: Sequence[Sequence[str]]) -> str:
    rule = ["---" if each else "---:" for each in words]
    lines = [[*map(_of_markdown, header)], rule, *([*map(_of_markdown, line)] for line in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown(rows: Sequence[SummaryRow]) -> str:
    groups = by_measure(rows)
    return "\n".join(_markdown_table(group, len(groups) > 1) for group in groups)


def _markdown_table(rows: Sequence[SummaryRow], several: bool) -> str:
    header, body, words = _flat(rows, several)
    text = _markdown_lines(header, [index < words for index in range(len(header))], body)
    notes = "".join(f"\n- {_of_markdown(line)}" for line in cells.notes(rows))
    return f"{text}\n\n{_of_markdown(cells.caption(rows))}\n{notes}".rstrip() + "\n"


def _latex(rows: Sequence[SummaryRow]) -> str:
    groups = by_measure(rows)
    return "\n".join(_latex_table(group, len(groups) > 1) for group in groups)


def _latex_table(rows: Sequence[SummaryRow], several: bool) -> str:
    def escape(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in text)

    def figure(text: str) -> str:
        # A hyphen is no minus sign.
        return re.sub(r"(?<!\w)-(?=\d)", "$-$", escape(text))

    header, body, words = _flat(rows, several)
    lines = [[*map(escape, header)]]
    lines += [[*map(escape, line[:words]), *map(figure, line[words:])] for line in body]
    # A row that starts with "[" would be read as the optional argument of the \\ before it.
    first, *rest = [" & ".join("{}" * cell.startswith("[") + cell for cell in line) + r" \\" for line in lines]
    return "\n".join(
        [
            f"% Needs \\usepackage{{booktabs}}. {cells.caption(rows)}",
            *(f"% {line}" for line in cells.notes(rows)),
            rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(header) - words)}}}",
            r"\toprule",
            first,
            r"\midrule",
            *_separated(rows, rest),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _separated(rows: Sequence[SummaryRow], lines: Sequence[str]) -> list[str]:
    """The lines with a rule between streams."""
    changed = [False, *(row.stream != before.stream for before, row in itertools.pairwise(rows))]
    return [part for new, line in zip(changed, lines, strict=True) for part in [r"\midrule"] * new + [line]]


def _csv(rows: Sequence[SummaryRow]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = list(dict.fromkeys(name for row in rows for name in row.measure.metrics))
    spreads = [f"{name}_{part}" for name in names for part in ("mean", "std", "sem", "n")]
    differences = [f"difference_to_{BASELINE}_{part}" for part in ("mean", "low", "high", "n")]
    # Where all is accuracy, none says so.
    measured = any(row.measure is not ACCURACY for row in rows)
    facts = ["stream", "method", *["measure"] * measured, "selection", "first_task", "chosen", "tried", "at_edge"]
    counts = ["seeds", "complete", "diverged", "unfinished", "stopped_configurations"]
    writer.writerow([*facts, *counts, *spreads, *differences, "notes", "members"])
    for row in rows:
        tried = [f"{name} {' '.join(map(format_value, values))}" for name, values in row.tried.items()]
        writer.writerow(
            [
                *(row.stream, row.method, *[row.measure.name] * measured, row.protocol.words, row.first_task),
                *("; ".join(describe(row.chosen)), "; ".join(tried), "; ".join(row.at_edge)),
                *(row.num_seeds, row.num_complete, row.num_diverged, row.num_unfinished, row.num_stopped),
                *(_exact(part) for name in names for part in getattr(row, name)),
                *(map(_exact, row.difference) if row.difference else [""] * 4),
                *("; ".join(row.warnings), " ".join(row.members)),
            ]
        )
    return out.getvalue()


def _exact(value: float) -> str:
    return "" if math.isnan(value) else repr(value)

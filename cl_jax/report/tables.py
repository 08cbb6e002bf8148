"""The summary as a table: terminal text, Markdown, LaTeX (booktabs) or CSV."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from cl_jax.errors import unknown
from cl_jax.report.configurations import BASELINE
from cl_jax.report.summary import SummaryRow
from cl_jax.statistics import Spread

TERMINAL_WIDTH = 100
SPREADS = (
    "average_accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "learning_accuracy",
    "backward_transfer",
    "forward_transfer",
)
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
        format: "terminal" (at most 100 columns), "markdown", "latex" (booktabs): percent, rounded, mean and standard
            error; or "csv": fractions, every digit.

    Raises:
        UserError: an unknown format.
    """
    formats = {"terminal": _terminal, "markdown": _markdown, "latex": _latex, "csv": _csv}
    if format not in formats:
        raise unknown("table format", format, formats)
    return formats[format](rows)


def columns() -> list[tuple[str, Callable[[SummaryRow], str]]]:
    """Header and cell of each column of the rounded tables, in percent."""
    return [
        ("method", lambda row: printable(row.method)),
        ("chosen", lambda row: printable(", ".join(describe(row.chosen, row.at_edge))) or "-"),
        ("seeds", lambda row: str(len(row.members)) + f"/{row.num_seeds}" * (row.num_seeds > len(row.members))),
        ("average accuracy", lambda row: _percent(row.average_accuracy)),
        ("forgetting", lambda row: _percent(row.forgetting)),
        ("learning accuracy", lambda row: _percent(row.learning_accuracy)),
        ("BWT", lambda row: number(row.backward_transfer.mean, sign=True)),
        ("FWT", lambda row: number(row.forward_transfer.mean, sign=True)),
        (f"vs {BASELINE} [95 %]", _difference),
    ]


def table_notes(rows: Sequence[SummaryRow]) -> list[str]:
    """The grid tried and the warnings, one line for each row that has any."""
    several = len({row.stream for row in rows}) > 1
    lines = []
    for row in rows:
        tried = [f"tried {name} {', '.join(map(format_value, values))}" for name, values in row.tried.items()]
        if tried or row.notes:
            where = f"{row.method} on {row.stream}" if several else row.method
            lines.append(printable(f"{where}: {'; '.join([*tried, *row.notes])}."))
    return lines


def number(value: float, sign: bool = False) -> str:
    """A fraction in percent with one decimal; `-` for NaN."""
    if math.isnan(value):
        return "-"
    value = round(100 * value, 1) + 0.0  # + 0.0: no "-0.0"
    return f"{value:+.1f}" if sign and value else f"{value:.1f}"


def format_value(value: Any) -> str:
    """A hyper-parameter for reading: six digits, so that float32 0.1 is 0.1."""
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def describe(values: Mapping[str, Any], at_edge: Sequence[str] = ()) -> list[str]:
    """`["strength 10 (edge of grid)", ...]`; hyper-parameters that do not apply are left out."""
    given = {name: value for name, value in values.items() if value is not None}
    return [f"{name} {format_value(given[name])}" + " (edge of grid)" * (name in at_edge) for name in given]


def printable(text: str) -> str:
    """The text on one line, control characters (a terminal would obey them) as U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _percent(value: Spread) -> str:
    return "-" if math.isnan(value.mean) else f"{number(value.mean)} ± {number(value.sem)}"


def _difference(row: SummaryRow) -> str:
    if row.difference is None:
        return "-"
    mean, low, high = (number(value, sign=True) for value in row.difference[:3])
    return f"{mean} [{low}, {high}]" if row.difference.n > 1 else f"{mean} [-]"


def _by_stream(rows: Sequence[SummaryRow]) -> dict[str, list[SummaryRow]]:
    groups: dict[str, list[SummaryRow]] = {}
    for row in rows:
        groups.setdefault(row.stream, []).append(row)
    return groups


def _terminal(rows: Sequence[SummaryRow]) -> str:
    headers = ["method", "chosen", "seeds", "average\naccuracy", "forgetting", "learning\naccuracy", "BWT", "FWT"]
    out = io.StringIO()
    console = rich.console.Console(file=out, width=TERMINAL_WIDTH, color_system=None, highlight=False)
    for stream, group in _by_stream(rows).items():
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=0, title_justify="left")
        table.title = rich.text.Text(printable(stream), style="bold")
        for index, header in enumerate([*headers, f"vs {BASELINE}\n[95 %]"]):
            words = index < 2
            table.add_column(
                header,
                justify="left" if words else "right",
                overflow="fold",
                no_wrap=False if words or index == 8 else True,
                max_width=15 if words else 14 if index == 8 else None,
            )
        for row in group:
            *cells, difference = (cell(row) for _, cell in columns())
            table.add_row(*map(rich.text.Text, [*cells, difference.replace(" [", "\n[")]))
        console.print(table)
    console.print("Percent, mean ± standard error over seeds, test split.")
    for line in table_notes(rows):
        console.print(rich.text.Text(line))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _cells(rows: Sequence[SummaryRow]) -> list[list[str]]:
    """Header and rows of a flat table; the stream is a column where there are several."""
    shown = columns()
    if len({row.stream for row in rows}) > 1:
        shown = [("stream", lambda row: printable(row.stream)), *shown]
    return [[header for header, _ in shown], *([cell(row) for _, cell in shown] for row in rows)]


def _markdown(rows: Sequence[SummaryRow]) -> str:
    def escape(text: str) -> str:
        return "".join("\\" + character if character in "\\|`*_<>[]" else character for character in text)

    header, *body = _cells(rows)
    words = header.index("seeds")
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *([*map(escape, cells)] for cells in body)]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = "".join(f"\n- {escape(line)}" for line in table_notes(rows))
    return f"{text}\n\nPercent, mean ± standard error over seeds, test split.\n{notes}".rstrip() + "\n"


def _latex(rows: Sequence[SummaryRow]) -> str:
    def escape(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in text)

    header, *body = ([escape(cell) for cell in cells] for cells in _cells(rows))
    words = header.index("seeds")
    # A row that starts with "[" would be read as the optional argument of the \\ before it.
    lines = [" & ".join("{}" * cell.startswith("[") + cell for cell in cells) + r" \\" for cells in [header, *body]]
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs}. Percent, mean and standard error over seeds, test split.",
            *(f"% {line}" for line in table_notes(rows)),
            rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(header) - words)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _csv(rows: Sequence[SummaryRow]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    spreads = [f"{name}_{part}" for name in SPREADS for part in ("mean", "std", "sem")]
    differences = [f"difference_to_{BASELINE}_{part}" for part in ("mean", "low", "high", "n")]
    facts = ["stream", "method", "chosen", "tried", "at_edge", "seeds", "complete", "diverged", "unfinished"]
    writer.writerow([*facts, *spreads, *differences, "notes", "members"])
    for row in rows:
        tried = [f"{name} {' '.join(map(format_value, values))}" for name, values in row.tried.items()]
        writer.writerow(
            [
                *(row.stream, row.method, "; ".join(describe(row.chosen)), "; ".join(tried), "; ".join(row.at_edge)),
                *(row.num_seeds, len(row.members), row.num_diverged, row.num_unfinished),
                *(_exact(part) for name in SPREADS for part in getattr(row, name)[:3]),
                *(map(_exact, row.difference) if row.difference else [""] * 4),
                *("; ".join(row.notes), " ".join(row.members)),
            ]
        )
    return out.getvalue()


def _exact(value: float) -> str:
    return "" if math.isnan(value) else repr(value)

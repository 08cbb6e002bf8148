"""Rows as Markdown tables: one place for how numbers look."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from experiments.benchmark.rows import Row

Cells = Callable[[Row], Any]


def number(value: float) -> str:
    """Three significant digits, no exponent: 0.0917, 1.23, 45.6, 789, 1234."""
    if value == 0:
        return "0"
    if abs(value) >= 999.5:  # which would round to 1.00e+03
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-3 else f"{value:.2g}"


def with_spread(row: Row) -> str:
    """The median, and the quartiles where there were rounds."""
    return number(row.value) if row.rounds == 1 else f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; nothing where there are no lines."""
    lines = list(lines)
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(one) + " |" for one in (header, ["---"] * len(header), *lines)]) + "\n"


def pivot(
    rows: Sequence[Row], index: dict[str, Cells], column: Cells, show: Callable[[Row], str] = lambda r: number(r.value)
) -> str:
    """One line for each value of `index` (title -> function of the row), one column for each value of `column`.

    Lines and columns come in the order of the rows; where two rows fall into one cell the later one is shown.
    """
    columns = list(dict.fromkeys(column(one) for one in rows))
    lines: dict[tuple[str, ...], dict[Any, str]] = {}
    for one in rows:
        lines.setdefault(tuple(str(cell(one)) for cell in index.values()), {})[column(one)] = show(one)
    header = [*index, *(str(one) for one in columns)]
    return table(header, [[*key, *(cells.get(one, "") for one in columns)] for key, cells in lines.items()])


def step(row: Row) -> str:
    """`mlp-400, b128, sgd`"""
    return ", ".join(part for part in (row.model, f"b{row.batch_size}", row.optimizer) if part)


def packing(row: Row) -> str:
    """`2 x 4`: devices times width; what is not ours by its own name."""
    return f"{row.devices} x {row.width}" if row.who == "cl_jax" else row.who

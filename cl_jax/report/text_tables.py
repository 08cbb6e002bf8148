"""The tables that only streams measured in bits have: methods at equal learning, and every domain after every stage.

Plain text, which the page and summary.md put into their own form.
"""

from typing import NamedTuple

import numpy as np

from cl_jax.fronts import SHARES
from cl_jax.report import panels, trade
from cl_jax.report.configurations import BASELINE, Configuration
from cl_jax.report.streams import Stream
from cl_jax.report.trade import Compared, Trade
from cl_jax.statistics import spread

LESS, MORE = "↓", "↑"


class Table(NamedTuple):
    """A table for reading."""

    title: str
    caption: str
    columns: list[tuple[str, bool]]  # header, and whether it is of words
    rows: list[list[str]]
    below: str  # the kind of the figure that it stands below on the page


def tables(stream: Stream) -> list[Table]:
    """Those that the results of a stream allow; none where learning and forgetting are not of one unit."""
    if not stream.measure.one_unit:
        return []
    found = trade.compare(stream)
    return [*([_matched(stream, found)] if found else []), _stages(stream)]


def _matched(stream: Stream, found: Trade) -> Table:
    measure = stream.measure
    number, unit = measure.format.number, measure.words.step
    levels = [(share, level) for share, level in zip(SHARES, found.levels, strict=True) if np.isfinite(level)]
    headers = [f"at {100 * share:.0f} % ({number(level)})" for share, level in levels]
    rows = [
        [
            method, str(each.num_points), *(_cell(stream, each, k) for k in range(len(levels))),
            number(each.hypervolume),
        ]
        for method, each in found.methods.items()
    ]  # fmt: skip
    said = [
        f"Forgetting in{unit} where a method has learned as much as {BASELINE} at these shares of the range that its "
        f"configurations reach (in brackets: the learning, in{unit}), read off the lines above, with 95 % bootstrap "
        f"intervals over seeds; - is beyond the ends of its line. {LESS}: forgets less than {BASELINE} for the same "
        f"learning, {MORE}: more, by an interval of the difference, paired by seed, that excludes 0."
        if levels
        else f"Forgetting at equal learning needs {BASELINE} with two configurations at least, such as learning rates.",
        f"Hypervolume: of what lies behind a method's line, up to no learning and a forgetting of {number(found.worst)}"
        f", the most of any configuration; it grows with the number of configurations.",
    ]
    if np.isfinite(found.noise.forgetting):
        said.append(
            f"Noise of seeds alone: forgetting {number(found.noise.forgetting)}, learning "
            f"{number(found.noise.learning)}."
        )
    if found.num_left_out:
        several = "s" * (found.num_left_out > 1)
        said.append(f"Left out for a diverged seed: {found.num_left_out} configuration{several}.")
    columns = [
        ("method", True),
        ("configurations", False),
        *((each, False) for each in headers),
        ("hypervolume", False),
    ]
    return Table("Forgetting at equal learning", " ".join(said), columns, rows, "fronts")


def _cell(stream: Stream, each: Compared, k: int) -> str:
    value, low, high = (part[k] for part in each.forgetting)
    if np.isnan(value):
        return "-"
    number = stream.measure.format.number
    interval = f" [{number(low)}, {number(high)}]" if np.isfinite(low) else ""
    mark = ""
    if each.difference is not None:
        mark = f" {LESS}" if each.difference.high[k] < 0 else f" {MORE}" if each.difference.low[k] > 0 else ""
    return f"{number(value)}{interval}{mark}"


def _stages(stream: Stream) -> Table:
    measure, words = stream.measure, stream.wording
    domains = [words.one(task) for task in range(1, stream.num_tasks + 1)]
    stages = ["random weights", *(f"after {domain}" for domain in domains)]
    of = {method: _by_stage(configuration) for method, configuration in stream.chosen.items()}
    # The start and, as a rule, the base are the same for all that have numbers.
    shared = []
    for stage in range(len(stages) if len(of) > 1 else 0):
        cells = {tuple(each[stage]) for each in of.values()} - {("-",) * len(domains)}
        if len(cells) != 1:
            break
        shared.append(["every method", stages[stage], *cells.pop()])
    rows, same = [*shared], len(shared)
    for method, each in of.items():
        own = zip(stages[same:], each[same:], strict=True)
        rows += [[method * (not place), stage, *cells] for place, (stage, cells) in enumerate(own)]
    caption = (
        f"{measure.name[0].upper()}{measure.name[1:]} on each domain after each stage, of each method's chosen "
        f"configuration: mean ± standard error over seeds. After {domains[0]}: the base."
    )
    columns = [("method", True), ("stage", True), *((each, False) for each in domains)]
    return Table("Every domain after every stage", caption, columns, rows, f"{measure.kind}-matrix")


def _by_stage(configuration: Configuration) -> list[list[str]]:
    """Cells [T + 1][T]."""
    kept, written = panels.shown(configuration), configuration.measure.format
    before = configuration.initial["test"][kept][:, None]
    matrix = np.concatenate([before, configuration.matrix["test"][kept]], axis=1)
    return [
        [written.mean(spread(column[np.isfinite(column)])) for column in values.T]
        for values in np.swapaxes(matrix, 0, 1)
    ]

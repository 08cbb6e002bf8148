"""What the runs of a stream are measured in, and how such numbers are read and written.

Everything in the report that shows a number of a run asks the stream's `Measure` for it. There are two, see
`cl_jax.report.kinds`.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from cl_jax.statistics import Spread

# `(R [S, T, T], initial [S, T] or None where it is undefined, first) -> [S]`, of the tasks from `first` on, from 1
Score = Callable[[np.ndarray, np.ndarray | None, int], np.ndarray]


class Format(NamedTuple):
    """How numbers are written."""

    scale: float  # what 1 is shown as
    decimals: int

    def number(self, value: float, sign: bool = False) -> str:
        """Rounded, with a plus too if `sign`; `-` for NaN."""
        if math.isnan(value):
            return "-"
        value = round(self.scale * value, self.decimals) + 0.0  # + 0.0: no "-0.0"
        digits = f".{self.decimals}f" if abs(value) < 1e6 else ".3g"  # of a run that diverged
        return f"{value:+{digits}}" if sign and value else f"{value:{digits}}"

    def mean(self, value: Spread) -> str:
        """`51.8 ± 2.2`: mean and standard error; without the latter for a single seed."""
        return self.number(value.mean) + (
            f" ± {self.number(value.sem)}" if value.n > 1 and not math.isnan(value.mean) else ""
        )

    def interval(self, low: float, high: float) -> str:
        """`[+9.3, +14.9]`."""
        return f"[{self.number(low, sign=True)}, {self.number(high, sign=True)}]"

    def digits(self, value: float) -> str:
        """With one digit more."""
        return "-" if math.isnan(value) else f"{self.scale * value:.{self.decimals + 1}f}"


class Metric(NamedTuple):
    """A number of a run, and its column in the rounded tables."""

    score: Score
    format: Format
    header: str = ""  # as short as a terminal wants it
    title: str = ""  # the header where there is room for it, if another one
    meaning: str = ""  # said below the terminal's table; {tasks}: those that the number is of
    error: bool = True  # whether it stands with its error
    sign: bool = False  # whether with its sign
    brief: bool = True  # in the terminal too


class Words(NamedTuple):
    """What is said of numbers; {}: the number with its unit."""

    unit: str  # behind a number: " %"
    step: str  # behind a difference: " points"
    numbers: str  # what they are: "percent"
    tables: str  # the same at the head of a caption
    mean: str  # over tasks: "accuracy"
    learns: str  # "learns each task to {}"
    learning: str  # "learning new tasks to {}"
    against: str  # behind that, of another method: " against {}", {}: the number alone
    learned: str  # "it learned new tasks to {}"
    cost: str  # "{} just after learning"
    bound: str  # what joint training is


class Measure(NamedTuple):
    """A measure. What is shown of it is `format.scale` times it; what runs are ranked by is `sign` times it."""

    name: str
    kind: str  # in names of files and figures
    column: str  # metric of the results table
    factor: float  # times what stands there
    higher_is_better: bool
    format: Format
    metrics: Mapping[str, Metric]  # in the order of the exact tables
    columns: tuple[str, ...]  # of them, in the order of the rounded tables
    end: str  # the metric that methods are ranked by
    learning: str  # the metric of what was learned
    words: Words
    axis: str  # behind the name of an axis: " (%)"
    learning_axis: str
    forgetting_axis: str
    range: tuple[int, int] | None  # that it cannot leave, as shown; None: there is none, axes show what was found
    cell_decimals: int  # in the cells of a matrix
    first_row: int  # from which a task's measure is drawn: 0, or 1 where random weights lie far off all others
    one_unit: bool  # whether learning and forgetting are of one unit, so that methods compare along their curves

    @property
    def sign(self) -> float:
        """1 or -1."""
        return 1.0 if self.higher_is_better else -1.0

    @property
    def curves(self) -> tuple[str, str, str]:
        """The metrics that are drawn against hyper-parameters."""
        return self.end, self.learning, "forgetting"

    def amount(self, value: float) -> str:
        """`51.8 %`."""
        return self.format.number(value) + self.words.unit

    def points(self, value: float) -> str:
        """A difference: `5.0 points`."""
        return self.format.number(value) + self.words.step

    def zero(self, value: float) -> bool:
        """Whether it is shown as 0."""
        return not math.isnan(value) and float(self.format.number(value)) == 0

    def good(self, higher: str, lower: str) -> str:
        """Which of the two words is that of a better number."""
        return higher if self.higher_is_better else lower

    def bad(self, higher: str, lower: str) -> str:
        """Which is that of a worse one."""
        return self.good(lower, higher)


def spoken(metric: str) -> str:
    """A metric's name for reading."""
    return metric.replace("_", " ")

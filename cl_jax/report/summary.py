"""One row a stream and method: what the chosen configuration reached, how surely, and what to beware of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow

from cl_jax.report.cautions import cautions
from cl_jax.report.configurations import BASELINE, Configuration
from cl_jax.report.kinds import ACCURACY
from cl_jax.report.measure import Measure
from cl_jax.report.settings import is_number, short_names, tried_values
from cl_jax.report.streams import Stream, read
from cl_jax.selection import ALL, Protocol
from cl_jax.statistics import Difference, Spread, paired_difference, spread
from cl_jax.wording import Wording

SPREADS = tuple(ACCURACY.metrics)  # of images
_NONE = spread([])


class SummaryRow(NamedTuple):
    """One method on one stream, shown by its chosen configuration, on the test split.

    Accuracies are fractions. Of text everything is in bits per byte, but retention, a fraction; of the metrics it has
    those that `measure` has, the others are of no values.
    """

    stream: str
    method: str
    num_tasks: int
    first_task: int  # every number is of the tasks from this one on; 1: of all
    protocol: Protocol
    measure: Measure
    wording: Wording
    chosen: dict[str, Any]  # short name of each swept hyper-parameter -> chosen value; empty where none was chosen
    tried: dict[str, list[Any]]  # the same names -> values tried, sorted where they are numbers
    at_edge: list[str]  # names whose chosen value is the smallest or largest tried: the grid may be too narrow
    members: list[str]  # the complete members that the numbers come from
    num_seeds: int  # that are to be reported, complete or not
    num_complete: int
    num_diverged: int
    num_unfinished: int
    num_stopped: int  # configurations of the method that were stopped at a boundary
    average_accuracy: Spread
    average_incremental_accuracy: Spread
    forgetting: Spread
    learning_accuracy: Spread
    backward_transfer: Spread
    forward_transfer: Spread
    difference: Difference | None  # of the measure at the end to fine-tuning, paired by seed; None: no such pair
    warnings: list[str]  # what else a reader must know before using the row
    bits_per_byte: Spread = _NONE
    learning: Spread = _NONE
    retention: Spread = _NONE

    @property
    def end(self) -> Spread:
        """What it is ranked by: the measure over the tasks at the end."""
        return getattr(self, self.measure.end)

    @property
    def learned(self) -> Spread:
        """What was learned of each task, as the measure has it."""
        return getattr(self, self.measure.learning)

    @property
    def num_reported(self) -> int:
        """The number of tasks that every number is of."""
        return self.num_tasks - self.first_task + 1


def summary(
    table: pyarrow.Table, num_tasks: Mapping[str, int] | None = None, protocol: Protocol = ALL
) -> list[SummaryRow]:
    """One row per (stream, method), in the order of `streams.by_result`; see `streams.read` for the arguments."""
    return summarize(read(table, num_tasks, protocol))


def summarize(streams: Sequence[Stream]) -> list[SummaryRow]:
    """`summary` of a table already read."""
    return [_row(stream, method) for stream in streams for method in stream.chosen]


def _row(stream: Stream, method: str) -> SummaryRow:
    shown, of = stream.chosen[method], stream.of(method)
    short = short_names(stream.swept[method])
    tried, ends = {short[name]: tried_values(of, name) for name in short}, _ends(stream, method)
    return SummaryRow(
        stream=stream.label,
        method=method,
        num_tasks=stream.num_tasks,
        first_task=shown.first_task,
        protocol=stream.protocol,
        measure=stream.measure,
        wording=stream.wording,
        chosen={} if shown.stopped.any() else {short[name]: shown.hyper_parameters[name] for name in short},
        tried=tried,
        at_edge=[short[name] for name in short if _at_edge(ends, name, tried[short[name]])],
        members=_members(stream, method),
        num_seeds=int(shown.counted.sum()),
        num_complete=int(shown.reported.sum()),
        num_diverged=int((shown.diverged & shown.counted).sum()),
        num_unfinished=int((shown.unfinished & shown.counted).sum()),
        num_stopped=sum(bool(each.stopped.any()) for each in of),
        **dict.fromkeys(SPREADS, _NONE) | {name: spread(shown.scores(name)) for name in stream.measure.metrics},
        difference=_paired(shown, stream.chosen.get(BASELINE)),
        warnings=cautions(stream, method),
    )


def _ends(stream: Stream, method: str) -> list[Configuration]:
    """The configurations that the finished seeds end with."""
    shown, of = stream.chosen[method], stream.of(method)
    rows = stream.choices[method].configuration[np.isin(stream.seeds, shown.seeds[shown.complete]), -1]
    return [of[index] for index in np.unique(rows[rows >= 0])]


def _at_edge(ends: Sequence[Configuration], name: str, tried: list[Any]) -> bool:
    numbers = [each for each in tried if is_number(each)]
    values = [each.hyper_parameters[name] for each in ends]
    return len(numbers) > 1 and any(is_number(value) and value in (min(numbers), max(numbers)) for value in values)


def _members(stream: Stream, method: str) -> list[str]:
    """The complete members that the numbers of the method come from, each once."""
    shown, of, choice = stream.chosen[method], stream.of(method), stream.choices[method]
    members = []
    for seed in shown.seeds[shown.reported]:
        rows = choice.configuration[stream.seeds == seed][0, shown.first_task - 1 :]
        members += [of[index].member(seed) for index in np.unique(rows)]
    return members


def _paired(shown: Configuration, baseline: Configuration | None) -> Difference | None:
    if baseline is None or baseline is shown:
        return None
    seeds = np.intersect1d(shown.seeds[shown.reported], baseline.seeds[baseline.reported])
    if not len(seeds):
        return None
    pair = (each.scores(shown.measure.end)[np.isin(each.seeds[each.reported], seeds)] for each in (shown, baseline))
    return paired_difference(*pair)

"""One row a stream and method: what the chosen configuration reached, how surely, and what to beware of."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow

from cl_jax.report.configurations import BASELINE, Configuration, Stream, read, validation_score
from cl_jax.statistics import Difference, Spread, paired_difference, spread

SPREADS = (
    "average_accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "learning_accuracy",
    "backward_transfer",
    "forward_transfer",
)


class SummaryRow(NamedTuple):
    """One method on one stream, shown by its chosen configuration. Accuracies are fractions, on the test split."""

    stream: str
    method: str
    num_tasks: int
    chosen: dict[str, Any]  # short name of each swept hyper-parameter -> chosen value
    tried: dict[str, list[Any]]  # the same names -> values tried, sorted where they are numbers
    at_edge: list[str]  # names whose chosen value is the smallest or largest tried: the grid may be too narrow
    members: list[str]  # the complete members that the numbers come from
    num_seeds: int  # of the chosen configuration, complete or not
    num_diverged: int
    num_unfinished: int
    average_accuracy: Spread
    average_incremental_accuracy: Spread
    forgetting: Spread
    learning_accuracy: Spread
    backward_transfer: Spread
    forward_transfer: Spread
    difference: Difference | None  # in average accuracy to fine-tuning, paired by seed; None: no such pair
    warnings: list[str]  # what else a reader must know before using the row


def summary(table: pyarrow.Table, num_tasks: Mapping[str, int] | None = None) -> list[SummaryRow]:
    """One row per (stream, method), in the order of `configurations.by_result`; see `read` there for the arguments."""
    return summarize(read(table, num_tasks))


def summarize(streams: Sequence[Stream]) -> list[SummaryRow]:
    """`summary` of a table already read."""
    return [_row(stream, method) for stream in streams for method in stream.chosen]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest dotted ending of each name that no other has, underscores as spaces: methods.ewc.strength ->
    strength."""

    def ending(name: str, length: int) -> str:
        return ".".join(name.split(".")[-length:])

    short = {}
    for name in names:
        length = 1
        while any(ending(other, length) == ending(name, length) for other in names if other != name):
            length += 1
        short[name] = ending(name, length).replace("_", " ")
    return short


def is_number(value: Any) -> bool:
    """An int or float; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def tried_values(configurations: Sequence[Configuration], name: str) -> list[Any]:
    """The distinct values of a hyper-parameter, sorted where all are numbers, else in order of appearance."""
    values = list({repr(value): value for value in (each.hyper_parameters[name] for each in configurations)}.values())
    return sorted(values) if all(map(is_number, values)) else values


def _row(stream: Stream, method: str) -> SummaryRow:
    chosen, candidates = stream.chosen[method], stream.of(method)
    short = short_names(stream.swept[method])
    tried = {short[name]: tried_values(candidates, name) for name in short}
    values = {short[name]: chosen.hyper_parameters[name] for name in short}
    at_edge = [name for name in tried if chosen.complete.any() and _at_edge(values[name], tried[name])]
    return SummaryRow(
        stream=stream.label,
        method=method,
        num_tasks=stream.num_tasks,
        chosen=values,
        tried=tried,
        at_edge=at_edge,
        members=[member for member, complete in zip(chosen.members, chosen.complete, strict=True) if complete],
        num_seeds=len(chosen.seeds),
        num_diverged=int(chosen.diverged.sum()),
        num_unfinished=int(chosen.unfinished.sum()),
        **{name: spread(chosen.scores(name)) for name in SPREADS},
        difference=_paired(chosen, stream.chosen.get(BASELINE)),
        warnings=_warnings(stream, chosen, candidates),
    )


def _warnings(stream: Stream, chosen: Configuration, candidates: list[Configuration]) -> list[str]:
    notes: list[str] = []
    seeds = len(chosen.seeds)
    if chosen.diverged.any():
        notes.append(f"{chosen.diverged.sum()} of {seeds} seeds diverged")
    if chosen.unfinished.any():
        done = _tasks_done(chosen, chosen.unfinished)
        notes.append(f"{chosen.unfinished.sum()} of {seeds} seeds unfinished (after task {done} of {stream.num_tasks})")
    others = [each for each in candidates if each is not chosen]
    diverged = sum(bool(each.diverged.any()) for each in others)
    unfinished = sum(bool(each.unfinished.any()) for each in others)
    if diverged:
        notes.append(f"{diverged} of {len(others)} other configurations with a diverged seed")
    if unfinished:
        notes.append(f"{unfinished} of {len(others)} other configurations with an unfinished seed")
    if others and math.isinf(validation_score(chosen)):
        reason = "no validation accuracy" if chosen.complete.any() else "no finished run"
        notes.append(f"{reason} to choose by, the first configuration is shown")
    return notes


def _tasks_done(configuration: Configuration, members: np.ndarray) -> int:
    """The last task after which every one of these members was evaluated; 0: none."""
    evaluated = ~np.isnan(configuration.accuracy["test"][members]).all(axis=-1)
    return int(np.max(np.flatnonzero(evaluated.all(axis=0)) + 1, initial=0))


def _paired(chosen: Configuration, baseline: Configuration | None) -> Difference | None:
    if baseline is None or baseline is chosen:
        return None
    seeds = np.intersect1d(chosen.seeds[chosen.complete], baseline.seeds[baseline.complete])
    if not len(seeds):
        return None
    pair = (each.scores("average_accuracy")[np.isin(each.seeds[each.complete], seeds)] for each in (chosen, baseline))
    return paired_difference(*pair)


def _at_edge(value: Any, tried: list[Any]) -> bool:
    numbers = [each for each in tried if is_number(each)]
    return is_number(value) and len(numbers) > 1 and value in (min(numbers), max(numbers))

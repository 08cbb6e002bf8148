"""What the choice of selection protocol changes: every protocol on the same results, beside the best choice on test."""

from typing import NamedTuple

import numpy as np

from cl_jax.report.cells import task_span
from cl_jax.report.configurations import Configuration
from cl_jax.report.measure import Measure
from cl_jax.report.settings import settings_in_words, short_names
from cl_jax.report.streams import Stream, candidates, reselected
from cl_jax.selection import Protocol, oracle, suggested
from cl_jax.statistics import Spread, spread


class Outcome(NamedTuple):
    """What a protocol makes of a method."""

    chosen: str  # settings in words, those after the last task where they change
    accuracy: Spread  # average test accuracy (or bits per byte), of the seeds and tasks that the protocol reports
    gap: float  # how much better the best configuration on test is, of the same seeds and tasks; NaN: there is none


class Comparison(NamedTuple):
    """Outcomes of each method that there was something to choose for; "all" is the first protocol."""

    protocols: list[Protocol]
    measured_on: list[str]  # by each protocol
    methods: dict[str, list[Outcome]]  # an outcome for each protocol, then that of the best choice on test
    num_stopped: int  # configurations of these methods that are no candidates
    measure: Measure

    @property
    def gaps(self) -> list[float]:
        """Mean gap over the methods, for each protocol; NaN where a method has none."""
        return [float(np.mean([row[i].gap for row in self.methods.values()])) for i in range(len(self.protocols))]


def compare(stream: Stream) -> Comparison | None:
    """Every protocol that the stream allows; None where no method has two finished configurations."""
    methods = [method for method in stream.chosen if sum(map(_finished, stream.of(method))) > 1]
    if not methods:
        return None
    protocols = suggested(stream.num_tasks, stream.seeds, stream.protocol)
    streams = [reselected(stream, protocol) for protocol in protocols]
    return Comparison(
        [each.protocol for each in streams],
        [measured_on(each) for each in streams],
        {method: [*(_outcome(each, method) for each in streams), _best(streams[0], method)] for method in methods},
        sum(bool(each.stopped.any()) for method in methods for each in stream.of(method)),
        stream.measure,
    )


def sentences(comparison: Comparison) -> list[str]:
    """The table in words."""
    different = [method for method, row in comparison.methods.items() if len({each.chosen for each in row[:-1]}) > 1]
    count, among = len(different), f"of {len(comparison.methods)} methods with a choice"
    said = [f"The protocols choose differently for {count} {among}{': ' * bool(count)}{', '.join(different)}."]
    gaps = {method: row[0].gap for method, row in comparison.methods.items() if not np.isnan(row[0].gap)}
    most = max(gaps, key=lambda method: gaps[method], default="")
    measure = comparison.measure
    if most and not measure.zero(gaps[most]):
        mean, more = measure.points(float(np.mean(list(gaps.values())))), measure.good("more", "less")
        said.append(
            f"Choosing on the test split instead of validation would have shown {mean} {more} on average, "
            f"and {measure.format.number(gaps[most])} for {most}."
        )
    elif most:
        said.append(
            f"Choosing on the test split instead of validation would have shown no {measure.good('more', 'less')}."
        )
    if comparison.num_stopped:
        said.append(f"Configurations stopped early ({comparison.num_stopped}) are in no column, nor best on test.")
    return said


def _finished(configuration: Configuration) -> bool:
    return bool(configuration.complete.any() and not configuration.stopped.any())


def measured_on(stream: Stream) -> str:
    """The tasks and seeds that the numbers of a stream are of."""
    choice = next(iter(stream.choices.values()))
    count = int(choice.seeds.sum())
    return f"{task_span(choice.first_task, stream.num_tasks, stream.wording)}, {count} seed{'s' * (count != 1)}"


def _outcome(stream: Stream, method: str) -> Outcome:
    of, choice = stream.of(method), stream.choices[method]
    best = oracle(candidates(of, stream.seeds, "test"), choice)
    accuracy = spread(stream.chosen[method].scores(stream.measure.end))
    gap = float(best.score[best.order[0]]) - stream.measure.sign * accuracy.mean
    last = np.unique(choice.configuration[choice.seeds, -1])
    return Outcome(_settings(stream, method, last[last >= 0]), accuracy, gap if np.isfinite(gap) else np.nan)


def _best(stream: Stream, method: str) -> Outcome:
    of = stream.of(method)
    best = oracle(candidates(of, stream.seeds, "test"), stream.choices[method]).order[:1]
    return Outcome(_settings(stream, method, best), spread(of[best[0]].scores(stream.measure.end)), 0.0)


def _settings(stream: Stream, method: str, indices: np.ndarray) -> str:
    """The settings of some configurations in words; the values alone from the second on, where one was swept."""
    short, of = short_names(stream.swept[method]), stream.of(method)
    each = [{short[name]: of[index].hyper_parameters[name] for name in short} for index in indices]
    return settings_in_words(each) or "-"

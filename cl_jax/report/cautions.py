"""What a reader must know of a method's numbers beside the numbers: what was stopped, is missing, or was no choice."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cl_jax.report.configurations import Configuration, tasks_done
from cl_jax.report.settings import settings_in_words, short_names
from cl_jax.report.streams import Stream


def cautions(stream: Stream, method: str) -> list[str]:
    """Notes on one method of a stream, each a part of a sentence."""
    shown, of = stream.chosen[method], stream.of(method)
    notes = _by_task(stream, method)
    seeds = int(shown.counted.sum())
    diverged, unfinished = shown.diverged & shown.counted, shown.unfinished & shown.counted
    if diverged.any():
        notes.append(f"{diverged.sum()} of {seeds} seeds diverged")
    if unfinished.any():
        done = stream.wording.reached(tasks_done(shown, unfinished), stream.num_tasks)
        notes.append(f"{unfinished.sum()} of {seeds} seeds unfinished (after {done})")
    chosen = np.unique(stream.choices[method].configuration)
    others = [each for index, each in enumerate(of) if index not in chosen]
    for number, what in (
        (sum(bool(each.diverged.any()) for each in others), "with a diverged seed"),
        (sum(bool(each.unfinished.any()) for each in others), "with an unfinished seed"),
    ):
        if number:
            notes.append(f"{number} of {len(others)} other configurations {what}")
    return notes + stopped(of) + _no_choice(stream, method)


def stopped(configurations: Sequence[Configuration]) -> list[str]:
    """How many were stopped and when, a list of none or one."""
    when = Counter(tasks_done(each, each.stopped) for each in configurations if each.stopped.any())
    if not when:
        return []
    number, tasks = f"{sum(when.values())} of {len(configurations)} configurations stopped early", sorted(when.items())
    several = len(when) > 1
    name = configurations[0].wording.one
    after = ", ".join((f"{count} " if several else "") + f"after {name(task)}" for task, count in tasks)
    return [f"{number} ({after}), never chosen"]


def _no_choice(stream: Stream, method: str) -> list[str]:
    shown, of = stream.chosen[method], [each for each in stream.of(method) if not each.stopped.any()]
    if not of:
        return ["none is left to report"]
    if len(of) == 1:
        return []
    scores = [each.score for each in of if each.complete.any()]
    if not any(map(math.isfinite, scores)):
        reason = f"no validation {stream.measure.name}" if shown.complete.any() else "no finished run"
        return [f"{reason} to choose by, the first configuration is shown"]
    if len(scores) > 1 and len(set(scores)) == 1 and stream.protocol.name != "per-task":
        same = f"have the same validation {stream.measure.name}, the first is shown"
        return [f"all {len(scores)} finished configurations {same}"]
    return []


def _by_task(stream: Stream, method: str) -> list[str]:
    """After which task which configurations were chosen, where it is not the same one always: a list of none or one."""
    rows, of = stream.choices[method].configuration, stream.of(method)
    if len(np.unique(rows[rows >= 0])) < 2:
        return []
    short = short_names(stream.swept[method])
    words = []
    for column in rows.T:
        taken = [of[index].hyper_parameters for index in np.unique(column[column >= 0])]
        words.append(settings_in_words([{short[name]: each[name] for name in short} for each in taken]))
    groups = itertools.groupby(enumerate(words, start=1), key=lambda each: each[1])
    spans = [(text, [task for task, _ in group]) for text, group in groups]
    told = [f"{text} after {stream.wording.span(tasks[0], tasks[-1])}" for text, tasks in spans]
    return [f"chosen {', '.join(told)}"]

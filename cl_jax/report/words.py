"""The result in sentences, computed from the summary: what was forgotten, what kept it, at what cost."""

import math
from collections.abc import Sequence

from cl_jax.report.cells import printable, tasks
from cl_jax.report.configurations import BASELINE, UPPER_BOUND
from cl_jax.report.summary import SummaryRow
from cl_jax.selection import ALL


def findings(rows: Sequence[SummaryRow]) -> list[str]:
    """Sentences on the rows of one stream, the most important first."""
    scored = [row for row in rows if row.members and not math.isnan(row.end.mean)]
    if not scored:
        return [f"No run has been trained on all {rows[0].wording.tasks} yet, so there is nothing to compare."]
    by_method = {row.method: row for row in scored}
    baseline, bound = by_method.get(BASELINE), by_method.get(UPPER_BOUND)
    others = [row for row in scored if row.method not in (BASELINE, UPPER_BOUND)]
    best = max(others, key=lambda row: row.measure.sign * row.end.mean, default=None)
    return [
        *([_forgotten(baseline)] if baseline else []),
        *([_kept(best, baseline)] if best else []),
        *([_upper_bound(bound, best, baseline)] if bound else []),
        *_least_forgetting(others, best),
        *_worse(others),
        *_doubts(rows),
    ]


def _forgotten(row: SummaryRow) -> str:
    measure, words, named = row.measure, row.measure.words, row.wording.tasks
    over = f"all {row.num_tasks} {named}" if row.first_task == 1 else tasks(row)
    end = f"{words.mean} over {over} ends at {measure.amount(row.end.mean)}"
    learned, lost = row.learned.mean, row.forgetting.mean
    if math.isnan(learned) or math.isnan(lost):
        return f"Fine-tuning, which protects nothing: {end if row.num_reported > 1 else _one_task(row)}."
    kept = f"then forgets: the earlier {named} lose {measure.points(lost)}"
    if lost < 0 or measure.zero(lost):
        kept = f"forgets nothing of the earlier {named}"
    learns = words.learns.format(measure.amount(learned))
    return f"Fine-tuning, which protects nothing, {learns} and {kept}, and {end}."


def _kept(row: SummaryRow, baseline: SummaryRow | None) -> str:
    name, measure = printable(row.method), row.measure
    score = measure.amount(row.end.mean)
    if row.num_reported == 1:
        return f"{name} is {measure.good('highest', 'lowest')}: {_one_task(row)}."
    if baseline is None or row.difference is None:
        cost = f", {measure.words.cost.format(measure.amount(row.learned.mean))}" * _known(row.learned.mean)
        return f"{name} kept most: {score} at the end{_forgets(row)}{cost}."
    mean, low, high, n = row.difference
    margin = f"{measure.points(abs(mean))} {'above' if mean >= 0 else 'below'} fine-tuning"
    if n > 1:
        written = measure.format
        margin += f" (95 % interval {written.number(low, sign=True)} to {written.number(high, sign=True)})"
    if measure.sign * mean <= 0 or min(measure.sign * low, measure.sign * high) <= 0:
        return f"No method is reliably better than fine-tuning: the best, {name}, ends at {score}, {margin}."
    return f"{name} kept most: {score} at the end, {margin}{_forgets(row)}{_learns(row, baseline)}."


def _forgets(row: SummaryRow) -> str:
    lost = row.forgetting.mean
    return f", forgetting {row.measure.points(max(lost, 0.0))}" if _known(lost) else ""


def _learns(row: SummaryRow, baseline: SummaryRow) -> str:
    own, other, measure = row.learned.mean, baseline.learned.mean, row.measure
    against = measure.words.against.format(measure.format.number(other)) * _known(other)
    return f", and {measure.words.learning.format(measure.amount(own))}{against}" if _known(own) else ""


def _upper_bound(bound: SummaryRow, best: SummaryRow | None, baseline: SummaryRow | None) -> str:
    measure, named = bound.measure, bound.wording.tasks
    text = f"Training on all {named} together ({bound.method}), {measure.words.bound}, ends at "
    text += measure.amount(bound.end.mean)
    if best is None or baseline is None:
        return text + "."
    gap = measure.sign * (bound.end.mean - baseline.end.mean)
    gain = measure.sign * (best.end.mean - baseline.end.mean)
    if gap < 0.005 or gain <= 0:  # half a point is noise, or so many bits; a share of it means nothing
        return text + "."
    return f"{text}; {printable(best.method)} closes {100 * gain / gap:.0f} % of the gap to it."


def _least_forgetting(others: Sequence[SummaryRow], best: SummaryRow | None) -> list[str]:
    known = [row for row in others if _known(row.forgetting.mean)]
    least = min(known, key=lambda row: row.forgetting.mean, default=None)
    if best is None or least is None or least is best or not _known(best.forgetting.mean):
        return []
    measure = least.measure
    return [
        f"{printable(least.method)} forgot least ({measure.points(max(least.forgetting.mean, 0.0))}) but ends "
        f"{measure.bad('higher', 'lower')}, at {measure.amount(least.end.mean)}: "
        f"{measure.words.learned.format(measure.amount(least.learned.mean))}."
    ]


def _worse(others: Sequence[SummaryRow]) -> list[str]:
    def surely(row: SummaryRow) -> bool:
        sign, difference = row.measure.sign, row.difference
        return difference is not None and max(sign * difference.low, sign * difference.high) < 0

    worse = [printable(row.method) for row in others if surely(row)]
    return [f"Worse than fine-tuning, by intervals that exclude 0: {', '.join(worse)}."] if worse else []


def _doubts(rows: Sequence[SummaryRow]) -> list[str]:
    def named(wanted: Sequence[SummaryRow]) -> str:
        return ", ".join(printable(row.method) for row in wanted)

    edge = [row for row in rows if row.at_edge]
    unfinished, diverged = [row for row in rows if row.num_unfinished], [row for row in rows if row.num_diverged]
    doubts = [f"Perhaps not at their best, with the smallest or largest value tried: {named(edge)}."] * bool(edge)
    doubts += [f"Not all seeds have finished: {named(unfinished)}."] * bool(unfinished)
    doubts += [f"Seeds diverged: {named(diverged)}."] * bool(diverged)
    if max(row.end.n for row in rows) == 1:
        doubts.append("One seed only: differences may be chance.")
    protocol = rows[0].protocol
    return doubts + [f"What is shown of each method was chosen by {protocol.words}."] * (protocol.name != ALL.name)


def _one_task(row: SummaryRow) -> str:
    which = f"the only {row.wording.task}" if row.num_tasks == 1 else tasks(row)
    return f"{row.measure.amount(row.end.mean)} on {which}"


def _known(value: float) -> bool:
    return not math.isnan(value)

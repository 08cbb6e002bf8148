"""The result in sentences, computed from the summary: what was forgotten, what kept it, at what cost."""

import math
from collections.abc import Sequence

from cl_jax.report.cells import number, printable, tasks
from cl_jax.report.configurations import BASELINE, UPPER_BOUND
from cl_jax.report.summary import SummaryRow
from cl_jax.selection import ALL


def findings(rows: Sequence[SummaryRow]) -> list[str]:
    """Sentences on the rows of one stream, the most important first."""
    scored = [row for row in rows if row.members and not math.isnan(row.average_accuracy.mean)]
    if not scored:
        return ["No run has been trained on all tasks yet, so there is nothing to compare."]
    by_method = {row.method: row for row in scored}
    baseline, bound = by_method.get(BASELINE), by_method.get(UPPER_BOUND)
    others = [row for row in scored if row.method not in (BASELINE, UPPER_BOUND)]
    best = max(others, key=lambda row: row.average_accuracy.mean, default=None)
    return [
        *([_forgotten(baseline)] if baseline else []),
        *([_kept(best, baseline)] if best else []),
        *([_upper_bound(bound, best, baseline)] if bound else []),
        *_least_forgetting(others, best),
        *_worse(others),
        *_doubts(rows),
    ]


def _forgotten(row: SummaryRow) -> str:
    over = f"all {row.num_tasks} tasks" if row.first_task == 1 else tasks(row)
    end = f"accuracy over {over} ends at {number(row.average_accuracy.mean)} %"
    learned, lost = row.learning_accuracy.mean, row.forgetting.mean
    if math.isnan(learned) or math.isnan(lost):
        return f"Fine-tuning, which protects nothing: {end if row.num_reported > 1 else _one_task(row)}."
    kept = f"then forgets: the earlier tasks lose {number(lost)} points"
    if number(lost).startswith("-") or number(lost) == "0.0":
        kept = "forgets nothing of the earlier tasks"
    return f"Fine-tuning, which protects nothing, learns each task to {number(learned)} % and {kept}, and {end}."


def _kept(row: SummaryRow, baseline: SummaryRow | None) -> str:
    name = printable(row.method)
    score = f"{number(row.average_accuracy.mean)} %"
    if row.num_reported == 1:
        return f"{name} is highest: {_one_task(row)}."
    if baseline is None or row.difference is None:
        cost = f", {number(row.learning_accuracy.mean)} % just after learning" * _known(row.learning_accuracy.mean)
        return f"{name} kept most: {score} at the end{_forgets(row)}{cost}."
    mean, low, high, n = row.difference
    margin = f"{number(abs(mean))} points {'above' if mean >= 0 else 'below'} fine-tuning"
    if n > 1:
        margin += f" (95 % interval {number(low, sign=True)} to {number(high, sign=True)})"
    if mean <= 0 or low <= 0:
        return f"No method is reliably better than fine-tuning: the best, {name}, ends at {score}, {margin}."
    return f"{name} kept most: {score} at the end, {margin}{_forgets(row)}{_learns(row, baseline)}."


def _forgets(row: SummaryRow) -> str:
    lost = row.forgetting.mean
    return f", forgetting {number(max(lost, 0.0))} points" if _known(lost) else ""


def _learns(row: SummaryRow, baseline: SummaryRow) -> str:
    own, other = row.learning_accuracy.mean, baseline.learning_accuracy.mean
    against = f" against {number(other)} %" * _known(other)
    return f", and learning new tasks to {number(own)} %{against}" if _known(own) else ""


def _upper_bound(bound: SummaryRow, best: SummaryRow | None, baseline: SummaryRow | None) -> str:
    text = f"Training on all tasks together ({bound.method}), the upper bound, ends at "
    text += f"{number(bound.average_accuracy.mean)} %"
    if best is None or baseline is None:
        return text + "."
    gap = bound.average_accuracy.mean - baseline.average_accuracy.mean
    gain = best.average_accuracy.mean - baseline.average_accuracy.mean
    if gap < 0.005 or gain <= 0:  # half a point is noise, a share of it means nothing
        return text + "."
    return f"{text}; {printable(best.method)} closes {100 * gain / gap:.0f} % of the gap to it."


def _least_forgetting(others: Sequence[SummaryRow], best: SummaryRow | None) -> list[str]:
    known = [row for row in others if _known(row.forgetting.mean)]
    least = min(known, key=lambda row: row.forgetting.mean, default=None)
    if best is None or least is None or least is best or not _known(best.forgetting.mean):
        return []
    return [
        f"{printable(least.method)} forgot least ({number(max(least.forgetting.mean, 0.0))} points) but ends lower, at "
        f"{number(least.average_accuracy.mean)} %: it learned new tasks to {number(least.learning_accuracy.mean)} %."
    ]


def _worse(others: Sequence[SummaryRow]) -> list[str]:
    worse = [printable(row.method) for row in others if row.difference and row.difference.high < 0]
    return [f"Worse than fine-tuning, by intervals that exclude 0: {', '.join(worse)}."] if worse else []


def _doubts(rows: Sequence[SummaryRow]) -> list[str]:
    def named(wanted: Sequence[SummaryRow]) -> str:
        return ", ".join(printable(row.method) for row in wanted)

    edge = [row for row in rows if row.at_edge]
    unfinished, diverged = [row for row in rows if row.num_unfinished], [row for row in rows if row.num_diverged]
    doubts = [f"Perhaps not at their best, with the smallest or largest value tried: {named(edge)}."] * bool(edge)
    doubts += [f"Not all seeds have finished: {named(unfinished)}."] * bool(unfinished)
    doubts += [f"Seeds diverged: {named(diverged)}."] * bool(diverged)
    if max(row.average_accuracy.n for row in rows) == 1:
        doubts.append("One seed only: differences may be chance.")
    protocol = rows[0].protocol
    return doubts + [f"What is shown of each method was chosen by {protocol.words}."] * (protocol.name != ALL.name)


def _one_task(row: SummaryRow) -> str:
    return f"{number(row.average_accuracy.mean)} % on {'the only task' if row.num_tasks == 1 else tasks(row)}"


def _known(value: float) -> bool:
    return not math.isnan(value)

"""What the runs come to: a table, the figure of gain against forgetting, and both in words."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from cl_jax.conversations import summary
from cl_jax.conversations.guard import ACCEPTED, ROLLED_BACK, SCALED
from cl_jax.report import drawing
from cl_jax.report.styles import COLOURS, GREY
from cl_jax.results import write_atomically
from experiments.conversation_stream.config import Entry

TABLE, FIGURE, WORDS = "conversation_stream.parquet", "plane", "table.md"
OUTCOMES = ("accepted", "scaled_back", "rolled_back")
ORDER = ("frozen", "finetune", "lora", "ewc", "replay")
Row = dict[str, Any]


def write(out: Path, entries: Sequence[Entry]) -> None:
    """conversation_stream.parquet, a row a run; table.md, means over seeds; plane.svg, pdf and png."""
    rows = [row(out, entry) for entry in entries]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    write_atomically(out / TABLE, sink.getvalue().to_pybytes())
    means = averaged(rows)
    write_atomically(out / WORDS, table(means).encode())
    with matplotlib.rc_context(drawing.STYLE):
        drawing.save(plane(means), out / FIGURE)


def row(out: Path, entry: Entry) -> Row:
    """A run: `gain` and `forgetting` as `cl_jax.conversations.summary` has them, in bits per byte."""
    found = summary.read(out / entry.folder)
    outcomes = found.outcomes()
    return {
        "policy": entry.policy,
        "learning_rate": entry.learning_rate,
        "budget": entry.budget,
        "seed": entry.seed,
        "conversations": found.conversations,
        "bits_per_byte": found.curves["bits_per_byte"].last,
        "untaught_bits_per_byte": found.curves["untaught_bits_per_byte"].last,
        "gain": found.gain,
        "forgetting": found.forgetting,
        "over": found.over if entry.budget is not None else None,
        "accepted": outcomes[ACCEPTED],
        "scaled_back": outcomes[SCALED],
        "rolled_back": outcomes[ROLLED_BACK],
        "diverged": found.diverged,
    }


def averaged(rows: Sequence[Row]) -> list[Row]:
    """Means over the seeds of each policy, learning rate and budget, with their standard deviations."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for each in rows:
        groups.setdefault((each["policy"], each["learning_rate"], each["budget"]), []).append(each)
    made = []
    for (policy, rate, budget), group in groups.items():
        mean: Row = {"policy": policy, "learning_rate": rate, "budget": budget, "seeds": len(group)}
        for name in ("bits_per_byte", "gain", "forgetting", *OUTCOMES):
            values = [each[name] for each in group]
            mean |= {name: statistics.fmean(values), f"{name}_std": statistics.stdev(values) if values[1:] else 0.0}
        mean["over"] = None if budget is None else max(each["over"] for each in group)
        mean["diverged"] = sum(each["diverged"] for each in group)
        made.append(mean)
    return sorted(made, key=lambda each: (ORDER.index(each["policy"]), each["budget"] or -1.0, each["learning_rate"]))


def table(means: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| policy | learning rate | budget | bits per byte | gain | forgetting | most over the start (guard's split) | "
        "accepted / scaled / rolled back |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in means:
        cells = [
            each["policy"] + f" ({each['diverged']} of {each['seeds']} diverged)" * bool(each["diverged"]),
            "-" if each["policy"] == "frozen" else f"{each['learning_rate']:g}",
            "-" if each["budget"] is None else f"{each['budget']:g}",
            f"{each['bits_per_byte']:.3f}",
            *(_spread(each, name) for name in ("gain", "forgetting")),
            "-" if each["over"] is None else f"{each['over']:+.4f}",
            "-" if each["budget"] is None else " / ".join(f"{each[name]:.0f}" for name in OUTCOMES),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(mean: Row, name: str) -> str:
    deviation = f" ± {mean[f'{name}_std']:.3f}" if mean["seeds"] > 1 else ""  # one seed has none
    return f"{mean[name]:+.3f}{deviation}"


def plane(means: Sequence[Row]) -> Figure:
    """Each point a policy at a learning rate, filled under a guard; right: forgot more, up: learned more."""
    figure = Figure(figsize=(6.4, 4.9))
    axis = figure.subplots(gridspec_kw={"left": 0.11, "right": 0.98, "bottom": 0.21, "top": 0.98})
    axis.set_xlabel("forgetting: bits per byte of old text above the start")
    axis.set_ylabel("gain: bits per byte below never learning")
    handles, names = zip(*_legend(means), strict=True)
    figure.legend(handles, names, loc="lower center", ncols=4, borderaxespad=0.2, fontsize=7.5)
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axvline(0, color=GREY, linewidth=0.8)
    for budget in sorted({each["budget"] for each in means if each["budget"] is not None}):
        axis.axvline(budget, color=COLOURS[3], linestyle="--", linewidth=0.9)
    axis.plot(0, 0, color=GREY, marker="*", markersize=9, linestyle="")
    for policy in ORDER[1:]:
        for budget in {each["budget"] for each in means}:
            own = [each for each in means if each["policy"] == policy and each["budget"] == budget]
            colour, filled = _colour(policy), budget is not None
            axis.errorbar(
                [each["forgetting"] for each in own], [each["gain"] for each in own],
                xerr=[each["forgetting_std"] for each in own], yerr=[each["gain_std"] for each in own], color=colour,
                marker="o", markersize=5, markerfacecolor=colour if filled else "white", linewidth=0.9,
                linestyle="-" if filled else ":", elinewidth=0.7,
            )  # fmt: skip
    return figure


def _legend(means: Sequence[Row]) -> list[tuple[Any, str]]:
    policies = [policy for policy in ORDER[1:] if any(each["policy"] == policy for each in means)]
    legend = [(drawing.mark(GREY, marker="*", markersize=8), "never learning")]
    legend += [(drawing.mark(_colour(policy), marker="o", dash="-"), policy) for policy in policies]
    legend += [(drawing.mark(GREY, marker="o", dash=":", markerfacecolor="white"), "without a guard, by learning rate")]
    if any(each["budget"] is not None for each in means):
        legend += [(drawing.mark(GREY, marker="o", dash="-"), "within a budget")]
        legend += [(drawing.mark(COLOURS[3], dash="--", linewidth=0.9), "the budget")]
    return legend


def _colour(policy: str) -> str:
    return COLOURS[(0, 1, 4, 2)[ORDER.index(policy) - 1]]


def in_words(out: Path) -> str:
    """The table, and where everything is."""
    places = f"table: {out / TABLE}\nfigure: {out / FIGURE}.png\na report of each run: {out}/<run>/report"
    return f"{(out / WORDS).read_text()}\n{places}"

"""What the runs come to: a table, the picture, and how well one number predicts forgetting."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cl_jax.report.styles import COLOURS
from cl_jax.statistics import r_squared, spread
from experiments.parity_kl.toy import OBJECTIVES

LEARNED = 0.02  # of parity that a run may miss of the best one, to be compared with it at equal learning
NEAR = 2.0  # nats; only what moves all mass to one or two answers goes further

Row = dict[str, Any]


def write(out: Path, rows: list[Row]) -> None:
    """`parity_kl.parquet`, a row a run; `table.md`; `kl.png`."""
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), out / "parity_kl.parquet")
    (out / "table.md").write_text(in_words(rows))
    _draw(rows, out / "kl.png")


def law(rows: list[Row]) -> dict[str, float]:
    """R^2 of what was forgotten over KL, parabola and line, of all runs; of the parabola below `NEAR` alone; and by how
    many points of accuracy, on average, the parabola through the other objectives misses each one's runs there.
    """
    kl, forgotten = _columns(rows, "kl", "forgotten")
    labels = np.array([row["objective"] for row in rows])
    near = kl < NEAR
    found = {
        "parabola": r_squared(kl, forgotten, 2),
        "line": r_squared(kl, forgotten, 1),
        f"parabola below {NEAR:g} nats": r_squared(kl[near], forgotten[near], 2),
    }
    for objective in OBJECTIVES:
        own, others = near & (labels == objective), near & (labels != objective)
        if own.any() and len(np.unique(kl[others])) > 3:
            guess = np.polyval(np.polyfit(kl[others], forgotten[others], 2), kl[own])
            found[f"{objective} missed by"] = 100 * float(np.mean(np.abs(forgotten[own] - guess)))
    return found


def in_words(rows: list[Row]) -> str:
    """Of each objective the runs that learned as much as the best, and the law."""
    best = max(row["parity"] for row in rows)
    lines = [
        "| objective | runs that learned | parity | old task forgotten | KL, nats |",
        "|---|---|---|---|---|",
    ]
    for objective in OBJECTIVES:
        own = [row for row in rows if row["objective"] == objective]
        good = [row for row in own if row["parity"] >= best - LEARNED]
        cells = [_spread(good, name, scale) for name, scale in (("parity", 100), ("forgotten", 100), ("kl", 1))]
        lines.append(f"| {objective} | {len(good)} of {len(own)} | {' | '.join(cells)} |")
    words = ", ".join(f"{name} {value:.2f}" for name, value in law(rows).items())
    said = f"Forgetting over KL, {len(rows)} runs; R², and points that the others' parabola misses by: {words}."
    return "\n".join([*lines, "", said, ""])


def _columns(rows: list[Row], *names: str) -> list[np.ndarray]:
    return [np.array([row[name] for row in rows], np.float64) for name in names]


def _spread(rows: list[Row], name: str, scale: float) -> str:
    if not rows:
        return "none"
    found = spread([scale * row[name] for row in rows])
    digits = 1 if scale == 100 else 3
    return f"{found.mean:.{digits}f} ± {found.sem:.{digits}f}"


def _draw(rows: list[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for number, objective in enumerate(OBJECTIVES):
        kl, forgotten = _columns([row for row in rows if row["objective"] == objective], "kl", "forgotten")
        axes.plot(
            kl, 100 * forgotten, "osD^vP"[number], ms=5, alpha=0.75, mew=0, color=COLOURS[number], label=objective
        )
    kl, forgotten = _columns(rows, "kl", "forgotten")
    line = np.linspace(0, kl.max(), 1000)
    axes.plot(line, 100 * np.polyval(np.polyfit(kl, forgotten, 2), line), color="0.3", lw=1.2, label="parabola")
    axes.set_xscale("symlog", linthresh=0.1, linscale=0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("KL of the base to the fine-tuned model on the new task's inputs, nats")
    axes.set_ylabel("points of accuracy lost on the old task")
    axes.set_title(f"R² = {law(rows)['parabola']:.2f}, {len(rows)} runs", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)

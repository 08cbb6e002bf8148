"""The figure of a run: what conversations cost, and what the old text costs beside the budget."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cl_jax.conversations.guard import ROLLED_BACK, SCALED
from cl_jax.conversations.summary import Summary
from cl_jax.report import drawing
from cl_jax.report.styles import COLOURS, GREY

LEARNED, OLD, GUARDED, WARN = COLOURS[0], COLOURS[2], COLOURS[4], COLOURS[3]
_WIDTH, _HEIGHT = 6.4, 2.1  # of a panel, inches
_LEFT, _RIGHT, _BELOW, _BETWEEN, _ABOVE = 0.62, 0.15, 0.85, 0.42, 0.28


def write(found: Summary, path: Path) -> list[Path]:
    """Writes `<path>.svg`, pdf and png."""
    with matplotlib.rc_context(drawing.STYLE):
        return drawing.save(draw(found), path)


def draw(found: Summary) -> Figure:
    """Above, bits per byte of all conversations so far, by the learning model and by the one that never learns; below,
    what the old text costs more than at the start, with the budget and the rounds that it stopped.
    """
    width, height = _LEFT + _WIDTH + _RIGHT, _BELOW + 2 * _HEIGHT + _BETWEEN + _ABOVE
    figure = Figure(figsize=(width, height))
    place = {"left": _LEFT / width, "right": 1 - _RIGHT / width, "bottom": _BELOW / height, "top": 1 - _ABOVE / height}
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw=place | {"hspace": _BETWEEN / _HEIGHT})
    legend = _conversations(above, found) + _old_text(below, found)
    below.set_xlabel("conversations")
    below.set_xlim(0, 1.01 * max(found.conversations, 1))
    handles = [handle for handle, _ in legend]
    style: dict[str, Any] = {"fontsize": 7.5, "columnspacing": 1.6, "handlelength": 2.2, "labelspacing": 0.4}
    figure.legend(handles, [name for _, name in legend], loc="lower center", ncols=4, borderaxespad=0.2, **style)
    return figure


def _conversations(axis: Axes, found: Summary) -> list[tuple[Any, str]]:
    axis.set_title("Replies, each scored before it was learned from: all so far", loc="left")
    axis.set_ylabel("bits per byte")
    never, learned = found.curves["untaught_bits_per_byte"], found.curves["bits_per_byte"]
    axis.plot(never.conversation, never.value, color=GREY, linestyle="--")
    axis.plot(learned.conversation, learned.value, color=LEARNED)
    return [(drawing.mark(GREY, dash="--"), "never learning"), (drawing.mark(LEARNED, dash="-"), found.policy)]


def _old_text(axis: Axes, found: Summary) -> list[tuple[Any, str]]:
    axis.set_title("Old text, above what it cost at the start", loc="left")
    axis.set_ylabel("bits per byte")
    test, guard, scale = (found.curves[name] for name in ("old_bits_per_byte", "guard_bits_per_byte", "update_scale"))
    axis.plot(test.conversation, test.value - test.value[0], color=OLD, marker="o", markersize=3)
    legend = [(drawing.mark(OLD, marker="o", dash="-", markersize=3), "old text, test split")]
    if found.budget is None:
        return legend
    above = guard.value - guard.value[0]
    axis.plot(guard.conversation, above, color=GUARDED, linewidth=0.9)
    axis.axhline(found.budget, color=WARN, linestyle="--", linewidth=1)
    legend += [(drawing.mark(GUARDED, dash="-", linewidth=0.9), "old text, the guard's split")]
    legend += [(drawing.mark(WARN, dash="--", linewidth=1), "budget")]
    after = above[np.searchsorted(guard.conversation, scale.conversation)]
    stopped = {SCALED: ("v", (scale.value > 0) & (scale.value < 1)), ROLLED_BACK: ("x", scale.value == 0)}
    for name, (marker, which) in stopped.items():
        if which.any():
            axis.plot(scale.conversation[which], after[which], color=WARN, marker=marker, linestyle="", markersize=4.5)
            legend.append((drawing.mark(WARN, marker=marker, markersize=4.5), name))
    return legend

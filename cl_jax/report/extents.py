"""How far axes and colours reach: as far as the measure does, or the numbers."""

from collections.abc import Sequence

import numpy as np

from cl_jax.report.configurations import BASELINE, UPPER_BOUND
from cl_jax.report.panels import StrengthPanel, matrix, reference
from cl_jax.report.streams import Stream


def ends(panels: Sequence[StrengthPanel], stream: Stream) -> tuple[float, float]:
    """Of the axis of strength panels: from 0, or below what is negative, to as far as the measure goes or the numbers
    and the bounds do.
    """
    measure = stream.measure
    found = [spans for panel in panels for spans in panel.metrics.values()]
    lowest = float(np.nanmin(np.concatenate([each.mean - np.nan_to_num(each.std) for each in found]), initial=0.0))
    if measure.range is not None:
        return min(-2.0, lowest - 2), measure.range[1] + 2
    bounds = np.array([reference(stream, name) for name in (BASELINE, UPPER_BOUND)])
    highest = np.concatenate([bounds, *(each.mean + np.nan_to_num(each.std) for each in found)])
    return _with_room(lowest, float(np.nanmax(highest, initial=0.0)))


def levels(stream: Stream) -> tuple[float, float]:
    """Of an axis of the measure on single tasks, from the first that was trained on."""
    if stream.measure.range is not None:
        return stream.measure.range[0] - 2, stream.measure.range[1] + 2
    return _with_room(*_found(stream, 1))


def shades(stream: Stream) -> tuple[float, float]:
    """Of the colours of the matrices."""
    low, high = stream.measure.range or _found(stream, 0)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _found(stream: Stream, stds: int) -> tuple[float, float]:
    """The least and the most in the matrices, so many standard deviations included."""
    values = [np.zeros(0)]
    for each in map(matrix, stream.chosen.values()):
        around = stds * np.nan_to_num(each.std)
        values += [each.mean - around, each.mean + around]
    finite = np.concatenate([each[np.isfinite(each)] for each in values])
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _with_room(low: float, high: float) -> tuple[float, float]:
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room

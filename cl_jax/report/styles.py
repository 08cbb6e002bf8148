"""Which colour, marker and dash stand for which method, metric and task, in every figure."""

from typing import NamedTuple

import numpy as np

from cl_jax.report.configurations import BASELINE, UPPER_BOUND
from cl_jax.report.measure import Measure, spoken
from cl_jax.report.streams import Stream

# Read on white and on near-black, and told apart by most colour-blind readers in this order.
COLOURS = ("#2f7fd1", "#e07b1a", "#1f9e77", "#d1495b", "#8e6bc9", "#a3762b", "#d268a8", "#7f9a1f", "#16a0b8")
GREY = "#8a8f98"
MARKERS = ("circle", "square", "diamond", "triangle-up")
DASHES = ("solid", "dash", "dot", "dashdot")
RED = COLOURS[3]
_TASK_COLOURS = ("#4a58c8", "#1f86d1", "#17a39b", "#58ac4c", "#b5a42c", "#e0812a", "#d4504f")


class Style(NamedTuple):
    """How a method looks in every figure of a stream."""

    colour: str
    marker: str
    dash: str


def method_styles(stream: Stream) -> dict[str, Style]:
    """Grey for the two bounds; the other methods get colours first, then the next marker and dash."""
    bounds = {BASELINE: Style(GREY, "x", "dot"), UPPER_BOUND: Style(GREY, "star", "dash")}
    others = [method for method in stream.all_methods if method not in bounds]
    cycle = len(COLOURS)

    def style(method: str) -> Style:
        if method in bounds:
            return bounds[method]
        turn, colour = divmod(others.index(method), cycle)
        return Style(COLOURS[colour], MARKERS[turn % len(MARKERS)], DASHES[turn % len(DASHES)])

    return {method: style(method) for method in stream.chosen}


def metric_colours(measure: Measure) -> dict[str, str]:
    """Of its metrics that are drawn against hyper-parameters, by what they are called."""
    return dict(zip(map(spoken, measure.curves), (COLOURS[0], COLOURS[2], RED), strict=True))


def task_colours(num_tasks: int) -> list[str]:
    """One colour a task, from early to late along a fixed ramp."""
    ramp = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in _TASK_COLOURS], np.float64)
    where = np.linspace(0, len(ramp) - 1, num_tasks) if num_tasks > 1 else np.zeros(1)
    channels = [np.interp(where, np.arange(len(ramp)), ramp[:, channel]) for channel in range(3)]
    return [f"#{int(r):02x}{int(g):02x}{int(b):02x}" for r, g, b in zip(*channels, strict=True)]

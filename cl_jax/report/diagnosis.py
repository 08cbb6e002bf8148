"""What the figures of each diagnostic show, free of any drawing library."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cl_jax.report.configurations import Configuration
from cl_jax.report.measured import Measured
from cl_jax.report.panels import Spans
from cl_jax.report.settings import describe, short_names
from cl_jax.statistics import r_squared

MOST_LAYERS = 4  # that get a panel of their own


class Lines(NamedTuple):
    """A line a method."""

    title: str
    x: str
    y: str
    position: np.ndarray  # [k]
    ticks: list[str] | None  # what stands at each position; None: its number
    of: dict[str, Spans]  # [k] each


class Points(NamedTuple):
    """A point a run, with a curve through them."""

    title: str
    x: str
    y: str
    of: dict[str, tuple[np.ndarray, np.ndarray, list[str]]]  # method -> x [k], y [k], names [k]
    curve: tuple[np.ndarray, np.ndarray]


Panel = Lines | Points


def views(measured: Measured) -> dict[str, list[Panel]]:
    """The panels of every diagnostic that was measured, in reading order."""
    found = {name: [panel for panel in draw(measured) if panel.of] for name, draw in _VIEWS.items()}
    return {name: panels for name, panels in found.items() if panels}


def law(measured: Measured, *, new: bool) -> tuple[np.ndarray, np.ndarray, list[tuple[Configuration, int]]]:
    """Forward KL [k] and forgetting [k] of every complete run, and whose they are.

    Of a run, the means over boundaries i = 2 ... T of KL(before task i || after it) and of the accuracy that the
    earlier tasks lost by it, mean_{j < i} (R[i-1, j] - R[i, j]); of text, of the bits per byte that they rose.

    Args:
        new: KL on inputs of task i; else the mean over inputs of the tasks before it.
    """
    mine = (measured.quantity == "forward_kl") & (measured.after > 1) & np.isfinite(measured.value)
    mine &= (measured.apart == 0) if new else (measured.apart > 0)
    xs, ys, whose, sign = [], [], [], measured.stream.measure.sign
    for configuration in measured.stream.configurations:
        for index in np.flatnonzero(configuration.complete & ~configuration.diverged):
            rows = mine & (measured.member == configuration.members[index])
            if rows.any():
                matrix = sign * configuration.matrix["test"][index]
                afters = np.unique(measured.after[rows])
                lost = np.array([np.mean(matrix[i - 1, :i] - matrix[i, :i]) for i in afters - 1])
                each = np.array([measured.value[rows & (measured.after == after)].mean() for after in afters])
                known = np.isfinite(lost)  # a run may evaluate recent tasks alone
                if known.any():
                    xs.append(np.mean(each[known]))
                    ys.append(np.mean(lost[known]))
                    whose.append((configuration, int(index)))
    return np.array(xs), np.array(ys), whose


def _over_layers(
    measured: Measured, quantity: str, title: str, y: str, where: np.ndarray | None = None, *, unit: float = 1.0
) -> Lines:
    names = measured.layers(quantity)
    place = np.array([names.index(each) if each in names else -1 for each in measured.layer])
    rows = ~measured.whole if where is None else where & ~measured.whole
    position, found = measured.over(quantity, place, rows, unit=unit)
    return Lines(title, "layer, from input to output", y, position, [names[int(at)] for at in position], found)


def _over_tasks(measured: Measured, quantity: str, title: str, y: str, layer: str = "", unit: float = 1.0) -> Lines:
    """After each task."""
    found = measured.over(quantity, measured.after, measured.layer == layer, unit=unit)
    words = measured.stream.wording
    names = [words.one(int(after)) for after in found[0]] if words.names else None
    return Lines(title, words.axis, y, found[0], names, found[1])


def _since(measured: Measured, quantity: str, title: str, y: str, layer: str = "") -> Lines:
    """By how many tasks were trained since."""
    found = measured.over(quantity, measured.apart, measured.layer == layer)
    return Lines(title, f"{measured.stream.wording.tasks} trained since", y, found[0], None, found[1])


def _some(layers: Sequence[str]) -> list[str]:
    """At most `MOST_LAYERS`, evenly from first to last."""
    if len(layers) <= MOST_LAYERS:
        return list(layers)
    return [layers[int(index)] for index in np.linspace(0, len(layers) - 1, MOST_LAYERS).round()]


def _fisher_overlap(measured: Measured) -> list[Panel]:
    name, y = "fisher_overlap", "overlap of Fishers"
    return [
        _over_layers(measured, name, "by layer", y),
        _since(measured, name, "whole network", y)._replace(x=f"{measured.stream.wording.tasks} apart"),
    ]


def _gradient_interference(measured: Measured) -> list[Panel]:
    name, y = "gradient_cosine", "cosine of gradients"
    return [
        _over_layers(measured, name, "by layer", y),
        _over_tasks(measured, name, "whole network, over training", y),
    ]


def _representation_drift(measured: Measured) -> list[Panel]:
    name = "feature_similarity"
    some = _some(measured.layers(name))
    return [_since(measured, name, f"features before {layer}", "similarity (CKA)", layer) for layer in some]


def _parameter_drift(measured: Measured) -> list[Panel]:
    plain, weighted = "distance moved", "distance, Fisher norm"
    return [
        _since(measured, "distance", "whole network", plain),
        _since(measured, "fisher_distance", "whole network, weighed", weighted),
        _over_layers(measured, "distance", "by layer", plain),
        _over_layers(measured, "fisher_distance", "by layer, weighed", weighted),
    ]


def _forward_kl(measured: Measured) -> list[Panel]:
    panels: list[Panel] = []
    measure, words = measured.stream.measure, measured.stream.wording
    scale, lost = measure.format.scale, f"forgetting ({measure.words.step.strip()})"
    for new, inputs in ((True, f"the new {words.task}"), (False, f"earlier {words.tasks}")):
        x, y, whose = law(measured, new=new)
        if len(x):
            title = f"R² = {r_squared(x, y, 2):.2f} (parabola), {r_squared(x, y, 1):.2f} (line)"
            at = np.linspace(x.min(), x.max(), 60)
            curve = np.polyval(np.polyfit(x, y, 2), at) if len(np.unique(x)) > 3 else np.full(len(at), np.nan)
            of = {}
            for method in measured.stream.chosen:
                mine = [i for i, (configuration, _) in enumerate(whose) if configuration.method == method]
                if mine:
                    of[method] = (x[mine], scale * y[mine], [_named(measured, *whose[i]) for i in mine])
            panels.append(Points(title, f"KL on inputs of {inputs} (nats)", lost, of, (at, scale * curve)))
    return panels


def _named(measured: Measured, configuration: Configuration, index: int) -> str:
    short = short_names(measured.stream.swept[configuration.method])
    settings = describe({short[name]: configuration.hyper_parameters[name] for name in short})
    return ", ".join([*settings, f"seed {configuration.seeds[index]}"])


def _base_kl(measured: Measured) -> list[Panel]:
    return [
        _by_task(measured, "base_kl", "at the end", "KL from the base (nats)"),
        _of_the_base(measured, "base_kl", "over training", "KL from the base (nats)"),
    ]


def _transitions(measured: Measured) -> list[Panel]:
    return [
        _by_task(measured, "lost", "at the end", "right before, wrong now (%)", unit=100),
        _by_task(measured, "gained", "at the end", "wrong before, right now (%)", unit=100),
        _of_the_base(measured, "lost", "over training", "right before, wrong now (%)", unit=100),
    ]


def _by_task(measured: Measured, quantity: str, title: str, y: str, unit: float = 1.0) -> Lines:
    """On every task, at the end."""
    words, end = measured.stream.wording, measured.stream.num_tasks
    position, found = measured.over(quantity, measured.task, measured.after == end, unit=unit)
    ticks = [words.one(int(task)) for task in position] if words.names else None
    return Lines(title, f"on {words.task}", y, position, ticks, found)


def _of_the_base(measured: Measured, quantity: str, title: str, y: str, unit: float = 1.0) -> Lines:
    """On the first task, after each later one."""
    words = measured.stream.wording
    position, found = measured.over(quantity, measured.after, measured.task == 1, unit=unit)
    ticks = [words.one(int(after)) for after in position] if words.names else None
    return Lines(f"{words.one(1)}, {title}", words.axis, y, position, ticks, found)


def _shared_weights(measured: Measured) -> list[Panel]:
    end = measured.after == measured.after.max(initial=0)
    return [
        _over_layers(measured, "shared_weights", "weights, at the end", "shared (%)", end, unit=100),
        _over_layers(measured, "weight_participation", "weights, at the end", "tasks a weight", end),
        _over_layers(measured, "feature_participation", "features, at the end", "tasks a feature", end),
        _over_tasks(measured, "weight_participation", "weights, over training", "tasks a weight"),
    ]


def _loss_path(measured: Measured) -> list[Panel]:
    panels: list[Panel] = []
    mine = measured.quantity == "path_loss"
    last = measured.after[mine].max(initial=0)
    for title, where in (("one task later", measured.apart == 1), ("at the end", measured.after == last)):
        found = measured.over("path_loss", measured.at, where)
        panels.append(Lines(title, "just learned (0) to now (1)", "loss on the task (nats)", found[0], None, found[1]))
    return panels


def _stability_gap(measured: Measured) -> list[Panel]:
    steps = np.unique(measured.at[measured.quantity == "accuracy_at_step"])
    place = np.searchsorted(steps, measured.at)
    found = measured.over("accuracy_at_step", place, unit=100)
    y = "accuracy, earlier tasks (%)"
    gap = Lines("around a boundary", "steps into the next task", y, found[0], [f"{s:.0f}" for s in steps], found[1])
    lowest = _over_tasks(measured, "minimum_accuracy", "the lowest of these steps", y, unit=100)
    return [gap, lowest]


def _plasticity(measured: Measured) -> list[Panel]:
    panels: list[Panel] = [_over_tasks(measured, "weight_norm", "norm of all weights", "norm")]
    for quantity, what, y, unit in (
        ("dead_units", "dead units", "dead (%)", 100.0),
        ("effective_rank", "effective rank", "rank", 1.0),
    ):
        for layer in _some(measured.layers(quantity)):
            panels.append(_over_tasks(measured, quantity, f"{what} before {layer}", y, layer, unit))
    return panels


_VIEWS: dict[str, Callable[[Measured], list[Panel]]] = {
    "forward_kl": _forward_kl,
    "base_kl": _base_kl,
    "transitions": _transitions,
    "gradient_interference": _gradient_interference,
    "fisher_overlap": _fisher_overlap,
    "shared_weights": _shared_weights,
    "parameter_drift": _parameter_drift,
    "representation_drift": _representation_drift,
    "loss_path": _loss_path,
    "stability_gap": _stability_gap,
    "plasticity": _plasticity,
}

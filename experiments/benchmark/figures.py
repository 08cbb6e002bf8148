"""Two figures: what a member-step costs by packing, and how much faster than PyTorch it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from cl_jax.report.drawing import PNG_DPI, STYLE, mark
from cl_jax.report.styles import COLOURS
from experiments.benchmark.rows import Row, select
from experiments.benchmark.tables import step

PLAIN = FuncFormatter(lambda value, place: f"{value:g}")


def draw(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Writes the figures that the rows allow; their names."""
    made = {"packing": packing(rows), "beside_pytorch": beside_pytorch(rows)}
    for name, figure in made.items():
        if figure is not None:
            FigureCanvasAgg(figure).print_png(folder / f"{name}.png")
    return [name for name, figure in made.items() if figure is not None]


def packing(rows: Sequence[Row]) -> Figure | None:
    """ms per member-step against members at once, a panel for each batch size and optimizer."""
    found = [one for one in rows if one.section in ("mlp", "cnn", "resnet18") and one.metric == "ms per member-step"]
    found = [one for one in found if one.who in ("cl_jax", "PyTorch")]
    panels = sorted({(one.optimizer, -(one.batch_size or 0)) for one in found})
    models = list(dict.fromkeys(one.model for one in found))
    if not panels:
        return None
    colours = {model: COLOURS[number % len(COLOURS)] for number, model in enumerate(models)}
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * columns + 1.3, 2.5 * lines), dpi=PNG_DPI, layout="constrained")
        axes = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axis, (optimizer, batch) in zip(axes, panels, strict=False):
            _panel(axis, select(found, optimizer=optimizer, batch_size=-batch), colours)
            axis.set_title(f"{optimizer}, batch {-batch}")
        for axis in axes[len(panels) :]:
            axis.remove()
        marks = [mark(colours[model], "o", "-") for model in models] + [mark("#3c4249", dash=":")]
        figure.legend(marks, [*models, "PyTorch"], loc="outside right upper")
        figure.supxlabel("members at once", fontsize=8)
        figure.supylabel("ms per member-step", fontsize=8)
    return figure


def _panel(axis: Axes, rows: Sequence[Row], colours: Mapping[str, str]) -> None:
    for model in dict.fromkeys(one.model for one in rows):
        mine = select(rows, model=model)
        # Of the packings with equally many members at once, the one over the most devices is what the engine uses.
        ours = {one.members: one for one in sorted(select(mine, who="cl_jax"), key=lambda one: one.devices or 0)}
        points = sorted((members or 0, one.value) for members, one in ours.items())
        axis.plot(*zip(*points, strict=True), "-", color=colours[model], marker="o")
        for torch in select(mine, who="PyTorch"):
            axis.axhline(torch.value, color=colours[model], linestyle=":")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlim(0.85, 1.15 * max(one.members or 1 for one in rows))
    axis.xaxis.set_major_formatter(PLAIN)
    axis.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.yaxis.set_major_formatter(PLAIN)
    axis.yaxis.set_minor_locator(NullLocator())


def beside_pytorch(rows: Sequence[Row]) -> Figure | None:
    """How many times as long PyTorch takes a member-step, for 1 member and for the most."""
    found = [one for one in rows if one.metric == "PyTorch / cl_jax"]
    if not found:
        return None
    counts = sorted({one.members or 1 for one in found})
    cases = list(dict.fromkeys(step(one) for one in found))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.7 + 0.26 * len(cases)), dpi=PNG_DPI, layout="constrained")
        axis = figure.subplots()
        for number, count in enumerate(counts):
            mine = {step(one): one for one in found if one.members == count}
            places = [cases.index(name) + 0.7 * (number / max(len(counts) - 1, 1) - 0.5) for name in mine]
            values = [one.value for one in mine.values()]
            errors = [[one.value - one.low for one in mine.values()], [one.high - one.value for one in mine.values()]]
            label = f"{count} member{'s' * (count > 1)}"
            axis.errorbar(values, places, xerr=errors, fmt="o", color=COLOURS[number], label=label, markersize=3.5)
        axis.axvline(1.0, color="#6a7078", linewidth=0.8)
        axis.set_yticks(range(len(cases)), cases)
        axis.invert_yaxis()
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}x"))
        axis.set_xlabel("time of a plain PyTorch step / time of ours")
        figure.legend(loc="outside right upper")
    return figure

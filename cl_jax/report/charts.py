"""The figures of one stream as plotly.js traces: plain data that the page draws. Labels are escaped here."""

import numpy as np

from cl_jax.report import extents, front_charts, panels, styles, traces
from cl_jax.report.cells import cut, printable
from cl_jax.report.configurations import BASELINE, UPPER_BOUND
from cl_jax.report.measure import spoken
from cl_jax.report.streams import Stream
from cl_jax.report.styles import GREY, Style
from cl_jax.report.traces import SHADE, Chart, Figure, Json, escape, legend_rows


def figures(stream: Stream) -> list[Figure]:
    """The figures that the results allow, in reading order."""
    trade_off = front_charts.figure(stream) if stream.measure.one_unit else _plane(stream)
    drawn = [_average(stream), trade_off, _strength(stream), _matrices(stream), _over_training(stream)]
    return [figure for figure in drawn if figure.charts]


def _average(stream: Stream) -> Figure:
    measure, words, kind = stream.measure, stream.wording, f"average-{stream.measure.kind}"
    if stream.num_tasks == 1:
        return Figure(kind, [], [])
    x = list(range(1, stream.num_tasks + 1))
    data = []
    for method, style in styles.method_styles(stream).items():
        spans, name = panels.seen(stream.chosen[method]), escape(method)
        if len(stream.chosen) <= panels.MAX_BANDS:
            data += traces.band(x, spans, style, name)
        data.append(traces.line(x, spans, style, name, [f"after {escape(words.one(task))}" for task in x], measure))
    title = f"{measure.name} on the {words.tasks} seen so far{measure.axis}"
    layout = traces.layout(words.axis, title, 400, legend_rows(stream))
    layout["xaxis"] |= _task_axis(stream) | {"range": [0.8, stream.num_tasks + 0.2]}
    return Figure(kind, [Chart("", data, layout)], [], wide=True)


def _plane(stream: Stream) -> Figure:
    points = panels.plane(stream)
    if not points:
        return Figure("plane", [], [])
    best = panels.front([point for point in points if point.method != UPPER_BOUND])
    data: list[Json] = []
    if len(best) > 1:
        data.append(traces.path(best) | {"line": {"color": SHADE, "width": 9}, "name": "Pareto front"})
    # The bounds come last: other points must not hide them.
    for method, style in sorted(styles.method_styles(stream).items(), key=lambda item: item[1].colour == GREY):
        mine, name = [point for point in points if point.method == method], escape(method)
        if mine:
            group = {"legendgroup": name, "showlegend": False}
            line = {"color": style.colour, "width": 1.2}
            data.append(traces.path(panels.front(mine)) | group | {"line": line})
            data.append(traces.points(mine, style, stream.measure) | group)
            data.append(traces.entry(name, style))
    if any(point.diverged for point in points):
        data.append(traces.entry("a seed diverged", Style(GREY, "circle-open", "solid"), {"line": {"width": 2}}))
    measure = stream.measure
    layout = traces.layout(measure.learning_axis, measure.forgetting_axis, 460, legend_rows(stream))
    layout["yaxis"] |= {"autorange": "reversed"}
    return Figure("plane", [Chart("", data, layout)], [], wide=True)


def _strength(stream: Stream) -> Figure:
    found, measure, colours = panels.strength_panels(stream), stream.measure, styles.metric_colours(stream.measure)
    bounds = {name: dash for name, dash in ((BASELINE, "dot"), (UPPER_BOUND, "dash")) if name in stream.chosen}
    charts = []
    for panel in found:
        data = []
        for metric, spans in panel.metrics.items():
            style = Style(colours[metric], "circle", "solid")
            at = [f"at {escape(panel.name)} {tick}" for tick in panel.ticks]
            data += traces.band(panel.position, spans, style, metric)
            data.append(traces.line(panel.position, spans, style, metric, at, measure))
        if panel.diverged.any():
            data.append(traces.crosses(panel.position[panel.diverged]))
        layout = traces.layout(escape(panel.axis_name), measure.words.numbers, height=240)
        kept = panels.thinned(panel.position)
        ticks = {"tickvals": panel.position[kept].tolist(), "ticktext": [panel.ticks[index] for index in kept]}
        layout["xaxis"] |= ticks | {"tickangle": 0}
        layout["yaxis"] |= {"range": list(extents.ends([panel], stream))}
        layout["shapes"] = [
            {**traces.rule("y", panels.reference(stream, name)), "line": {"color": GREY, "width": 1.3, "dash": dash}}
            for name, dash in bounds.items()
            if not np.isnan(panels.reference(stream, name))
        ]
        for chosen in panel.chosen:
            shape = traces.rule("x", float(panel.position[chosen]))
            layout["shapes"].append(shape | {"layer": "below", "line": {"color": SHADE, "width": 8}})
        charts.append(Chart(printable(panel.method), data, layout))
    legend = [("line", colour, metric) for metric, colour in colours.items()]
    legend += [(dash, GREY, f"{spoken(measure.end)} of {name}") for name, dash in bounds.items()]
    legend += [("bar", SHADE, "value chosen")]
    legend += [("cross", "", "a seed diverged")] * any(panel.diverged.any() for panel in found)
    return Figure("strength", charts, legend)


def _matrices(stream: Stream) -> Figure:
    tasks, measure, words = list(range(1, stream.num_tasks + 1)), stream.measure, stream.wording
    low, high = extents.shades(stream)
    charts = []
    for method, configuration in stream.chosen.items():
        spans = panels.matrix(configuration)
        texts = np.reshape(spans.texts(measure), spans.mean.shape)
        trace = {
            "type": "heatmap",
            "x": tasks,
            "y": tasks,
            "z": traces.nested(spans.mean),
            "zmin": low,
            "zmax": high,
            "colorscale": "Viridis",
            "showscale": False,
            "xgap": int(stream.num_tasks <= 10),
            "ygap": int(stream.num_tasks <= 10),
            "text": texts.tolist(),
            "hoverongaps": False,
            "hovertemplate": "after task %{y}, on task %{x}<br>%{text}<extra></extra>",
        }
        if words.names:
            pairs = [[f"after {escape(after)}, on {escape(on)}" for on in words.names] for after in words.names]
            told = [[f"{w}<br>{t}" for w, t in zip(*row, strict=True)] for row in zip(pairs, texts, strict=True)]
            trace["text"] = told
            trace["hovertemplate"] = "%{text}<extra></extra>"
        if not measure.higher_is_better:
            trace["reversescale"] = True  # bright is good
        if stream.num_tasks <= panels.MAX_NUMBERED:
            trace |= {"texttemplate": f"%{{z:.{measure.cell_decimals}f}}"}
        of = "" if words.names else f" {words.task}"
        layout = traces.layout(f"{measure.name} on{of}", f"after training on{of}", height=235)
        axis = _task_axis(stream) | {"showgrid": False, "zeroline": False, "constrain": "domain"}
        layout["xaxis"] |= axis
        layout["yaxis"] |= axis | {"autorange": "reversed", "scaleanchor": "x"}
        charts.append(Chart(printable(method), [trace], layout))
    scale = f"{low:g} to {high:g} %" if measure.range else f"{high:.2f} to {low:.2f}{measure.words.unit}"
    return Figure(f"{measure.kind}-matrix", charts, [("viridis", "", scale)])


def _over_training(stream: Stream) -> Figure:
    colours, measure, words = styles.task_colours(stream.num_tasks), stream.measure, stream.wording
    x, first = np.arange(stream.num_tasks + 1), measure.first_row
    at = [f"after {escape(words.one(after))}" if after else "before training" for after in x.tolist()]
    charts = []
    for method, configuration in stream.chosen.items():
        spans = panels.over_training(configuration)
        data = []
        for task, colour in enumerate(colours, start=1):
            style, name, of = Style(colour, "circle", "solid"), escape(words.one(task)), (slice(None), task - 1)
            trained, before = spans.at(of).at(slice(task, None)), spans.at(of).at(slice(first, task + 1))
            dotted = traces.line(x[first : task + 1], before, style, name, at[first : task + 1], measure)
            data.append(traces.faint(dotted))
            if stream.num_tasks <= panels.MAX_BANDS:
                data += traces.band(x[task:], trained, style, name)
            data.append(traces.line(x[task:], trained, style, name, at[task:], measure))
        layout = traces.layout(words.axis, f"{measure.name}{measure.axis}", height=230)
        axis = _task_axis(stream, stream.num_tasks > 6)
        if not first:
            axis = {"tickvals": [0, *axis["tickvals"]]}
        room = 0.4 if words.names else 0.2  # a name that would leave the chart is not drawn
        layout["xaxis"] |= axis | {"range": [first - room, stream.num_tasks + room]}
        layout["yaxis"] |= {"range": list(extents.levels(stream))}
        charts.append(Chart(printable(method), data, layout))
    legend = [("line", colour, words.one(task)) for task, colour in enumerate(colours, start=1)]
    kind = f"{measure.kind}-over-training"
    return Figure(kind, charts, [*legend, ("dot", GREY, "before it was trained")])


def _task_axis(stream: Stream, skip: int = 0) -> Json:
    ticks = panels.task_ticks(stream.num_tasks)[skip:]
    if not stream.wording.names:
        return {"tickvals": ticks}
    return {"tickvals": ticks, "ticktext": [escape(cut(each, 14)) for each in stream.wording.ticks(ticks)]}

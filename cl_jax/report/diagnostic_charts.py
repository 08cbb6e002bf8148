"""The figures of the diagnostics as plotly.js traces, and the table of costs."""

import numpy as np

from cl_jax.estimate import of_bytes
from cl_jax.report import panels, styles, traces
from cl_jax.report.cells import printable
from cl_jax.report.charts import Chart, Figure
from cl_jax.report.diagnosis import Lines, Panel, Points, views
from cl_jax.report.measured import Measured
from cl_jax.report.panels import Spans
from cl_jax.report.styles import GREY
from cl_jax.report.traces import SHADE, Json, escape

_HEIGHT = 270


def figures(measured: Measured | None) -> list[Figure]:
    """A figure for each diagnostic that was measured."""
    if measured is None:
        return []
    return [
        Figure(f"diagnostic-{name}", [_chart(measured, panel) for panel in found], _legend(measured, found))
        for name, found in views(measured).items()
    ]


def _legend(measured: Measured, found: list[Panel]) -> list[tuple[str, str, str]]:
    looks = styles.method_styles(measured.stream)
    marks = {"solid": "line", "dot": "dot"}
    entries = [
        (marks.get(look.dash, "dash"), look.colour, method)
        for method, look in looks.items()
        if any(method in panel.of for panel in found)
    ]
    return entries + [("line", SHADE, "best parabola")] * any(isinstance(panel, Points) for panel in found)


def _chart(measured: Measured, panel: Panel) -> Chart:
    draw = _lines(measured, panel) if isinstance(panel, Lines) else _points(measured, panel)
    layout = traces.layout(escape(panel.x), escape(panel.y), _HEIGHT)
    if isinstance(panel, Lines):
        layout["xaxis"] |= _axis(panel)
    return Chart(printable(panel.title), draw, layout)


def _axis(panel: Lines) -> Json:
    if panel.ticks is None:
        whole = np.all(panel.position == np.round(panel.position))
        return {"tickformat": "d", "dtick": max(1, round(np.ptp(panel.position) / 5))} if whole else {}
    kept, last = panels.thinned(panel.position.astype(np.float64), 8), float(panel.position[-1])
    room = 0.08 * max(last, 1.0) + 0.2  # for the names at both ends
    return {
        "range": [float(panel.position[0]) - room, last + room],
        "tickvals": panel.position[kept].tolist(),
        "ticktext": [escape(panel.ticks[index]) for index in kept],
    }


def _lines(measured: Measured, panel: Lines) -> list[Json]:
    looks, drawn = styles.method_styles(measured.stream), []
    for method, found in panel.of.items():
        look, name = looks[method], escape(method)
        if len(panel.of) <= panels.MAX_BANDS:
            drawn += traces.band(panel.position, found, look, name)
        at = [escape(f"{panel.x} {place}") for place in panel.ticks or [f"{x:g}" for x in panel.position]]
        line = traces.line(panel.position, found, look, name, at, measured.stream.measure)
        line["text"] = [f"{name}<br>{where}: {number}" for where, number in zip(at, _texts(found), strict=True)]
        drawn.append(line)
    return drawn


def _texts(found: Spans) -> list[str]:
    sem = found.std / np.sqrt(np.maximum(found.n, 1))
    return [
        f"{mean:.3g}" + (f" ± {error:.2g}" if np.isfinite(error) else "") + f", n = {n}"
        for mean, error, n in zip(found.mean, sem, found.n, strict=True)
    ]


def _points(measured: Measured, panel: Points) -> list[Json]:
    looks, measure = styles.method_styles(measured.stream), measured.stream.measure
    digits, step = measure.format.decimals, measure.words.step
    x, y = panel.curve
    curve = {"type": "scatter", "mode": "lines", "x": x.tolist(), "y": traces.nested(y), "hoverinfo": "skip"}
    drawn: list[Json] = [curve | {"line": {"color": SHADE, "width": 7}}]
    for method, (x, y, names) in sorted(panel.of.items(), key=lambda item: looks[item[0]].colour != GREY):
        drawn.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": x.tolist(),
                "y": y.tolist(),
                "name": escape(method),
                "marker": {"color": looks[method].colour, "symbol": looks[method].marker, "size": 7, "opacity": 0.8},
                "text": [f"{escape(method)}<br>{escape(name)}" for name in names],
                "hovertemplate": f"%{{text}}<br>%{{x:.3g}} nats, %{{y:.{digits}f}}{step}<extra></extra>",
            }
        )
    return drawn


def costs(measured: Measured | None) -> tuple[list[str], list[list[str]]] | None:
    """Headers and cells of the table of costs, the first of them words; None: not measured."""
    if measured is None or not measured.has("operations"):
        return None
    parts = [part for part in measured.layers("bytes") if part not in ("parameters",)]
    operations = {method: _number(measured, method, "operations") for method in measured.stream.chosen}
    least = np.nanmin(list(operations.values())) if operations else np.nan
    headers = ["method", "parameters", "trainable", "state", *parts, "operations", "seconds a task"]
    lines = []
    for method in measured.stream.chosen:
        numbers = [_number(measured, method, "parameters", layer) for layer in ("", "trainable")]
        held = [_number(measured, method, "bytes", layer) for layer in ("", *parts)]
        line = [f"{number:,.0f}" if np.isfinite(number) else "-" for number in numbers]
        line += [of_bytes(number) if np.isfinite(number) else "-" for number in held]
        share = operations[method] / least
        seconds = _number(measured, method, "seconds")
        line += [f"{share:.2f} x" if np.isfinite(share) else "-", f"{seconds:.3g}" if np.isfinite(seconds) else "-"]
        lines.append([method, *line])
    return headers, lines


def _number(measured: Measured, method: str, quantity: str, layer: str = "") -> float:
    found = measured.over(quantity, np.zeros(len(measured.value)), measured.layer == layer)[1]
    return float(found[method].mean[0]) if method in found else np.nan

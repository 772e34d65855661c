"""Line and point plots as inline SVG, without a plotting library.

In: a `Plot`: named series of points. Out: one ``<figure>`` of HTML with axes, ticks, grid, lines
or marks, and a legend. Colours and fonts are CSS classes (``s0``, ``s1``, ...) that the page
defines, so that a plot follows the light or dark scheme; each series has a dash of its own, so that
it can be told apart without colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from cachekd.report.axes import (
    WIDTH,
    Axis,
    drawable,
    drawing,
    grid,
    labels,
    x_axis_of,
    y_axis_of,
)
from cachekd.report.style import COLOURS

Series = tuple[str, Sequence[float], Sequence[float]]
"""Name, x values and y values (equally many)."""
Run = list[tuple[float, float]]
"""Points of a series without a gap between them."""

STYLES = len(COLOURS)
"""Looks of a line that the page knows; further series begin again with the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """What one figure shows.

    Attributes:
        title: stands above the figure.
        x_label: what the x axis counts, with its unit.
        y_label: what the y axis measures, with its unit.
        series: lines; a point with a NaN or an infinity leaves a gap.
        log_x, log_y: whether an axis is logarithmic; a value of 0 or less then leaves a gap.
        marks: series whose points are drawn as dots. "alone": dots without a line; "line": dots on
            a line. The legend then names no last value.
        names: for a series, a name of each point; those of a series with a line stand beside it,
            all are shown under the pointer.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    marks: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def line_plot(plot: Plot) -> str:
    """One figure as HTML; a plot without a finite point says that it has no data."""
    points = [unbroken(plot, xs, ys) for _, xs, ys in plot.series]
    flat = [point for runs in points for run in runs for point in run]
    body = _body(plot, points, flat) if flat else ""
    legend = "".join(
        f'<li class="s{index % STYLES}">{escape(name)}{_last(runs, name in plot.marks)}</li>'
        for index, ((name, _, _), runs) in enumerate(zip(plot.series, points, strict=True))
    )
    return (
        f"<figure><figcaption>{escape(plot.title)}</figcaption>"
        f'<ul class="legend">{legend}</ul>{drawing(plot.title, body)}</figure>'
    )


def unbroken(plot: Plot, xs: Sequence[float], ys: Sequence[float]) -> list[Run]:
    """Points as unbroken runs; a point that cannot be drawn (NaN too) ends a run."""
    runs: list[Run] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if drawable(x, plot.log_x) and drawable(y, plot.log_y):
            runs[-1].append((float(x), float(y)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _last(runs: list[Run], marked: bool) -> str:
    if runs and marked:
        return ""
    return f" <b>{runs[-1][-1][1]:.3g}</b>" if runs else " (no data)"


def _body(plot: Plot, points: list[list[Run]], flat: Run) -> str:
    x_axis = x_axis_of([x for x, _ in flat], plot.log_x)
    y_axis = y_axis_of([y for _, y in flat], plot.log_y)
    lines = "".join(
        _run(run, x_axis, y_axis, index % STYLES)
        for index, (series, runs) in enumerate(zip(plot.series, points, strict=True))
        for run in runs
        if plot.marks.get(series[0]) != "alone"
    )
    marks = "".join(
        _marks(plot, series, x_axis, y_axis, index % STYLES)
        for index, series in enumerate(plot.series)
        if series[0] in plot.marks
    )
    return grid(x_axis, y_axis) + labels(plot.x_label, plot.y_label) + lines + marks


def _marks(plot: Plot, series: Series, x_axis: Axis, y_axis: Axis, style: int) -> str:
    """Dots of a series, each with its name."""
    name, xs, ys = series
    names = plot.names.get(name, [""] * len(xs))
    parts = []
    for text, x, y in zip(names, xs, ys, strict=True):
        if not unbroken(plot, [x], [y]):
            continue
        at_x, at_y = x_axis.place(x), y_axis.place(y)
        parts.append(
            f'<circle class="s{style}" cx="{at_x}" cy="{at_y}" r="{4 if style else 3}">'
            f"<title>{escape(text)}: {x:.3g}, {y:.3g}</title></circle>"
        )
        if plot.marks[name] == "line":
            # Towards the middle, so that no name leaves the drawing.
            left = at_x > WIDTH * 0.75
            anchor, shift = ("end", -6) if left else ("start", 6)
            parts.append(
                f'<text class="name" x="{at_x + shift:.1f}" y="{at_y - 5:.1f}" '
                f'text-anchor="{anchor}">{escape(text)}</text>'
            )
    return "".join(parts)


def _run(run: Run, x_axis: Axis, y_axis: Axis, style: int) -> str:
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in run]
    if len(places) == 1:
        x, y = places[0]
        return f'<circle class="s{style}" cx="{x}" cy="{y}" r="3"/>'
    path = " ".join(f"{x},{y}" for x, y in places)
    return f'<polyline class="s{style}" points="{path}"/>'

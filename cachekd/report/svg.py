"""Line and point plots as inline SVG, without a plotting library.

In: a `Plot`: named series of points. Out: one ``<figure>`` of HTML with axes, ticks, grid, lines
or marks, and a legend. Colours and fonts are CSS classes (``s0``, ``s1``, ...) that the page
defines, so that a plot follows the light or dark scheme; each series has a dash of its own, so that
it can be told apart without colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

Series = tuple[str, Sequence[float], Sequence[float]]
"""Name, x values and y values (equally many)."""

STYLES = 4
"""Looks of a line that the page knows; further series begin again with the first."""

_WIDTH, _HEIGHT = 480, 280
_SMALLEST, _LARGEST = 1e-200, 1e200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 18, 12, 44


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Maps values to places along one side of the drawing."""

    ticks: tuple[float, ...]
    low: float
    high: float
    start: float
    end: float
    log: bool

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)


def line_plot(plot: Plot) -> str:
    """One figure as HTML; a plot without a finite point says that it has no data."""
    points = [_finite(plot, xs, ys) for _, xs, ys in plot.series]
    flat = [point for runs in points for run in runs for point in run]
    body = _drawing(plot, points, flat) if flat else _no_data()
    legend = "".join(
        f'<li class="s{index % STYLES}">{escape(name)}{_last(runs, name in plot.marks)}</li>'
        for index, ((name, _, _), runs) in enumerate(zip(plot.series, points, strict=True))
    )
    return (
        f"<figure><figcaption>{escape(plot.title)}</figcaption>"
        f'<ul class="legend">{legend}</ul>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(plot.title)}">'
        f"{body}</svg></figure>"
    )


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """About ``count`` round values (1, 2 or 5 times a power of ten) that enclose low..high."""
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size + _SMALLEST:
        pad = 0.1 * size if size > _SMALLEST else 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(index * step for index in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten, or where there are few 1, 2 and 5 times these, that enclose low..high > 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    if last - first > 3:
        step = math.ceil((last - first) / 7)
        return tuple(10.0**power for power in range(first, last + step, step))
    ticks = [factor * 10.0**power for power in range(first, last) for factor in (1, 2, 5)]
    ticks.append(10.0**last)
    begin = max(i for i, tick in enumerate(ticks[:-1]) if tick <= low * (1 + 1e-9) or i == 0)
    end = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9) and i > begin)
    return tuple(ticks[begin : end + 1])


def _finite(
    plot: Plot, xs: Sequence[float], ys: Sequence[float]
) -> list[list[tuple[float, float]]]:
    """Points as unbroken runs; a point that cannot be drawn (NaN too) ends a run."""
    runs: list[list[tuple[float, float]]] = [[]]
    least_x, least_y = (_SMALLEST if log else -_LARGEST for log in (plot.log_x, plot.log_y))
    for x, y in zip(xs, ys, strict=True):
        if least_x < x < _LARGEST and least_y < y < _LARGEST:
            runs[-1].append((float(x), float(y)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _last(runs: list[list[tuple[float, float]]], marked: bool) -> str:
    if runs and marked:
        return ""
    return f" <b>{runs[-1][-1][1]:.3g}</b>" if runs else " (no data)"


def _no_data() -> str:
    return f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT / 2:.0f}" text-anchor="middle">no data</text>'


def _drawing(
    plot: Plot,
    points: list[list[list[tuple[float, float]]]],
    flat: list[tuple[float, float]],
) -> str:
    x_axis = _axis([x for x, _ in flat], plot.log_x, start=_LEFT, end=_WIDTH - _RIGHT)
    y_axis = _axis([y for _, y in flat], plot.log_y, start=_HEIGHT - _BOTTOM, end=_TOP)
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
    return _grid(x_axis, y_axis) + _labels(plot) + lines + marks


def _marks(plot: Plot, series: Series, x_axis: _Axis, y_axis: _Axis, style: int) -> str:
    """Dots of a series, each with its name."""
    name, xs, ys = series
    names = plot.names.get(name, [""] * len(xs))
    parts = []
    for text, x, y in zip(names, xs, ys, strict=True):
        if not _finite(plot, [x], [y]):
            continue
        at_x, at_y = x_axis.place(x), y_axis.place(y)
        parts.append(
            f'<circle class="s{style}" cx="{at_x}" cy="{at_y}" r="{4 if style else 3}">'
            f"<title>{escape(text)}: {x:.3g}, {y:.3g}</title></circle>"
        )
        if plot.marks[name] == "line":
            # Towards the middle, so that no name leaves the drawing.
            left = at_x > _WIDTH * 0.75
            anchor, shift = ("end", -6) if left else ("start", 6)
            parts.append(
                f'<text class="name" x="{at_x + shift:.1f}" y="{at_y - 5:.1f}" '
                f'text-anchor="{anchor}">{escape(text)}</text>'
            )
    return "".join(parts)


def _axis(values: list[float], log: bool, *, start: float, end: float) -> _Axis:
    ticks = (log_ticks if log else nice_ticks)(min(values), max(values))
    return _Axis(ticks=ticks, low=ticks[0], high=ticks[-1], start=start, end=end, log=log)


def _grid(x_axis: _Axis, y_axis: _Axis) -> str:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_axis.ticks:
        x, y = x_axis.place(tick), _HEIGHT - _BOTTOM
        parts.append(f'<path class="axis" d="M{x} {y}v4"/>')
        parts.append(f'<text x="{x}" y="{y + 17}" text-anchor="middle">{tick:g}</text>')
    corner = f"M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"
    parts.append(f'<path class="axis" d="{corner}"/>')
    return "".join(parts)


def _labels(plot: Plot) -> str:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return (
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 8}" '
        f'text-anchor="middle">{escape(plot.x_label)}</text>'
        f'<text transform="translate(13 {middle:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(plot.y_label)}</text>'
    )


def _run(run: list[tuple[float, float]], x_axis: _Axis, y_axis: _Axis, style: int) -> str:
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in run]
    if len(places) == 1:
        x, y = places[0]
        return f'<circle class="s{style}" cx="{x}" cy="{y}" r="3"/>'
    path = " ".join(f"{x},{y}" for x, y in places)
    return f'<polyline class="s{style}" points="{path}"/>'

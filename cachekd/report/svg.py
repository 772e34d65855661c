"""Line plots as inline SVG, without a plotting library.

In: a `Plot`: named series of points. Out: one ``<figure>`` of HTML with axes, ticks, grid, lines
and a legend. Colours and fonts are CSS classes (``s0``, ``s1``, ...) that the page defines, so that
a plot follows the light or dark scheme; each series has a dash of its own, so that it can be told
apart without colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Maps values to places along one side of the drawing."""

    ticks: tuple[float, ...]
    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def line_plot(plot: Plot) -> str:
    """One figure as HTML; a plot without a finite point says that it has no data."""
    points = [_finite(xs, ys) for _, xs, ys in plot.series]
    flat = [point for runs in points for run in runs for point in run]
    body = _drawing(plot, points, flat) if flat else _no_data()
    legend = "".join(
        f'<li class="s{index % STYLES}">{escape(name)}{_last(runs)}</li>'
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


def _finite(xs: Sequence[float], ys: Sequence[float]) -> list[list[tuple[float, float]]]:
    """Points as unbroken runs; a point that cannot be drawn (NaN too) ends a run."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if abs(x) < _LARGEST and abs(y) < _LARGEST:
            runs[-1].append((float(x), float(y)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _last(runs: list[list[tuple[float, float]]]) -> str:
    return f" <b>{runs[-1][-1][1]:.3g}</b>" if runs else " (no data)"


def _no_data() -> str:
    return f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT / 2:.0f}" text-anchor="middle">no data</text>'


def _drawing(
    plot: Plot,
    points: list[list[list[tuple[float, float]]]],
    flat: list[tuple[float, float]],
) -> str:
    x_axis = _axis([x for x, _ in flat], start=_LEFT, end=_WIDTH - _RIGHT)
    y_axis = _axis([y for _, y in flat], start=_HEIGHT - _BOTTOM, end=_TOP)
    lines = "".join(
        _run(run, x_axis, y_axis, index % STYLES)
        for index, runs in enumerate(points)
        for run in runs
    )
    return _grid(x_axis, y_axis) + _labels(plot) + lines


def _axis(values: list[float], *, start: float, end: float) -> _Axis:
    ticks = nice_ticks(min(values), max(values))
    return _Axis(ticks=ticks, low=ticks[0], high=ticks[-1], start=start, end=end)


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

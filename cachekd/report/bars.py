"""Bars and histograms as inline SVG.

In: `Bars` (a few named values, with deviations) or a `Histogram` (counts between edges). Out: one
``<figure>`` of HTML each, drawn by the same classes and scheme as the plots of lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from cachekd.report.axes import (
    HEIGHT,
    WIDTH,
    Axis,
    axis_of,
    drawable,
    drawing,
    grid,
    labels,
    ticks_below,
    x_axis_of,
    y_axis_of,
)
from cachekd.report.svg import STYLES
from cachekd.report.text import short

BarSeries = tuple[str, Sequence[float], Sequence[float] | None]
"""Name, a value for each group, and a deviation for each or None; NaN where there is none."""

_NAME, _BAR, _GAP, _SIDE, _VALUE, _FOOT = 18, 14, 10, 8, 78, 40
_LETTERS = 36  # of a group's name in the drawing; the whole name is under the pointer


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Values side by side.

    Attributes:
        title: stands above the figure.
        x_label: what the length of a bar measures, with its unit.
        groups: what the values are of; each has a bar of every series.
        series: values and deviations; a value that is NaN is shown as "not measured".
    """

    title: str
    x_label: str
    groups: tuple[str, ...]
    series: tuple[BarSeries, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How often a value lies between two edges.

    Attributes:
        title: stands above the figure.
        x_label: what the edges measure, with its unit.
        y_label: what is counted.
        edges: B + 1 ascending values; above 0 on a log axis.
        counts: B counts.
        log_x: whether the x axis is logarithmic.
    """

    title: str
    x_label: str
    y_label: str
    edges: Sequence[float]
    counts: Sequence[float]
    log_x: bool = False


def bar_chart(bars: Bars) -> str:
    """One figure as HTML: bars lie, each below the name of its group, so that a phone has room."""
    ends = [value for series in bars.series for value in _ends(series) if drawable(value, False)]
    several = len(bars.series) > 1
    legend = "".join(
        f'<li class="s{i % STYLES}">{escape(name)}</li>'
        for i, (name, _, _) in enumerate(bars.series)
    )
    step = _NAME + _BAR * len(bars.series) + _GAP
    height = step * len(bars.groups) + _FOOT
    body = _lying(bars, [0.0, *ends], step) if ends else ""
    return (
        f"<figure><figcaption>{escape(bars.title)}</figcaption>"
        + (f'<ul class="legend">{legend}</ul>' if several else "")
        + drawing(bars.title, body, height if ends else HEIGHT)
        + "</figure>"
    )


def _ends(series: BarSeries) -> list[float]:
    """Where bars and their whiskers end."""
    _, values, deviations = series
    spread = [0.0] * len(values) if deviations is None else deviations
    pairs = list(zip(values, spread, strict=True))
    return [*values, *(v + d for v, d in pairs), *(v - d for v, d in pairs)]


def _lying(bars: Bars, values: list[float], step: int) -> str:
    axis = axis_of(values, False, start=_SIDE, end=WIDTH - _VALUE)
    bottom = step * len(bars.groups)
    parts = [f'<path class="grid" d="M{axis.place(tick)} 0V{bottom}"/>' for tick in axis.ticks]
    for number, group in enumerate(bars.groups):
        top = number * step
        name = escape(short(group, _LETTERS))
        parts.append(f'<text class="group" x="{_SIDE}" y="{top + 13}">{name}</text>')
        for index, (name, sizes, deviations) in enumerate(bars.series):
            spread = None if deviations is None else deviations[number]
            told = f"{group}, {name}" if len(bars.series) > 1 else group
            y = top + _NAME + index * _BAR
            parts.append(_bar(axis, y, told, sizes[number], spread, index % STYLES))
    parts.append(ticks_below(axis, bottom))
    parts.append(f'<path class="axis" d="M{axis.place(0)} 0V{bottom}"/>')
    middle = (axis.start + axis.end) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{bottom + 34}" text-anchor="middle">'
        f"{escape(bars.x_label)}</text>"
    )
    return "".join(parts)


def _bar(axis: Axis, y: float, told: str, value: float, spread: float | None, style: int) -> str:
    if not drawable(value, False):
        return f'<text x="{axis.place(0) + 4}" y="{y + 10}">not measured</text>'
    zero, end, middle = axis.place(0), axis.place(value), y + (_BAR - 2) / 2
    text, right = f"{value:.3g}", max(zero, end)
    whisker = ""
    if spread is not None and drawable(spread, False):
        low, high = axis.place(value - spread), axis.place(value + spread)
        whisker = f'<path class="whisker" d="M{low} {middle}H{high}M{low} {y}v12M{high} {y}v12"/>'
        text, right = f"{text} ± {spread:.2g}", max(right, high)
    return (
        f'<rect class="s{style}" x="{min(zero, end)}" y="{y}" '
        f'width="{max(abs(end - zero), 0.5):.1f}" height="{_BAR - 2}">'
        f"<title>{escape(told)}: {text}</title></rect>{whisker}"
        f'<text class="name" x="{right + 5:.1f}" y="{y + 10}">{text}</text>'
    )


def histogram(shown: Histogram) -> str:
    """One figure as HTML; one whose counts are all 0 says that it has no data."""
    pairs = list(zip(shown.edges[:-1], shown.edges[1:], shown.counts, strict=True))
    body = ""
    if any(count > 0 for count in shown.counts):
        x_axis = x_axis_of([shown.edges[0], shown.edges[-1]], shown.log_x)
        y_axis = y_axis_of([0.0, max(shown.counts)])
        rects = [_bin(x_axis, y_axis, low, high, n) for low, high, n in pairs if n > 0]
        body = grid(x_axis, y_axis) + labels(shown.x_label, shown.y_label) + "".join(rects)
    return (
        f"<figure><figcaption>{escape(shown.title)}</figcaption>"
        f"{drawing(shown.title, body)}</figure>"
    )


def _bin(x_axis: Axis, y_axis: Axis, low: float, high: float, count: float) -> str:
    left, right, top = x_axis.place(low), x_axis.place(high), y_axis.place(count)
    width = max(right - left - 0.5, 0.5)  # a line of paper between two
    return (
        f'<rect class="s0" x="{left}" y="{top}" width="{width:.1f}" '
        f'height="{y_axis.place(0) - top:.1f}">'
        f"<title>{low:.3g} to {high:.3g}: {count:,g}</title></rect>"
    )

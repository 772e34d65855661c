"""Bars and histograms as inline SVG.

In: `Bars` (a few named values, with deviations or ranges) or a `Histogram` (counts between edges).
Out: one ``<figure>`` of HTML each, drawn by the same classes and scheme as the plots of lines.
"""

from __future__ import annotations

import math
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

Spread = float | tuple[float, float]
"""A deviation, to both sides; or the ends of a range. NaN where there is none."""
BarSeries = tuple[str, Sequence[float | None], Sequence[Spread] | None]
"""Name, a value for each group (None where a group has none), and a spread for each or None."""

_NAME, _BAR, _GAP, _SIDE, _VALUE, _FOOT = 18, 14, 10, 8, 78, 40
_LETTER = 7  # width of a letter beside a bar, on a phone
_LETTERS = 36  # of a group's name in the drawing; the whole name is under the pointer


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Values side by side.

    Attributes:
        title: stands above the figure.
        x_label: what the length of a bar measures, with its unit.
        groups: what the values are of; each has a bar of every series.
        series: values and spreads; a value that is NaN is shown as "not measured", of one that is
            None nothing is shown.
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
    height = _bottom(bars) + _FOOT
    body = _lying(bars, [0.0, *ends]) if ends else ""
    return (
        f"<figure><figcaption>{escape(bars.title)}</figcaption>"
        + (f'<ul class="legend">{legend}</ul>' if several else "")
        + drawing(bars.title, body, height if ends else HEIGHT)
        + "</figure>"
    )


def range_of(value: float, spread: Spread) -> tuple[float, float] | None:
    """Where a whisker begins and ends; None where there is none to draw."""
    low, high = spread if isinstance(spread, tuple) else (value - spread, value + spread)
    return (low, high) if drawable(low, False) and drawable(high, False) else None


def _ends(series: BarSeries) -> list[float]:
    """Where bars and their whiskers end."""
    _, values, spreads = series
    pairs = zip(values, spreads or [math.nan] * len(values), strict=True)
    known = [(value, spread) for value, spread in pairs if value is not None]
    whiskers = (range_of(value, spread) for value, spread in known)
    return [*(value for value, _ in known), *(end for pair in whiskers for end in pair or ())]


def _bottom(bars: Bars) -> int:
    """Height of all bars."""
    count = sum(value is not None for _, values, _ in bars.series for value in values)
    return (_NAME + _GAP) * len(bars.groups) + _BAR * count


def _room(bars: Bars) -> float:
    """Width that the figures beside the bars take; a range is longer than a deviation."""
    ranges = [
        _label(value, spread)
        for _, values, spreads in bars.series
        for value, spread in zip(values, spreads or (), strict=bool(spreads))
        if value is not None and isinstance(spread, tuple)
    ]
    return max([_VALUE, *(_LETTER * len(text) for text in ranges)])


def _lying(bars: Bars, values: list[float]) -> str:
    axis, bottom = axis_of(values, False, start=_SIDE, end=WIDTH - _room(bars)), _bottom(bars)
    parts = [f'<path class="grid" d="M{axis.place(tick)} 0V{bottom}"/>' for tick in axis.ticks]
    y = 0
    for number, group in enumerate(bars.groups):
        name = escape(short(group, _LETTERS))
        parts.append(f'<text class="group" x="{_SIDE}" y="{y + 13}">{name}</text>')
        y += _NAME
        for index, (name, sizes, spreads) in enumerate(bars.series):
            size = sizes[number]
            if size is None:
                continue
            spread = math.nan if spreads is None else spreads[number]
            told = f"{group}, {name}" if len(bars.series) > 1 else group
            parts.append(_bar(axis, y, told, size, spread, index % STYLES))
            y += _BAR
        y += _GAP
    parts.append(ticks_below(axis, bottom))
    parts.append(f'<path class="axis" d="M{axis.place(0)} 0V{bottom}"/>')
    middle = (axis.start + axis.end) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{bottom + 34}" text-anchor="middle">'
        f"{escape(bars.x_label)}</text>"
    )
    return "".join(parts)


def _bar(axis: Axis, y: float, told: str, value: float, spread: Spread, style: int) -> str:
    if not drawable(value, False):
        return f'<text x="{axis.place(0) + 4}" y="{y + 10}">not measured</text>'
    zero, end, middle = axis.place(0), axis.place(value), y + (_BAR - 2) / 2
    text, right = _label(value, spread), max(zero, end)
    whisker, ends = "", range_of(value, spread)
    if ends is not None:
        low, high = map(axis.place, ends)
        whisker = f'<path class="whisker" d="M{low} {middle}H{high}M{low} {y}v12M{high} {y}v12"/>'
        right = max(right, high)
    return (
        f'<rect class="s{style}" x="{min(zero, end)}" y="{y}" '
        f'width="{max(abs(end - zero), 0.5):.1f}" height="{_BAR - 2}">'
        f"<title>{escape(told)}: {text}</title></rect>{whisker}"
        f'<text class="name" x="{right + 5:.1f}" y="{y + 10}">{text}</text>'
    )


def _label(value: float, spread: Spread) -> str:
    """The figure beside a bar."""
    ends = range_of(value, spread)
    if ends is None:
        return f"{value:.3g}"
    if isinstance(spread, tuple):
        return f"{value:.3g} ({ends[0]:.3g} to {ends[1]:.3g})"
    return f"{value:.3g} ± {spread:.2g}"


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

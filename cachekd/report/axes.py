"""Axes of an SVG figure: round ticks, places of values, grid and labels.

In: the values that a figure shows, and a side of its drawing. Out: an `Axis`, and SVG text. Colours
and fonts are CSS classes that the page defines (`cachekd.report.style`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 12, 44
SMALLEST, LARGEST = 1e-200, 1e200
"""Values beyond are not drawn: their ratios are no floats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Maps values to places along one side of the drawing."""

    ticks: tuple[float, ...]
    low: float
    high: float
    start: float
    end: float
    log: bool

    def place(self, value: float) -> float:
        """Where a value lies, in units of the drawing."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)


def axis_of(values: Sequence[float], log: bool, *, start: float, end: float) -> Axis:
    """The axis that encloses these values (at least one, finite, above 0 on a log axis)."""
    ticks = (log_ticks if log else nice_ticks)(min(values), max(values))
    return Axis(ticks=ticks, low=ticks[0], high=ticks[-1], start=start, end=end, log=log)


def x_axis_of(values: Sequence[float], log: bool = False) -> Axis:
    """The axis along the bottom of a drawing of the usual size."""
    return axis_of(values, log, start=LEFT, end=WIDTH - RIGHT)


def y_axis_of(values: Sequence[float], log: bool = False) -> Axis:
    """The axis along the left of a drawing of the usual size."""
    return axis_of(values, log, start=HEIGHT - BOTTOM, end=TOP)


def drawable(value: float, log: bool) -> bool:
    """Whether a value has a place on an axis: NaN and infinities have none, nor 0 on a log axis."""
    return (SMALLEST if log else -LARGEST) < value < LARGEST


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """About ``count`` round values (1, 2 or 5 times a power of ten) that enclose low..high."""
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size + SMALLEST:
        pad = 0.1 * size if size > SMALLEST else 1.0
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


def grid(x_axis: Axis, y_axis: Axis) -> str:
    """Grid lines, ticks with their values, and the two axes."""
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick_text(tick)}</text>'
        )
    parts.append(ticks_below(x_axis, HEIGHT - BOTTOM))
    corner = f"M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"
    parts.append(f'<path class="axis" d="{corner}"/>')
    return "".join(parts)


def ticks_below(axis: Axis, y: float) -> str:
    """Ticks of an x axis that lies at this height, with their values."""
    return "".join(
        f'<path class="axis" d="M{x} {y}v4"/>'
        f'<text x="{x}" y="{y + 17}" text-anchor="middle">{tick_text(tick)}</text>'
        for tick, x in ((tick, axis.place(tick)) for tick in axis.ticks)
    )


def tick_text(value: float) -> str:
    """A tick's value in few letters: large ones by their thousands."""
    if not 1e4 <= abs(value) < 1e12:
        return f"{value:g}"
    unit, size = next(one for one in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if abs(value) >= one[1])
    return f"{value / size:g}{unit}"


def labels(x_label: str, y_label: str) -> str:
    """What the two axes measure."""
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(11 {middle:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )


def drawing(title: str, body: str, height: float = HEIGHT) -> str:
    """The ``<svg>`` around a body; one without a body says that there is no data."""
    body = body or (
        f'<text x="{WIDTH / 2:.0f}" y="{height / 2:.0f}" text-anchor="middle">no data</text>'
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{body}</svg>"
    )

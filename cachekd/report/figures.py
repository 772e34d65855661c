"""All kinds of figures that a page shows, and their SVG."""

from __future__ import annotations

from cachekd.report.bars import Bars, Histogram, bar_chart, histogram
from cachekd.report.svg import Plot, line_plot

Figure = Plot | Bars | Histogram


def drawn(figure: Figure) -> str:
    """A figure as HTML."""
    if isinstance(figure, Plot):
        return line_plot(figure)
    return bar_chart(figure) if isinstance(figure, Bars) else histogram(figure)

"""Figures as PNG files, for papers and slides: what the page draws as SVG, drawn by matplotlib.

In: the same `Plot`, `Bars` and `Histogram`. Out: one PNG file each, on white.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cachekd.report.axes import drawable, log_ticks, tick_text
from cachekd.report.bars import Bars, Histogram
from cachekd.report.figures import Figure
from cachekd.report.files import write_whole
from cachekd.report.style import COLOURS, DASHES, FAINT, RULE
from cachekd.report.svg import STYLES, Plot, unbroken
from cachekd.report.text import short

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_Handle: TypeAlias = "Artist | tuple[Artist, ...]"

_INCHES, _DPI = (6.4, 3.8), 200
_NAME_LETTERS = 60
_LETTERS = 24


def write_png(plot: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; the folder is made.

    Args:
        plot: what to show; without a finite value the picture says "no data", as the page does.
        path: PNG file to write, 1280 x 760 pixels (bars: as high as they need).

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib import rc_context, rcdefaults

    with rc_context():
        rcdefaults()  # a matplotlibrc may ask for LaTeX, or for another size
        picture = _picture(plot)
    write_whole(path, picture)


def _picture(plot: Figure) -> bytes:
    """The bytes of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=_size(plot), dpi=_DPI, layout="constrained")
    axes = FigureCanvasAgg(canvas).figure.add_subplot()
    _draw(plot, axes)
    axes.set_title(plot.title, loc="left", fontsize=11, parse_math=False)
    buffer = BytesIO()
    with warnings.catch_warnings():  # letters that no font here has are drawn as boxes
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        canvas.savefig(buffer, format="png")
    return buffer.getvalue()


def write_pngs(plots: Sequence[Figure], folder: Path) -> list[Path]:
    """Write each figure to a file that is named by its number and title.

    Raises:
        OSError: a file cannot be written.
    """
    paths = [folder / f"{i:02d}-{file_name(plot.title)}.png" for i, plot in enumerate(plots, 1)]
    for plot, path in zip(plots, paths, strict=True):
        write_png(plot, path)
    return paths


def file_name(title: str) -> str:
    """A title as part of a file name: plain letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_NAME_LETTERS].rstrip("-") or "figure"


def _size(plot: Figure) -> tuple[float, float]:
    if not isinstance(plot, Bars):
        return _INCHES
    return _INCHES[0], 1.2 + len(plot.groups) * (0.16 + 0.22 * len(plot.series))


def _draw(plot: Figure, axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=9)
    if isinstance(plot, Plot):
        drawn = _lines(plot, axes)
    elif isinstance(plot, Bars):
        drawn = _bars(plot, axes)
    else:
        drawn = _bins(plot, axes)
    if not drawn:
        axes.text(0.5, 0.5, "no data", ha="center", transform=axes.transAxes, color=FAINT)


def _lines(plot: Plot, axes: Axes) -> bool:
    _scales(axes, plot.x_label, plot.y_label)
    axes.set_xscale("log" if plot.log_x else "linear")
    axes.set_yscale("log" if plot.log_y else "linear")
    handles, names = [], []
    for index, (name, xs, ys) in enumerate(plot.series):
        colour, dash = COLOURS[index % STYLES], (0, DASHES[index % STYLES] or None)
        mark = plot.marks.get(name)
        runs = unbroken(plot, xs, ys)
        for run in runs:
            alone = mark is not None or len(run) == 1
            (line,) = axes.plot(
                *zip(*run, strict=True),
                color=colour,
                linestyle="none" if mark == "alone" else dash,
                marker="o" if alone else "",
                markersize=5,
            )
        if runs:
            handles.append(line)
            names.append(name)
        if mark == "line":
            _names(plot, axes, name, xs, ys)
    _legend(axes, handles, names)
    points = [point for _, xs, ys in plot.series for run in unbroken(plot, xs, ys) for point in run]
    _ticks(axes.xaxis, plot.log_x, [x for x, _ in points])
    _ticks(axes.yaxis, plot.log_y, [y for _, y in points])
    return bool(handles)


def _ticks(axis: Axis, log: bool, values: Sequence[float]) -> None:
    """Those of the page on a logarithmic axis: matplotlib's own may be a single one."""
    if log and values:
        ticks = log_ticks(min(values), max(values))
        axis.set_ticks(ticks, [tick_text(tick) for tick in ticks])
        axis.set_ticks([], minor=True)


def _names(plot: Plot, axes: Axes, name: str, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Names of the points of a series with a line, beside them."""
    for text, x, y in zip(plot.names.get(name, ()), xs, ys, strict=False):
        if unbroken(plot, [x], [y]):
            axes.annotate(
                text, (x, y), (4, 4), textcoords="offset points", fontsize=7, parse_math=False
            )


def _bars(bars: Bars, axes: Axes) -> bool:
    _scales(axes, bars.x_label, "")
    height, handles = 0.8 / max(1, len(bars.series)), []
    for index, (_, values, deviations) in enumerate(bars.series):
        places = [i + (index + 0.5) * height - 0.4 for i in range(len(bars.groups))]
        spread = [float("nan")] * len(values) if deviations is None else deviations
        shown = [
            (place, value, deviation)
            for place, value, deviation in zip(places, values, spread, strict=True)
            if drawable(value, False)
        ]
        for place, value in zip(places, values, strict=True):
            if not drawable(value, False):
                axes.text(0, place, " not measured", va="center", fontsize=7, color=FAINT)
        if shown:
            at, sizes, errors = zip(*shown, strict=True)
            colour = COLOURS[index % STYLES]
            handles.append(
                axes.barh(
                    at,
                    sizes,
                    height * 0.9,
                    color=colour,
                    xerr=None if deviations is None else errors,
                    error_kw={"capsize": 2},
                )
            )
    names = [short(group, _LETTERS) for group in bars.groups]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(len(bars.groups) - 0.5, -0.5)
    if len(bars.series) > 1:
        _legend(axes, handles, [name for name, _, _ in bars.series])
    return bool(handles)


def _bins(shown: Histogram, axes: Axes) -> bool:
    _scales(axes, shown.x_label, shown.y_label)
    axes.set_xscale("log" if shown.log_x else "linear")
    if any(count > 0 for count in shown.counts):
        axes.stairs(shown.counts, shown.edges, fill=True, color=COLOURS[0])
        _ticks(axes.xaxis, shown.log_x, shown.edges)
    return any(count > 0 for count in shown.counts)


def _scales(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=10, parse_math=False)
    axes.set_ylabel(y_label, fontsize=10, parse_math=False)


def _legend(axes: Axes, handles: Sequence[_Handle], names: Sequence[str]) -> None:
    if not handles:
        return
    legend = axes.legend(handles, names, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)

"""PNG files: pictures of the figure, whole or not at all."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from cachekd.report import png
from cachekd.report.axes import log_ticks, tick_text
from cachekd.report.bars import Bars, Histogram
from cachekd.report.figures import Figure
from cachekd.report.png import file_name, write_png, write_pngs
from cachekd.report.style import COLOURS
from cachekd.report.svg import Plot

NAN = math.nan
LINES = Plot(
    title="Loss $x_1$ and $",
    x_label="steps $",
    y_label="nats",
    series=(("_hidden", [0, 1, 2, 3], [3, 2, NAN, 1]), ("b$_2$", [0, 3], [1, 2])),
)
FRONT = Plot(
    title="front",
    x_label="bytes",
    y_label="KL",
    series=(("front", [10, 100], [1, 0.1]), ("others", [10, 0], [0.1, 1])),
    log_x=True,
    log_y=True,
    marks={"front": "line", "others": "alone"},
    names={"front": ["a$_", "b"]},
)
BARS = Bars(
    title="bytes",
    x_label="bytes",
    groups=("עברית 字", "b"),
    series=(("one", [1.0, NAN], [0.1, NAN]), ("two", [2.0, -1.0], None)),
)
BINS = Histogram(title="rows", x_label="nats", y_label="rows", edges=[1, 2, 4], counts=[3, 5])


def _has(picture: np.ndarray, colour: str) -> bool:
    return bool((np.abs(picture[..., :3] - to_rgb(colour)).max(2) < 0.02).sum() > 50)


@pytest.mark.parametrize(
    ("figure", "colours"), [(LINES, 2), (FRONT, 2), (BARS, 2), (BINS, 1)], ids="lfbh"
)
def test_a_picture_shows_every_series(figure: Figure, colours: int, tmp_path: Path) -> None:
    write_png(figure, tmp_path / "a.png")
    picture = imread(tmp_path / "a.png")
    assert picture.shape[1] == 1280 and (isinstance(figure, Bars) or picture.shape[0] == 760)
    assert [_has(picture, colour) for colour in COLOURS[:3]] == [i < colours for i in range(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_figure_without_data_is_drawn_and_holds_none(tmp_path: Path) -> None:
    empty = Plot(title="", x_label="", y_label="", series=(("a", [1], [NAN]),))
    write_png(empty, tmp_path / "a.png")
    assert not _has(imread(tmp_path / "a.png"), COLOURS[0])


@pytest.mark.parametrize("log", [False, True])
def test_a_log_axis_has_the_ticks_of_the_page(log: bool) -> None:
    from matplotlib.figure import Figure as Canvas

    values = [0.2, 0.9]
    plot = replace(FRONT, series=(("front", values, values),), log_x=log, log_y=log, names={})
    axes = Canvas().add_subplot()
    png._draw(plot, axes)
    for axis in (axes.xaxis, axes.yaxis):
        shown = [text.get_text() for text in axis.get_ticklabels()]
        assert (shown == ["0.2", "0.5", "1"]) == log
        assert not log or not [text for text in axis.get_ticklabels(minor=True) if text.get_text()]
    histogram = replace(BINS, edges=[1e-8, 1e-4, 1], log_x=log)
    axes = Canvas().add_subplot()
    png._draw(histogram, axes)
    shown = [text.get_text() for text in axes.xaxis.get_ticklabels()]
    assert (shown == [tick_text(tick) for tick in log_ticks(1e-8, 1)]) == log


def test_settings_of_the_user_do_not_change_a_picture(tmp_path: Path) -> None:
    write_png(BINS, tmp_path / "a.png")
    with rc_context({"text.usetex": True, "savefig.dpi": 10, "axes.facecolor": "black"}):
        write_png(BINS, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_files_are_named_by_number_and_title(tmp_path: Path) -> None:
    paths = write_pngs([BINS, BINS], tmp_path / "new")
    assert [path.name for path in paths] == ["01-rows.png", "02-rows.png"]
    assert file_name("Größe: a/b ../..") == "groe-a-b"
    assert file_name("שלום") == "figure" and len(file_name("x" * 500)) == 60


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write_png(BINS, tmp_path / "file" / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

"""Bars and histograms: lengths are the values, gaps are told, nothing leaves the drawing."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekd.report.bars import Bars, Histogram, Spread, bar_chart, histogram

HOSTILE = "</title><script>alert(1)</script>"
VALUES = st.floats(-1e6, 1e6)


def _drawing(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure)[0])  # type: ignore[index]


def _bars(*values: float, deviations: tuple[Spread, ...] | None = None) -> Bars:
    groups = tuple(f"group {i}" for i in range(len(values)))
    return Bars(title="t", x_label="x", groups=groups, series=(("s", values, deviations),))


def _rects(figure: str) -> list[tuple[float, float, float, float]]:
    sides = ("x", "y", "width", "height")
    return [tuple(float(r.attrib[s]) for s in sides) for r in _drawing(figure).iter("rect")]  # type: ignore[misc]


def test_bars_are_as_long_as_their_values() -> None:
    rects = _rects(bar_chart(_bars(1, 2, 4, -2)))
    lengths = [width for _, _, width, _ in rects]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=0.2)
    assert lengths[2] == pytest.approx(4 * lengths[0], abs=0.3)
    assert lengths[3] == pytest.approx(lengths[1], abs=0.2)
    assert rects[3][0] < rects[0][0], "below zero lies to the left"


def test_a_value_that_is_not_known_is_told_and_not_drawn() -> None:
    figure = bar_chart(_bars(1.0, math.nan))
    assert len(_rects(figure)) == 1
    assert figure.count("not measured") == 1
    assert "no data" in bar_chart(_bars(math.nan)) and "no data" in bar_chart(_bars())


def test_deviations_are_whiskers_with_their_figures() -> None:
    figure = bar_chart(_bars(2.0, 3.0, deviations=(0.5, math.nan)))
    whiskers = [p for p in _drawing(figure).iter("path") if p.get("class") == "whisker"]
    assert len(whiskers) == 1
    assert "2 ± 0.5" in figure and "3 ±" not in figure


def test_a_range_has_ends_of_its_own() -> None:
    figure = bar_chart(_bars(2.0, 4.0, deviations=((1.75, 3.0), (math.nan, 5.0))))
    (whisker,) = [p for p in _drawing(figure).iter("path") if p.get("class") == "whisker"]
    low, high = (float(x) for x in re.findall(r"M([\d.]+) [\d.]+v12", whisker.attrib["d"]))
    (rect, _) = _rects(figure)
    end = rect[0] + rect[2]
    assert high - end == pytest.approx(4 * (end - low), abs=0.6)
    assert "2 (1.75 to 3)" in figure and "4 (" not in figure
    long = bar_chart(_bars(310.0, deviations=((300.0, 400.0),)))
    (text,) = [t for t in _drawing(long).iter("text") if "to" in (t.text or "")]
    assert float(text.attrib["x"]) + 6 * len(text.text or "") <= 480, "it stays in the drawing"


def test_a_value_that_a_group_does_not_have_takes_no_place() -> None:
    def chart(*second: float | None) -> str:
        series = (("a", [1.0, 2.0], None), ("b", second, None))
        return bar_chart(Bars(title="t", x_label="x", groups=("g", "h"), series=series))

    without, whole = chart(None, 3.0), chart(1.0, 3.0)
    assert len(_rects(without)) == 3 and len(_rects(whole)) == 4
    assert "not measured" not in without
    heights = [float(_drawing(one).attrib["viewBox"].split()[3]) for one in (without, whole)]
    assert heights[1] - heights[0] == 14


@given(st.lists(VALUES, min_size=1, max_size=6))
def test_every_bar_lies_inside_the_drawing(values: list[float]) -> None:
    figure = bar_chart(_bars(*values, deviations=tuple(abs(v) / 2 for v in values)))
    width, height = map(float, _drawing(figure).attrib["viewBox"].split()[2:])
    rects = _rects(figure)
    assert len(rects) == len(values)
    assert all(x >= 0 and x + w <= width and y >= 0 and y + h <= height for x, y, w, h in rects)


@pytest.mark.parametrize("log_x", [False, True])
def test_bins_are_as_high_as_their_counts(log_x: bool) -> None:
    shown = Histogram(
        title="t", x_label="x", y_label="y", edges=[1, 10, 100], counts=[2, 4], log_x=log_x
    )
    rects = _rects(histogram(shown))
    assert rects[1][3] == pytest.approx(2 * rects[0][3], abs=0.2)
    assert (rects[0][2] == pytest.approx(rects[1][2], abs=0.2)) == log_x


def test_a_histogram_without_counts_says_so() -> None:
    shown = Histogram(title="t", x_label="x", y_label="y", edges=[0, 1, 2], counts=[0, 0])
    assert "no data" in histogram(shown) and not _rects(histogram(shown))


def test_names_stay_text() -> None:
    bars = Bars(title=HOSTILE, x_label=HOSTILE, groups=(HOSTILE,), series=((HOSTILE, [1.0], None),))
    assert "<script" not in bar_chart(bars)
    assert [text.text for text in _drawing(bar_chart(bars)).iter("text")].count(HOSTILE) == 2

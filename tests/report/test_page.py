"""The page of curves: self-contained, escaped, and not broken by missing points."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekd.report.axes import log_ticks, nice_ticks
from cachekd.report.curves import Section, Table, write_page
from cachekd.report.heat import Passage
from cachekd.report.svg import Plot, Series, line_plot

HOSTILE = "<script>alert('x')</script> & \"quoted\""


def _plot(*series: Series, title: str = "Loss") -> Plot:
    return Plot(title=title, x_label="steps", y_label="nats", series=series)


def _page(folder: Path, *plots: Plot, title: str = "Title") -> str:
    path = folder / "page.html"
    table = Table(title=title, header=("model", title), rows=((title, "1.0"),))
    write_page(path, title=title, intro=[title], tables=[table], plots=plots)
    return path.read_text(encoding="utf-8")


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_asks_for_nothing_outside(tmp_path: Path) -> None:
    page = _page(tmp_path, _plot(("a", [0, 1], [2, 1])))
    tags = _Tags(page)
    assert not re.findall(r"https?://|url\(|@import", page)
    assert not {"script", "link", "img", "iframe"} & set(tags.tags)
    assert not {"src", "href"} & tags.attributes
    assert 'name="viewport"' in page


def test_page_has_one_drawing_and_legend_for_each_plot(tmp_path: Path) -> None:
    page = _page(
        tmp_path,
        _plot(("distilled", [0, 1, 2], [3, 2, 1]), ("text only", [0, 1, 2], [3, 2.5, 2])),
        _plot(("third line", [0, 1], [1, 0]), title="Another"),
    )
    tags = _Tags(page)
    assert tags.tags.count("svg") == 2
    assert tags.tags.count("polyline") == 3
    for name in ("distilled", "text only", "third line", "Another", "steps", "nats"):
        assert name in tags.text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = _page(tmp_path, _plot((HOSTILE, [0, 1], [1, 2]), title=HOSTILE), title=HOSTILE)
    tags = _Tags(page)
    assert "script" not in tags.tags
    assert tags.text.count(HOSTILE) == 8


def test_sections_follow_with_headings_in_their_order(tmp_path: Path) -> None:
    table = Table(title="a table", header=("", "x"), rows=(("row", "1"),))
    passage = Passage(title="a text", tokens=("t",), shades=(1.0,), notes=("n",))
    sections = [
        Section(heading="first", text=["said first"], tables=[table]),
        Section(heading="second", plots=[_plot(("a", [0, 1], [1, 2]))], passages=[passage]),
    ]
    path = tmp_path / "page.html"
    write_page(path, title="T", intro=["intro"], sections=sections)
    text = path.read_text(encoding="utf-8")
    order = ["intro", "first", "said first", "a table", "second", "<svg", "least", "a text"]
    places = [text.index(one, text.index("<h1>")) for one in order]
    assert places == sorted(places)
    assert _Tags(text).tags.count("h2") == 2


def test_page_is_written_whole_and_half_a_character_does_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "page.html"
    write_page(path, title="a\ud800b", intro=["\u2028 \u202e שלום"])
    assert "a?b" in path.read_text(encoding="utf-8")
    assert [one.name for one in path.parent.iterdir()] == ["page.html"]
    with pytest.raises(OSError):
        write_page(path / "below.html", title="", intro=[])


def test_a_figure_stays_on_one_line_with_its_unit(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    rows = (("a name", "10.6 MB", "-4.1 ± 0.2", "two words", "7 words and more of them"),)
    write_page(path, title="T", intro=[], tables=[Table(title="", header=("",) * 5, rows=rows)])
    page = path.read_text(encoding="utf-8")
    assert "<td class=figure>10.6 MB</td><td class=figure>-4.1 ± 0.2</td>" in page
    assert "<td>a name</td>" in page and "<td>two words</td><td>7 words and more" in page


def test_points_that_are_not_finite_leave_a_gap() -> None:
    nan, inf = math.nan, math.inf
    figure = line_plot(_plot(("a", [0, 1, 2, 3, 4, 5], [1, 2, nan, 3, 4, inf])))
    assert figure.count("<polyline") == 2
    assert not re.search(r"\b(nan|inf)\b", figure)


def test_single_point_is_a_dot() -> None:
    assert line_plot(_plot(("a", [3], [7]))).count("<circle") == 1


@pytest.mark.parametrize("series", [(), (("a", [], []),), (("a", [1, 2], [math.nan, math.nan]),)])
def test_plot_without_data_says_so(
    series: tuple[tuple[str, list[float], list[float]], ...],
) -> None:
    figure = line_plot(_plot(*series))
    assert "no data" in figure
    assert "<polyline" not in figure


def test_series_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        line_plot(_plot(("a", [0, 1], [1])))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_every_point_lies_inside_the_drawing(ys: list[float]) -> None:
    figure = line_plot(_plot(("a", [float(i) for i in range(len(ys))], ys)))
    drawing = ElementTree.fromstring(re.search(r"<svg.*</svg>", figure)[0])  # type: ignore[index]
    width, height = (float(side) for side in drawing.attrib["viewBox"].split()[2:])
    places = [
        [float(number) for number in pair.split(",")]
        for line in drawing.iter("polyline")
        for pair in line.attrib["points"].split()
    ]
    places += [[float(dot.attrib["cx"]), float(dot.attrib["cy"])] for dot in drawing.iter("circle")]
    assert len(places) == sum(abs(y) < 1e200 for y in ys)
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_enclose_the_values_and_are_few(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    slack = 1e-6 * max(abs(low), span, 1)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 3 <= len(ticks) <= 8


def test_ticks_are_round() -> None:
    assert nice_ticks(0, 300) == (0, 100, 200, 300)
    assert nice_ticks(0.93, 2.4) == (0.5, 1.0, 1.5, 2.0, 2.5)


@given(st.floats(1e-12, 1e12), st.floats(1, 1e9))
def test_log_ticks_enclose_the_values_and_are_few(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert ticks[0] <= low * (1 + 1e-6)
    assert ticks[-1] >= low * factor * (1 - 1e-6)
    assert 2 <= len(ticks) <= 11
    assert list(ticks) == sorted(set(ticks))


def test_marks_are_dots_with_names_on_log_axes() -> None:
    plot = Plot(
        title="front",
        x_label="bytes",
        y_label="KL",
        series=(("front", [10, 100, 1000], [1, 0.1, 0.01]), ("others", [10, 0], [0.1, 1])),
        log_x=True,
        log_y=True,
        marks={"front": "line", "others": "alone"},
        names={"front": ["a", HOSTILE, "c"], "others": ["d", "e"]},
    )
    figure = line_plot(plot)
    drawing = ElementTree.fromstring(re.search(r"<svg.*</svg>", figure)[0])  # type: ignore[index]
    dots = list(drawing.iter("circle"))
    assert [dot.attrib["class"] for dot in dots] == ["s0", "s0", "s0", "s1"], "0 has no place"
    assert len(list(drawing.iter("polyline"))) == 1
    x = [float(dot.attrib["cx"]) for dot in dots[:3]]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    names = [text.text for text in drawing.iter("text") if text.get("class") == "name"]
    assert names == ["a", HOSTILE, "c"]
    assert "<b>" not in figure, "a last value means nothing here"

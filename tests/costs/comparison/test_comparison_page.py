"""The plots and the page of made-up measures: what comes first, and what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from comparing import PRICED, SHORT, config, measures, step, taken, value

from cachekd.costs.comparison import page
from cachekd.costs.comparison.ledger import report_of
from cachekd.costs.comparison.plots import plots_of


def test_the_plots_cross_where_the_report_says() -> None:
    report = report_of(measures(config=config(**PRICED)))
    titles = [plot.title for plot in plots_of(report)]
    assert [title.split(" ")[0] for title in titles] == ["Time", "Money", "Break-even", "A", "Peak"]
    lines = {name: (xs, ys) for name, xs, ys in plots_of(report)[0].series}
    ((x,), (y,)) = next(line for name, line in lines.items() if name.startswith("break-even"))
    assert x == pytest.approx(value(report, "time", "break_even"))
    assert 60 * y == pytest.approx(15 + 1 + 10 * x), "the axis is in minutes"


def test_a_plot_without_a_crossing_says_why() -> None:
    sides = measures().sides
    never = {**sides, "live": taken(0.09, teacher=0.01)}
    always = {**sides, "live": taken(0.3, teacher=0.15, load=90.0)}
    late = {**sides, "live": taken(0.1001, teacher=0.01, load=1.0)}
    for part, changes in (
        ("live is always cheaper", {"sides": never}),
        ("a cache is always cheaper", {"sides": always}),
        ("they cross far to the right, at 1.3e+03", {"sides": late}),
        ("a teacher that changes", {"config": config(teacher_changes=1.0)}),
    ):
        plot = plots_of(report_of(measures(**changes)))[0]
        assert part in plot.title and not plot.marks, part
    crossed = plots_of(report_of(measures()))[0]
    assert crossed.marks == {"break-even: 0.5": "alone"} and crossed.title.endswith("ed)")


def test_steps_are_drawn_with_their_quartiles_and_no_teacher_where_there_is_none() -> None:
    sides = measures().sides
    steps = tuple(step(seconds) for seconds in (0.1, 0.1, 0.1, 0.2, 0.9))
    made = {**sides, "cached": dataclasses.replace(sides["cached"], steps=steps)}
    bars = next(plot for plot in plots_of(report_of(measures(sides=made))) if "step" in plot.title)
    (_, whole, spread), (_, teacher, _), _ = bars.series
    assert (whole[0], spread[0]) == (pytest.approx(100), pytest.approx((100, 200)))
    assert teacher == [None, pytest.approx(150), None]


def test_the_first_thing_on_the_page_is_the_verdict_then_break_even_then_the_plots(
    tmp_path: Path,
) -> None:
    made = config(out=str(tmp_path / "b.html"))
    page.write_outputs(made, report_of(measures(config=made)))
    text = (tmp_path / "b.html").read_text()
    order = (
        "<h1>Cache.</h1>",
        "In time the cached way takes",
        "break-even, epochs",
        "<svg",
        "<h2>",
    )
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "1 student<" not in text and "1 students" not in text and "x 1 student" in text


def test_the_page_tells_verdict_origins_and_gaps(tmp_path: Path) -> None:
    made = config(**PRICED, out=str(tmp_path / "deep" / "b.html"), plots_dir=str(tmp_path / "png"))
    report = report_of(measures(config=made, sides={**measures().sides, "live": SHORT}))
    page.write_outputs(made, report)
    text = (tmp_path / "deep" / "b.html").read_text()
    for part in (
        "Cache.",
        "does not fit beside the student",
        "not measured",
        "Origins",
        "import_seconds + prepare_seconds + load_seconds + tokens / tokens_per_second",
        "A live run reads and tokenises the data",
        "evaluations and checkpoints before that take as long either way",
        "Workers that load data, where --dataloader-num-workers asks for them, go on",
        "a small sample overestimates them",
    ):
        assert part in text
    assert text.count("<svg") == len(list((tmp_path / "png").glob("*.png"))) == 2
    assert "http" not in text.replace("http-equiv", "")

"""What is noisy: steps that differ, too few of them, and memory of processes that did nothing."""

from __future__ import annotations

import dataclasses

from comparing import measures, step

from cachekd.costs.comparison import page
from cachekd.costs.comparison.ledger import report_of
from cachekd.costs.comparison.plots import plots_of


def test_steps_that_differ_are_marked_as_noisy_in_all_that_follows_from_them() -> None:
    assert not any(one.get("noisy") for _, one in page.quantities(report_of(measures())))
    assert page.noise(report_of(measures())) == []
    sides = measures().sides
    steps = (step(0.3), step(0.2), step(0.4), step(0.3, tokens=50))
    made = dataclasses.replace(sides["live"], steps=steps)
    report = report_of(measures(sides={**sides, "live": made}))
    noisy = {name for name, one in page.quantities(report) if one.get("noisy")}
    assert {"steps.live.epoch_seconds", "time.break_even", "time.live_total"} <= noisy
    assert "steps.cached.epoch_seconds" not in noisy and "capture.seconds" not in noisy
    assert "noisy" in report["verdict"]["reasons"][-1]
    assert "† marks what is noisy" in page.noise(report)[0]
    (row,) = [row for row in page.step_table(report).rows if row[0] == "step"]
    assert [cell.endswith("†") for cell in row] == [False, False, True, False]
    groups = next(plot.groups for plot in plots_of(report) if "step" in plot.title)
    assert groups == ("cached", "live†", "sft")


def test_few_steps_say_nothing_of_their_spread() -> None:
    sides = measures().sides
    made = {**sides, "sft": dataclasses.replace(sides["sft"], steps=sides["sft"].steps[:3])}
    own = report_of(measures(sides=made))["steps"]["sft"]
    assert own["relative_error"]["kind"] == "gap" and own["step_seconds"]["noisy"]


def test_memory_is_noisy_where_bare_processes_differ_as_much_as_what_is_measured() -> None:
    sides = measures().sides
    for bare, noisy in ((4.1e8, False), (5.0e8, True)):
        started = dataclasses.replace(sides["live"].started, peak_bytes=int(bare))
        made = {**sides, "live": dataclasses.replace(sides["live"], started=started)}
        found = report_of(measures(sides=made))["steps"]["sft"]["peak_memory_bytes"]
        assert found.get("noisy", False) is noisy

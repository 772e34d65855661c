"""The report of made-up measures, worked by hand; tags, gaps, and what the page says of them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from comparing import SHORT, batches, config, measures, step, taken

from cachekd.costs.comparison import page
from cachekd.costs.comparison.jobs import Failure
from cachekd.costs.comparison.ledger import report_of
from cachekd.costs.comparison.parameters import Parameters
from cachekd.costs.comparison.plots import plots_of

KINDS = {"measured", "extrapolated", "never", "gap"}
PRICED = {"price_per_hour": 3600.0, "price_per_gb_month": 1e9, "months": 2e-6}


def value(report: dict[str, Any], *names: str) -> Any:
    for name in names:
        report = report[name]
    return report["value"]


def test_every_quantity_is_tagged_and_none_is_made_up() -> None:
    found = list(page.quantities(report_of(measures())))
    assert len(found) > 40
    for name, one in found:
        assert one["kind"] in KINDS, name
        assert (one["value"] is None) == (one["kind"] in ("gap", "never")), name
        if one["kind"] in ("gap", "extrapolated", "never"):
            assert one["how"], name


def test_time_by_hand() -> None:
    report = report_of(measures(config=config(epochs=2.0, students=3)))
    assert value(report, "capture", "seconds") == pytest.approx(2 + 3 + 10)
    assert value(report, "capture", "bytes") == pytest.approx(50 * 10_000)
    assert value(report, "steps", "cached", "epoch_seconds") == pytest.approx(10)
    assert value(report, "steps", "live", "epoch_seconds") == pytest.approx(30)
    assert value(report, "steps", "live", "teacher_epoch_seconds") == pytest.approx(15)
    assert value(report, "steps", "cached", "data_wait_share") == pytest.approx(0.25)
    assert value(report, "steps", "cached", "cpu_seconds_per_token") == pytest.approx(0.2 / 100)
    # Processor: 4 s, of which 2 s are set up and learned in the second batch; and 0.25 s besides.
    assert value(report, "capture", "cpu_seconds_per_token") == pytest.approx(2 / 1000)
    assert value(report, "capture", "cpu_seconds") == pytest.approx(0.25 + 2 + 1.5 + 20)
    assert value(report, "steps", "cached", "fixed_cpu_seconds") == pytest.approx(0.875)
    assert value(report, "steps", "cached", "epoch_cpu_seconds") == pytest.approx(20)
    assert report["data"]["steps_per_epoch"] == 100
    assert value(report, "time", "cached_total") == pytest.approx(15 + 3 * 1 + 6 * 10)
    assert value(report, "time", "live_total") == pytest.approx(3 * (2 + 4) + 6 * 30)
    assert value(report, "time", "break_even") == pytest.approx((15 - 3 * (2 + 4 - 1)) / 20)
    assert value(report, "models", "active_ratio") == 8
    assert report["verdict"]["advice"] == "cache"


def test_what_a_run_takes_beside_its_epochs_by_hand() -> None:
    """Libraries 7 s, load 1 s, three first steps 0.9 s over usual ones, saving 0.5 s, end 2 s."""
    sides = measures().sides
    own = sides["cached"]
    warm = dataclasses.replace(
        own,
        import_seconds=7.0,
        exit_seconds=2.0,
        warmup=(step(1.1), step(0.05), step(0.05)),
        ended=dataclasses.replace(own.ended, save_seconds=0.5),
    )
    report = report_of(measures(sides={**sides, "cached": warm}))
    assert value(report, "steps", "cached", "warmup_seconds") == pytest.approx(0.9)
    assert value(report, "steps", "cached", "fixed_seconds") == pytest.approx(7 + 1 + 0.9 + 0.5 + 2)
    assert value(report, "time", "cached_total") == pytest.approx(15 + 11.4 + 3 * 10)
    assert report["time"]["amounts"]["cached_fixed"] == pytest.approx(11.4)


def test_an_epoch_is_all_that_its_steps_take_and_begins_once() -> None:
    """Steps of 0.1 s, one disturbed by 0.4 s; each epoch's first 2 s over: a loader that starts."""
    sides = measures().sides
    steps = (*(step(0.1),) * 7, step(0.5), step(2.15, opens=True))
    made = dataclasses.replace(sides["cached"], steps=steps)
    report = report_of(measures(sides={**sides, "cached": made}))
    own = report["steps"]["cached"]
    assert own["step_seconds"]["value"] == 0.1, "the median"
    assert own["seconds_per_token"]["value"] == pytest.approx(0.15 / 100), "the mean"
    assert own["epoch_start_seconds"]["value"] == pytest.approx(2.0)
    assert own["epoch_seconds"]["value"] == pytest.approx(15 + 2)
    usual = report_of(measures())["steps"]["cached"]["epoch_start_seconds"]
    assert usual["kind"] == "gap" and "none began" in usual["how"]


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


def test_samples_cut_to_the_students_context_train_fewer_tokens() -> None:
    sides = measures().sides
    ready = dataclasses.replace(sides["cached"].ready, tokens=500)
    cut = dataclasses.replace(sides["cached"], ready=ready)
    report = report_of(measures(sides={**sides, "cached": cut}))
    assert value(report, "steps", "cached", "epoch_seconds") == pytest.approx(5)
    assert value(report, "capture", "seconds") == pytest.approx(15), "the capture is of all"


def test_money_by_hand() -> None:
    """A second costs 1 with the teacher, 0.5 without; storage 1e9 a GB and month: 0.5 MB cost 1."""
    priced = config(**PRICED, price_per_hour_student=1800.0, epochs=2.0)
    report = report_of(measures(config=priced))
    assert value(report, "money", "storage") == pytest.approx(5e5 / 1e9 * 1e9 * 2e-6)
    assert value(report, "money", "cached_total") == pytest.approx(15 + 1 + 0.5 * (1 + 20))
    assert value(report, "money", "live_total") == pytest.approx(2 + 4 + 60)
    assert value(report, "money", "break_even") == pytest.approx((16 - (6 - 0.5)) / (30 - 5))
    same = report_of(measures(config=config(**PRICED, epochs=2.0)))
    assert value(same, "money", "cached_total") == pytest.approx(15 + 1 + (1 + 20))


@pytest.mark.parametrize("missing", ["price_per_hour", "price_per_gb_month"])
def test_missing_prices_leave_money_a_gap_and_time_told(missing: str) -> None:
    report = report_of(measures(config=config(**{**PRICED, missing: None})))
    gap = report["money"]["cached_total"]
    assert gap["value"] is None and f"--{missing.replace('_', '-')}" in gap["how"]
    assert "in time" in report["verdict"]["reasons"][0]
    assert not any("Money" in plot.title for plot in plots_of(report))


def test_a_price_of_nothing_is_a_price() -> None:
    report = report_of(measures(config=config(price_per_hour=0.0, price_per_gb_month=0.0)))
    assert value(report, "money", "live_total") == 0
    assert report["money"]["break_even"]["kind"] == "never"


def test_energy_is_a_gap_without_a_counter_and_counted_with_one() -> None:
    without = report_of(measures())["energy"]["break_even"]
    assert without == {"value": None, "kind": "gap", "how": "not measured: no counter"}
    made = measures()
    capture = dataclasses.replace(made.captured.capture, joules=540.0, first_joules=140.0)
    captured = dataclasses.replace(made.captured, capture=capture)
    sides = {
        "cached": taken(0.1, joules=2.0),
        "live": taken(0.3, joules=6.0),
        "sft": taken(0.05, joules=1.0),
    }
    report = report_of(measures(captured=captured, sides=sides))
    assert value(report, "steps", "live", "joules_per_step") == 6
    # 400 J for the later 800 tokens: of the first 140, 100 are of 200 tokens, 40 of loading.
    assert value(report, "capture", "load_joules") == pytest.approx(40)
    assert value(report, "capture", "joules_per_token") == pytest.approx(0.5)
    # 0.02 and 0.06 J a token trained.
    assert value(report, "energy", "cached_total") == pytest.approx(40 + 5000 + 3 * 200)
    assert value(report, "energy", "break_even") == pytest.approx(5040 / (600 - 200))


def test_what_is_set_up_and_learned_does_not_grow_with_the_data() -> None:
    """A second of it beside 1000 tokens/s: the rate is the same, however small the sample."""
    made = measures()
    for number in (4, 5, 50):
        capture = dataclasses.replace(
            made.captured.capture,
            batches=batches(0.18, 1.18, *(0.18,) * (number - 2)),
            tokens=200 * number,
            score_seconds=1.0 + 0.2 * number,
        )
        captured = dataclasses.replace(made.captured, capture=capture)
        found = report_of(measures(captured=captured))["capture"]
        assert found["tokens_per_second"]["value"] == pytest.approx(1000)
        assert found["load_seconds"]["value"] == pytest.approx(2 + 1)


def test_a_sample_of_few_batches_is_taken_whole_and_leaves_energy_a_gap() -> None:
    made = measures()
    capture = dataclasses.replace(
        made.captured.capture, batches=batches(1.0, 1.0), joules=500.0, first_joules=140.0
    )
    captured = dataclasses.replace(made.captured, capture=capture)
    found = report_of(measures(captured=captured))["capture"]
    assert found["tokens_per_second"]["value"] == pytest.approx(1000 / 2)
    assert found["load_seconds"]["value"] == 2
    assert "take more --samples" in found["load_joules"]["how"]
    assert found["joules_per_token"]["kind"] == "gap"


def test_a_teacher_that_does_not_fit_leaves_the_rest_standing() -> None:
    sides = {**measures().sides, "live": SHORT}
    report = report_of(measures(sides=sides))
    gap = report["steps"]["live"]["step_seconds"]
    assert gap["how"] == (
        "not measured: the teacher does not fit beside the student: CUDA out of memory. Tried 2 GiB"
    )
    assert value(report, "steps", "cached", "epoch_seconds") == pytest.approx(10)
    assert value(report, "capture", "seconds") == pytest.approx(15)
    assert report["time"]["break_even"]["value"] is None
    assert report["sensitivity"]["gap"] == gap["how"]
    assert report["verdict"]["advice"] == "cache"
    assert gap["how"] in page.gaps(report)


def test_a_student_that_does_not_fit_either_is_no_reason_to_cache() -> None:
    report = report_of(measures(sides={**measures().sides, "live": SHORT, "cached": SHORT}))
    assert report["verdict"]["advice"] == "cannot tell"
    assert "out of memory" in report["verdict"]["reasons"][0]


def test_a_side_that_was_killed_is_a_gap_and_no_verdict() -> None:
    killed = Failure(kind="killed", text="its process was ended by SIGKILL")
    report = report_of(measures(sides={**measures().sides, "cached": killed}))
    assert "SIGKILL" in report["steps"]["cached"]["step_seconds"]["how"]
    assert report["verdict"]["advice"] == "cannot tell"
    assert "SIGKILL" in report["verdict"]["reasons"][0]


def test_a_capture_that_failed_leaves_every_side_a_gap() -> None:
    report = report_of(measures(captured=SHORT, sides={}))
    assert "out of memory" in report["capture"]["seconds"]["how"]
    assert "capture failed" in report["steps"]["sft"]["step_seconds"]["how"]
    assert report["verdict"]["advice"] == "cannot tell" and report["device"] is None
    assert len(plots_of(report)) == 2 and "No verdict" in page.headline(report)


def test_experts_that_are_not_known_leave_the_sensitivity_a_gap() -> None:
    odd = Parameters(total=9, active=None, experts=8, chosen=None, why="it does not say")
    report = report_of(measures(teacher=odd))
    assert "it does not say" in report["sensitivity"]["gap"]
    assert value(report, "time", "break_even") is not None


def test_sensitivity_meets_the_measured_break_even() -> None:
    made = measures()
    report = report_of(made)
    rows = {row["ratio"]: row["break_even"] for row in report["sensitivity"]["rows"]}
    assert rows[8.0] == pytest.approx(value(report, "time", "break_even"))
    (table,) = page.sensitivity_tables(report)
    assert ("8", f"{rows[8.0]:.3g}") in table.rows and len(table.rows) == len(rows)
    # Capture: load 3 s and forward 10 s eight times, 2 s of reading; a live epoch 15 + 8 x 15 s.
    assert rows[64.0] == pytest.approx((24 + 2 + 80 - 2 - 8 * 3) / (15 + 120 - 10))


def test_never_is_said_so() -> None:
    sides = {**measures().sides, "live": taken(0.09, teacher=0.01)}
    report = report_of(measures(sides=sides))
    assert report["time"]["break_even"]["kind"] == "never"
    assert report["verdict"]["advice"] == "do not cache"
    table = page.account_table(report)
    assert ("break-even, epochs x students", "never", "not measured", "not measured") in table.rows


def test_loads_count_where_epochs_are_equal() -> None:
    """Four runs that each start 60 s dearer pay for a capture of 15 s, and up to what epochs."""
    sides = measures().sides
    for live, pays, cell in ((0.1, "from", "0*"), (0.099, "up to", "up to 2.25e+03*")):
        made = {**sides, "cached": taken(0.1, load=2.0), "live": taken(live, load=60.0)}
        report = report_of(measures(config=config(epochs=1.0, students=4), sides=made))
        assert report["time"]["pays"] == pays and report["verdict"]["advice"] == "cache"
        assert "never" not in report["verdict"]["reasons"][0]
        table = page.account_table(report)
        assert next(row for row in table.rows if "epochs x" in row[0])[1] == cell
        gap = plots_of(report)[-3]
        assert (gap.title[:10], math.isnan(gap.series[1][2][0])) == ("Break-even", pays != "from")


def test_a_teacher_that_changes_is_captured_again_in_all_that_is_told() -> None:
    changing = config(epochs=10.0, teacher_changes=1.0)
    report = report_of(measures(config=changing))
    of_live = 2 + 4 + 10 * 30
    assert value(report, "time", "cached_total") == pytest.approx(10 * 15 + 1 + 10 * 10)
    assert value(report, "time", "live_total") == pytest.approx(of_live)
    assert value(report, "time", "break_even_students") == pytest.approx(150 / (of_live - 101))
    assert value(report, "time", "break_even") == pytest.approx((15 - 5) / 20)
    assert "a teacher that stays" in report["time"]["break_even"]["how"]
    assert "with a teacher that stays both cost" in report["verdict"]["reasons"][0]
    table = page.account_table(report)
    assert any("of a teacher that stays" in row[0] for row in table.rows)


def test_students_that_never_pay_have_their_own_reason() -> None:
    """An epoch is cheaper from the cache, a run is not: its start takes more."""
    sides = {**measures().sides, "cached": taken(0.1, load=90.0)}
    account = report_of(measures(config=config(epochs=1.0), sides=sides))["time"]
    assert account["break_even"]["kind"] == "extrapolated"
    assert account["break_even_students"]["kind"] == "never"
    assert "its start included" in account["break_even_students"]["how"]


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

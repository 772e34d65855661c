"""The report of made-up measures, worked by hand; tags, gaps, and what the page says of them."""

from __future__ import annotations

import dataclasses
import math

import pytest
from comparing import PRICED, SHORT, batches, config, measures, step, taken, value

from cachekd.costs.comparison import page
from cachekd.costs.comparison.jobs import Failure
from cachekd.costs.comparison.ledger import report_of
from cachekd.costs.comparison.parameters import Parameters
from cachekd.costs.comparison.plots import plots_of

KINDS = {"measured", "extrapolated", "never", "gap"}


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
        warmup=(step(1.1), step(0.05), step(0.05)),
        ended=dataclasses.replace(own.ended, save_seconds=0.5),
    )
    made = {**sides, "cached": warm}
    every = {"import_seconds": 7.0, "exit_seconds": 2.0}
    made = {name: dataclasses.replace(one, **every) for name, one in made.items()}
    captured = dataclasses.replace(measures().captured, import_seconds=6.9, exit_seconds=2.0)
    report = report_of(measures(sides=made, captured=captured))
    assert value(report, "steps", "cached", "warmup_seconds") == pytest.approx(0.9)
    assert value(report, "steps", "cached", "fixed_seconds") == pytest.approx(7 + 1 + 0.9 + 0.5 + 2)
    assert value(report, "time", "cached_total") == pytest.approx(15 + 7 + 2 + 11.4 + 3 * 10)
    assert not report["time"]["cached_total"].get("noisy")
    slow = dataclasses.replace(made["sft"], import_seconds=8.5)
    noisy = report_of(measures(sides={**made, "sft": slow}, captured=captured))
    assert value(noisy, "steps", "sft", "import_seconds") == 7, "what all do alike is one figure"
    assert noisy["time"]["cached_total"]["noisy"] and noisy["capture"]["seconds"]["noisy"]
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

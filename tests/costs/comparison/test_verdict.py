"""The rules of the verdict, at their borders."""

from __future__ import annotations

from typing import Any

import pytest

from cachekd.costs.comparison.model import Meeting
from cachekd.costs.comparison.verdict import CLOSE, SMALL_ACTIVE, Facts, Totals, Verdict, judge


def totals(
    cached: float,
    live: float,
    meet: float | None = 2.0,
    storage: float = 0.0,
    *,
    before: bool = False,
) -> Totals:
    meeting = Meeting(at=meet, before=before)
    return Totals(cached=cached, live=live, break_even=meeting, storage=storage)


def judged(**facts: Any) -> Verdict:
    return judge(Facts(**{"epochs": 3, "students": 1, **facts}))


def said(verdict: Verdict, part: str) -> bool:
    return any(part in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("cached", "advice"),
    [
        (100 * (1 - CLOSE) - 1e-6, "cache"),
        (100 * (1 - CLOSE), "either"),
        (100, "either"),
        (100 * (1 + CLOSE), "either"),
        (100 * (1 + CLOSE) + 1e-6, "do not cache"),
    ],
)
def test_totals_within_what_is_measured_are_equal(cached: float, advice: str) -> None:
    assert judged(time=totals(cached, 100)).advice == advice


def test_never_is_do_not_cache_even_where_totals_are_equal() -> None:
    verdict = judged(time=totals(100, 100, None))
    assert verdict.advice == "do not cache" and said(verdict, "never pays")


@pytest.mark.parametrize(
    ("cached", "advice"), [(80, "cache"), (98, "either"), (110, "do not cache")]
)
def test_a_cache_that_is_cheaper_up_to_some_epochs_is_judged_by_its_totals(
    cached: float, advice: str
) -> None:
    verdict = judged(time=totals(cached, 100, 7.0, before=True))
    assert verdict.advice == advice and not said(verdict, "never")
    assert said(verdict, "a cache is cheaper up to 7 epochs x students")


def test_a_cache_that_is_cheaper_from_the_start_is_said_to_be() -> None:
    assert said(judged(time=totals(50, 100, 0.0)), "; a cache is cheaper from the start")


def test_a_break_even_beside_several_captures_is_said_to_be_of_a_teacher_that_stays() -> None:
    assert said(judged(time=totals(50, 100)), "; both cost the same at 2 epochs")
    verdict = judged(every=1, time=totals(110, 100, 1.11))
    assert said(verdict, "with a teacher that stays both cost the same at 1.11 epochs x students")


def test_money_decides_where_it_is_known_and_time_is_told() -> None:
    verdict = judged(time=totals(50, 100), money=totals(9, 5, storage=1.0))
    assert verdict.advice == "do not cache"
    assert said(verdict, "by time alone the advice would be: cache")
    assert said(verdict, "in money") and not said(verdict, "storage is dearer")
    agreed = judged(time=totals(50, 100), money=totals(1, 5))
    assert agreed.advice == "cache" and not said(agreed, "by time alone")


@pytest.mark.parametrize(
    ("storage", "dearer"),
    # Compute alone: 5 live, 2 cached; so 3 are saved before storage.
    [(2.999, False), (3.0, True), (4.0, True), (0.0, False)],
)
def test_storage_dearer_than_compute(storage: float, dearer: bool) -> None:
    verdict = judged(time=totals(50, 100), money=totals(2 + storage, 5, storage=storage))
    assert said(verdict, "storage is dearer than compute") is dearer
    assert verdict.advice == (
        "cache" if storage == 0 else "do not cache" if storage == 4 else "either"
    )


def test_storage_is_no_reason_where_compute_saves_nothing() -> None:
    verdict = judged(time=totals(100, 50), money=totals(6, 5, storage=0.1))
    assert verdict.advice == "do not cache" and not said(verdict, "storage")


@pytest.mark.parametrize(
    ("epochs", "students", "once"), [(1, 1, True), (0.5, 2, True), (1.01, 1, False), (1, 2, False)]
)
def test_one_epoch_of_one_student(epochs: float, students: int, once: bool) -> None:
    verdict = judged(epochs=epochs, students=students, time=totals(200, 100))
    assert verdict.advice == "do not cache"
    assert said(verdict, "one epoch of one student") is once


@pytest.mark.parametrize(("every", "moves"), [(None, False), (3, False), (2.99, True), (1, True)])
def test_a_moving_teacher(every: float | None, moves: bool) -> None:
    verdict = judged(every=every, time=totals(200, 100))
    assert said(verdict, "the teacher moves") is moves
    assert said(verdict, "with a teacher that stays it would pay") is moves


def test_a_moving_teacher_is_no_excuse_for_a_cache_that_would_not_pay() -> None:
    for unworthy in (totals(200, 100, 3.0), totals(200, 100, 2.0, before=True)):
        verdict = judged(every=1, time=unworthy)
        assert said(verdict, "the teacher moves") and not said(verdict, "it would pay")
    verdict = judged(every=1, time=totals(200, 100, 4.0, before=True))
    assert said(verdict, "it would pay")


@pytest.mark.parametrize(
    ("experts", "ratio", "small"),
    [
        (True, SMALL_ACTIVE, True),
        (True, SMALL_ACTIVE + 0.01, False),
        (False, 1.0, False),
        (True, None, False),
    ],
)
def test_a_mixture_of_few_active_parameters(
    experts: bool, ratio: float | None, small: bool
) -> None:
    verdict = judged(experts=experts, active_ratio=ratio, time=totals(200, 100))
    assert said(verdict, "mixture of experts") is small
    cached = judged(experts=experts, active_ratio=ratio, time=totals(50, 100))
    assert cached.advice == "cache" and not said(cached, "mixture of experts")


def test_a_teacher_that_does_not_fit_leaves_the_cache() -> None:
    verdict = judged(does_not_fit="out of memory", time=None, missing="not measured: x")
    assert verdict.advice == "cache" and said(verdict, "does not fit beside the student")


def test_without_times_it_cannot_be_told() -> None:
    verdict = judged(missing="not measured: its process was ended by SIGKILL")
    assert verdict == Verdict(
        advice="cannot tell", reasons=("not measured: its process was ended by SIGKILL",)
    )

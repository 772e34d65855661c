"""Whether to cache, in plain words: a pure function of what was measured and what is planned.

In: `Facts`. Out: `Verdict`: cache, do not cache, either, or cannot tell, with the reasons. Money
decides where it is known, time where it is not; what cannot be had live is no choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachekd.costs.comparison.model import Meeting, captures
from cachekd.report.text import counted

CLOSE = 0.05
"""Totals nearer than this share of the live one are called equal: steps are not measured better."""

SMALL_ACTIVE = 4.0
"""A mixture of experts is called small where it has at most so many times the student's active
parameters: with a backward pass of two forwards the student then costs about as much a step."""

NEVER = (
    "an epoch from the cache costs no less than a live one, and the capture no less than what "
    "starting live runs costs more"
)

CACHE, DO_NOT, EITHER, UNKNOWN = "cache", "do not cache", "either", "cannot tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Totals of what is planned, in seconds or in money.

    Attributes:
        cached, live: of each way.
        storage: of the cached total what is spent on storage.
        break_even: epochs x students, of a teacher that stays.
        noisy: whether they would come out otherwise if they were measured again.
    """

    cached: float
    live: float
    break_even: Meeting
    storage: float = 0.0
    noisy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rules look at.

    Attributes:
        epochs, students: what is planned.
        every: epochs after which the teacher changes, or None.
        time, money: totals, or None where they are not known.
        does_not_fit: why the teacher does not fit beside the student, or None.
        missing: why time is not known, or "".
        experts: whether the teacher is a mixture of experts.
        active_ratio: active parameters of the teacher over those of the student, or None.
    """

    epochs: float
    students: int
    every: float | None = None
    time: Totals | None = None
    money: Totals | None = None
    does_not_fit: str | None = None
    missing: str = ""
    experts: bool = False
    active_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do and why; the first reason is the one that decided."""

    advice: str
    reasons: tuple[str, ...]


def judge(facts: Facts) -> Verdict:
    """The verdict on a plan."""
    if facts.does_not_fit is not None:
        why = f"the teacher does not fit beside the student here: {facts.does_not_fit}"
        return Verdict(advice=CACHE, reasons=(why, "a capture needs the teacher alone, and ran"))
    if facts.time is None:
        return Verdict(advice=UNKNOWN, reasons=(facts.missing,))
    deciding = facts.time if facts.money is None else facts.money
    what = "time" if facts.money is None else "money"
    advice = _advice(deciding)
    reasons = [_said(deciding, facts, what)]
    if facts.money is not None:
        reasons += _of_money(facts, advice)
    if advice == DO_NOT:
        reasons += _of_plan(facts, deciding)
    if deciding.noisy:
        reasons.append(
            "the times that this follows from are noisy: before you rely on it, measure again with "
            "more --steps and --samples, or on a machine with less else to do"
        )
    return Verdict(advice=advice, reasons=tuple(reasons))


def _advice(totals: Totals) -> str:
    if totals.break_even.at is None:
        return DO_NOT
    if abs(totals.live - totals.cached) <= CLOSE * totals.live:
        return EITHER
    return CACHE if totals.cached < totals.live else DO_NOT


def plan_of(epochs: float, students: int) -> str:
    """What is planned, in words."""
    return f"{counted(epochs, 'epoch')} x {counted(students, 'student')}"


def every_epochs(count: float) -> str:
    """What stands after "every": epoch, 2 epochs."""
    return "epoch" if count == 1 else counted(count, "epoch")


def _said(totals: Totals, facts: Facts, what: str) -> str:
    """The comparison in words."""
    planned = plan_of(facts.epochs, facts.students)
    meet = totals.break_even
    if meet.at is None:
        return f"in {what} a cache never pays: {NEVER}"
    ratio = totals.cached / totals.live if totals.live else float("inf")
    stays = "" if facts.every is None else "with a teacher that stays "
    return (
        f"in {what} the cached way takes {ratio:.2f} of the live one for {planned}; {stays}"
        f"{_where(meet)}"
    )


def _where(meet: Meeting) -> str:
    if not meet.at:
        return "a cache is cheaper from the start"
    before, after = "a cache is cheaper up to", "both cost the same at"
    return f"{before if meet.before else after} {meet.at:.3g} epochs x students"


def _of_money(facts: Facts, advice: str) -> list[str]:
    """Where time says something else than money, and what storage has to do with it."""
    assert facts.money is not None and facts.time is not None, "both are known"
    reasons, by_time = [], _advice(facts.time)
    if by_time != advice:
        reasons.append(f"by time alone the advice would be: {by_time}")
    saved = facts.money.live - (facts.money.cached - facts.money.storage)
    if 0 < saved <= facts.money.storage:
        reasons.append(
            f"storage is dearer than compute: it costs {facts.money.storage:.4g}, and all that the "
            f"cache saves is {saved:.4g}"
        )
    return reasons


def _of_plan(facts: Facts, totals: Totals) -> list[str]:
    """What makes a cache not worth it: one pass, a moving teacher, few active parameters."""
    reasons = []
    if facts.epochs * facts.students <= 1:
        reasons.append(
            "one epoch of one student reads each distribution once, so that there is nothing to "
            "share: the capture is a pass that live training does anyway"
        )
    times = captures(facts.epochs, facts.every)
    if facts.every is not None and times > 1:
        worth = totals.break_even.cheaper(facts.epochs * facts.students)
        still = "; with a teacher that stays it would pay" if worth else ""
        reasons.append(
            f"the teacher moves: it changes every {every_epochs(facts.every)}, so that {times} "
            f"captures are needed{still}"
        )
    small = facts.active_ratio is not None and facts.active_ratio <= SMALL_ACTIVE
    if facts.experts and small:
        reasons.append(
            "the teacher is a mixture of experts with few active parameters "
            f"({facts.active_ratio:.2g} times the student's): the forward that a cache saves is "
            "cheap"
        )
    return reasons

"""The report of a comparison, of plain JSON types.

In: `Measures`. Out: a dict whose every figure is tagged measured, extrapolated (with its formula),
never or gap (with its reason). See `accounts` for totals and `verdict` for the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison import sensitivity
from cachekd.costs.comparison.accounts import Account, accounts_of, told, totals_of
from cachekd.costs.comparison.capturing import capture_quantities
from cachekd.costs.comparison.jobs import SIDES, Failure
from cachekd.costs.comparison.measures import Measures, active_ratio, steps_per_epoch, why
from cachekd.costs.comparison.quantities import Quantities, Quantity
from cachekd.costs.comparison.rounds import Captured, Taken
from cachekd.costs.comparison.stepping import side_quantities
from cachekd.costs.comparison.verdict import Facts, judge


def report_of(measures: Measures) -> dict[str, Any]:
    """The whole report."""
    capture = capture_quantities(measures)
    steps = {name: side_quantities(measures, name) for name in SIDES}
    accounts = accounts_of(measures.config, measures.documents.tokens, capture, steps)
    ratio = active_ratio(measures)
    sides = [measures.side(name) for name in SIDES]
    return {
        "teacher": measures.config.teacher,
        "student": measures.config.student,
        "objective": measures.config.objective,
        "plan": _plan(measures.config),
        "device": measures.captured.capture.device
        if isinstance(measures.captured, Captured)
        else None,
        "alternated": all(one.alternated for one in sides if isinstance(one, Taken)),
        "data": {**measures.documents.to_json(), "steps_per_epoch": steps_per_epoch(measures)},
        "models": {
            "teacher": measures.teacher.to_json(),
            "student": measures.student.to_json(),
            "active_ratio": ratio.to_json(),
        },
        "capture": _plain(capture),
        "steps": {name: _plain(own) for name, own in steps.items()},
        **{what: told(measures.config, account) for what, account in accounts.items()},
        "sensitivity": _sensitivity(measures, capture, steps, ratio),
        "verdict": _verdict(measures, accounts, ratio),
    }


def _sensitivity(
    measures: Measures, capture: Quantities, steps: Mapping[str, Quantities], ratio: Quantity
) -> dict[str, Any]:
    """Break-even in time against the size of the teacher."""
    live, cached = steps["live"], steps["cached"]
    needed = [
        ratio,
        live["epoch_seconds"],
        live["teacher_epoch_seconds"],
        live["fixed_seconds"],
        cached["epoch_seconds"],
        cached["fixed_seconds"],
        capture["seconds"],
    ]
    for quantity in needed:
        if quantity.value is None:
            return {"gap": quantity.how}
    tokens = measures.documents.tokens
    teacher = live["teacher_epoch_seconds"].known
    scoring = tokens / capture["tokens_per_second"].known
    forward = min(scoring, teacher * tokens / measures.documents.sample_tokens)
    parts = sensitivity.Parts(
        ratio=ratio.known,
        student_epoch=live["epoch_seconds"].known - teacher,
        teacher_epoch=teacher,
        cached_epoch=cached["epoch_seconds"].known,
        capture_load=capture["load_seconds"].known,
        capture_rest=capture["seconds"].known - capture["load_seconds"].known - forward,
        capture_forward=forward,
        live_rest=capture["prepare_seconds"].known,
        teacher_load=max(live["fixed_seconds"].known - cached["fixed_seconds"].known, 0.0),
    )
    found = sensitivity.break_evens(parts, measures.config.students)
    return {
        "kind": "extrapolated",
        "how": sensitivity.FORMULA,
        "measured_at": ratio.known,
        "rows": [{"ratio": at, "break_even": meet.at, "pays": meet.pays} for at, meet in found],
    }


def _verdict(
    measures: Measures, accounts: Mapping[str, Account | str], ratio: Quantity
) -> dict[str, Any]:
    config, live = measures.config, measures.side("live")
    time = accounts["time"]
    runs = isinstance(measures.side("cached"), Taken)
    facts = Facts(
        epochs=config.epochs,
        students=config.students,
        every=config.teacher_changes,
        time=totals_of(config, time),
        money=totals_of(config, accounts["money"]),
        does_not_fit=why("live", live).partition(": ")[2]
        if isinstance(live, Failure) and live.kind == "memory" and runs
        else None,
        missing=time if isinstance(time, str) else "",
        experts=measures.teacher.experts > 1,
        active_ratio=ratio.value,
    )
    verdict = judge(facts)
    return {"advice": verdict.advice, "reasons": list(verdict.reasons)}


def _plan(config: BenchmarkConfig) -> dict[str, Any]:
    """What the user planned and what it is to cost."""
    names = (
        "epochs students teacher_changes price_per_hour price_per_hour_student "
        "price_per_gb_month months"
    ).split()
    return {name: getattr(config, name) for name in names}


def _plain(of: Mapping[str, Quantity]) -> dict[str, Any]:
    return {name: quantity.to_json() for name, quantity in of.items()}

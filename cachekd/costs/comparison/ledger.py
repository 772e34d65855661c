"""Totals, break-even and sensitivity of a comparison: figures in, a report of plain JSON types out.

In: `Measures`. Out: a dict whose every figure is tagged measured, extrapolated (with its formula),
never or gap (with its reason). See `model` for the sums and `verdict` for the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison import model, sensitivity
from cachekd.costs.comparison.jobs import SIDES, Failure
from cachekd.costs.comparison.measures import (
    Measures,
    Quantities,
    active_ratio,
    capture_quantities,
    side_quantities,
    steps_per_epoch,
    why,
)
from cachekd.costs.comparison.model import Meeting, Way
from cachekd.costs.comparison.quantities import Quantity, extrapolated, measured, never
from cachekd.costs.comparison.rounds import Captured, Taken
from cachekd.costs.comparison.verdict import NEVER, Facts, Totals, judge

_HOUR = 3600.0


def report_of(measures: Measures) -> dict[str, Any]:
    """The whole report."""
    capture = capture_quantities(measures)
    steps = {name: side_quantities(measures, name) for name in SIDES}
    ways = {
        "time": _time(capture, steps),
        "money": _money(measures.config, capture, steps),
        "energy": _energy(measures, capture, steps),
    }
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
        **{what: _account(measures.config, found) for what, found in ways.items()},
        "sensitivity": _sensitivity(measures, capture, steps, ratio),
        "verdict": _verdict(measures, ways, ratio),
    }


Pair = tuple[Way, Way] | str
"""Amounts of both ways, cached and live, or why there are none."""


def _time(capture: Quantities, steps: Mapping[str, Quantities]) -> Pair:
    """Seconds. Each live run reads and tokenises the data; one from the cache does not."""
    cached, live = steps["cached"], steps["live"]
    return _pair(
        [
            capture["seconds"],
            capture["prepare_seconds"],
            cached["load_seconds"],
            cached["epoch_seconds"],
            live["load_seconds"],
            live["epoch_seconds"],
        ],
        lambda once, prepare, load, epoch, live_load, live_epoch: (
            Way(once=once, per_student=load, per_epoch=epoch),
            Way(per_student=prepare + live_load, per_epoch=live_epoch),
        ),
    )


def _money(config: BenchmarkConfig, capture: Quantities, steps: Mapping[str, Quantities]) -> Pair:
    """Prices times seconds, and storage."""
    prices = ("price_per_hour", "price_per_gb_month")
    missing = [f"--{n.replace('_', '-')}" for n in prices if getattr(config, n) is None]
    if missing:
        return f"not measured: no price was given ({', '.join(missing)})"
    time = _time(capture, steps)
    if isinstance(time, str):
        return time
    dear = (config.price_per_hour or 0.0) / _HOUR
    own = config.price_per_hour_student
    cheap = dear if own is None else own / _HOUR
    cached, live = time
    months = config.months * (config.price_per_gb_month or 0.0)
    return (
        Way(
            once=cached.once * dear,
            kept=capture["bytes"].known / 1e9 * months,
            per_student=cached.per_student * cheap,
            per_epoch=cached.per_epoch * cheap,
        ),
        Way(per_student=live.per_student * dear, per_epoch=live.per_epoch * dear),
    )


def _energy(measures: Measures, capture: Quantities, steps: Mapping[str, Quantities]) -> Pair:
    """Joules of GPUs: of a capture with its loading, of training runs without it."""
    once = extrapolated(
        "load_joules + joules_per_token x tokens",
        lambda load, each, tokens: load + each * tokens,
        capture["load_joules"],
        capture["joules_per_token"],
        measured(measures.documents.tokens),
    )
    return _pair(
        [once, steps["cached"]["epoch_joules"], steps["live"]["epoch_joules"]],
        lambda once, cached, live: (Way(once=once, per_epoch=cached), Way(per_epoch=live)),
    )


def _pair(of: list[Quantity], make: Callable[..., tuple[Way, Way]]) -> Pair:
    for quantity in of:
        if quantity.value is None:
            return quantity.how
    return make(*(quantity.known for quantity in of))


def _account(config: BenchmarkConfig, pair: Pair) -> dict[str, Any]:
    """Totals of the plan and the break-even, in one of the amounts."""
    names = "cached_total live_total storage break_even break_even_students".split()
    if isinstance(pair, str):
        return dict.fromkeys(names, Quantity(value=None, kind="gap", how=pair).to_json())
    cached, live = pair
    epochs, students, every = config.epochs, config.students, config.teacher_changes
    meet = model.break_even(cached, live, students)
    found = {
        "cached_total": _made(model.FORMULA_CACHED, cached.total(epochs, students, every)),
        "live_total": _made(model.FORMULA_LIVE, live.total(epochs, students)),
        "storage": _made("bytes / 1e9 x price_per_gb_month x months", cached.kept),
        "break_even": _met(meet),
        "break_even_students": _enough(model.break_even_students(cached, live, epochs, every)),
    }
    amounts = {
        "capture": cached.once,
        "cached_load": cached.per_student,
        "cached_epoch": cached.per_epoch,
        "live_load": live.per_student,
        "live_epoch": live.per_epoch,
    }
    return _plain(found) | {"pays": meet.pays, "amounts": amounts}


def _met(meet: Meeting) -> Quantity:
    if meet.at is None:
        return never(NEVER)
    further = "; a cache is cheaper up to there" if meet.before else ""
    return _made(model.FORMULA_BREAK_EVEN + further, meet.at)


def _enough(students: float | None) -> Quantity:
    if students is None:
        return never("a student's run from the cache, its start included, costs no less than live")
    return _made(model.FORMULA_STUDENTS, students)


def _made(formula: str, value: float) -> Quantity:
    return Quantity(value=value, kind="extrapolated", how=formula)


def _sensitivity(
    measures: Measures, capture: Quantities, steps: Mapping[str, Quantities], ratio: Quantity
) -> dict[str, Any]:
    """Break-even in time against the size of the teacher."""
    live, cached = steps["live"], steps["cached"]
    needed = [
        ratio,
        live["epoch_seconds"],
        live["teacher_epoch_seconds"],
        cached["epoch_seconds"],
        capture["load_seconds"],
        capture["tokens_per_second"],
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
        capture_rest=capture["prepare_seconds"].known + scoring - forward,
        capture_forward=forward,
        live_rest=capture["prepare_seconds"].known,
        teacher_load=max(live["load_seconds"].known - cached["load_seconds"].known, 0.0),
    )
    found = sensitivity.break_evens(parts, measures.config.students)
    return {
        "kind": "extrapolated",
        "how": sensitivity.FORMULA,
        "measured_at": ratio.known,
        "rows": [{"ratio": at, "break_even": meet.at, "pays": meet.pays} for at, meet in found],
    }


def _verdict(measures: Measures, ways: Mapping[str, Pair], ratio: Quantity) -> dict[str, Any]:
    config, live = measures.config, measures.side("live")
    time, money = ways["time"], ways["money"]
    runs = isinstance(measures.side("cached"), Taken)
    facts = Facts(
        epochs=config.epochs,
        students=config.students,
        every=config.teacher_changes,
        time=_totals(config, time),
        money=_totals(config, money),
        does_not_fit=why(measures, "live", live).partition(": ")[2]
        if isinstance(live, Failure) and live.kind == "memory" and runs
        else None,
        missing=time if isinstance(time, str) else "",
        experts=measures.teacher.experts > 1,
        active_ratio=ratio.value,
    )
    verdict = judge(facts)
    return {"advice": verdict.advice, "reasons": list(verdict.reasons)}


def _totals(config: BenchmarkConfig, pair: Pair) -> Totals | None:
    if isinstance(pair, str):
        return None
    cached, live = pair
    return Totals(
        cached=cached.total(config.epochs, config.students, config.teacher_changes),
        live=live.total(config.epochs, config.students),
        break_even=model.break_even(cached, live, config.students),
        storage=cached.kept,
    )


def _plan(config: BenchmarkConfig) -> dict[str, Any]:
    """What the user planned and what it is to cost."""
    names = (
        "epochs students teacher_changes price_per_hour price_per_hour_student "
        "price_per_gb_month months"
    ).split()
    return {name: getattr(config, name) for name in names}


def _plain(of: Mapping[str, Quantity]) -> dict[str, Any]:
    return {name: quantity.to_json() for name, quantity in of.items()}

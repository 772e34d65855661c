"""Totals and break-even of a comparison, in time, in money and in energy.

In: the quantities of capture and sides, and the plan. Out: an `Account` of each, or why there is
none, and what a report says of it. See `model` for the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison import model
from cachekd.costs.comparison.model import Meeting, Way
from cachekd.costs.comparison.quantities import (
    Quantities,
    Quantity,
    extrapolated,
    measured,
    never,
)
from cachekd.costs.comparison.verdict import NEVER, Totals

_HOUR = 3600.0
_NAMES = ("cached_total", "live_total", "storage", "break_even", "break_even_students")
Steps = Mapping[str, Quantities]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Amounts of both ways.

    Attributes:
        cached, live: of each way.
        noisy: whether one of them is.
    """

    cached: Way
    live: Way
    noisy: bool = False


def accounts_of(
    config: BenchmarkConfig, tokens: int, capture: Quantities, steps: Steps
) -> dict[str, Account | str]:
    """Accounts by what they count, or why there is none.

    Args:
        config: prices and what is planned.
        tokens: that a capture of the whole data scores.
        capture: its quantities.
        steps: those of the sides.
    """
    time = _time(capture, steps)
    return {
        "time": time,
        "money": _money(config, time, capture["bytes"]),
        "energy": _energy(tokens, capture, steps),
    }


def _time(capture: Quantities, steps: Steps) -> Account | str:
    """Seconds. Each live run reads and tokenises the data; one from the cache does not."""
    cached, live = steps["cached"], steps["live"]
    return _account(
        [
            capture["seconds"],
            capture["prepare_seconds"],
            cached["fixed_seconds"],
            cached["epoch_seconds"],
            live["fixed_seconds"],
            live["epoch_seconds"],
        ],
        lambda once, prepare, fixed, epoch, live_fixed, live_epoch: (
            Way(once=once, per_student=fixed, per_epoch=epoch),
            Way(per_student=prepare + live_fixed, per_epoch=live_epoch),
        ),
    )


def _money(config: BenchmarkConfig, time: Account | str, size: Quantity) -> Account | str:
    """Prices times seconds, and storage."""
    prices = ("price_per_hour", "price_per_gb_month")
    missing = [f"--{n.replace('_', '-')}" for n in prices if getattr(config, n) is None]
    if missing:
        return f"not measured: no price was given ({', '.join(missing)})"
    if isinstance(time, str):
        return time
    dear = (config.price_per_hour or 0.0) / _HOUR
    own = config.price_per_hour_student
    cheap = dear if own is None else own / _HOUR
    cached, live = time.cached, time.live
    months = config.months * (config.price_per_gb_month or 0.0)
    return Account(
        cached=Way(
            once=cached.once * dear,
            kept=size.known / 1e9 * months,
            per_student=cached.per_student * cheap,
            per_epoch=cached.per_epoch * cheap,
        ),
        live=Way(per_student=live.per_student * dear, per_epoch=live.per_epoch * dear),
        noisy=time.noisy,
    )


def _energy(tokens: int, capture: Quantities, steps: Steps) -> Account | str:
    """Joules of GPUs: of a capture with its loading, of training runs without it."""
    once = extrapolated(
        "load_joules + joules_per_token x tokens",
        lambda load, each, tokens: load + each * tokens,
        capture["load_joules"],
        capture["joules_per_token"],
        measured(tokens),
    )
    return _account(
        [once, steps["cached"]["epoch_joules"], steps["live"]["epoch_joules"]],
        lambda once, cached, live: (Way(once=once, per_epoch=cached), Way(per_epoch=live)),
    )


def _account(of: Sequence[Quantity], make: Callable[..., tuple[Way, Way]]) -> Account | str:
    for quantity in of:
        if quantity.value is None:
            return quantity.how
    cached, live = make(*(quantity.known for quantity in of))
    return Account(cached=cached, live=live, noisy=any(quantity.noisy for quantity in of))


def told(config: BenchmarkConfig, account: Account | str) -> dict[str, Any]:
    """What a report says of an account: totals of the plan, break-even, and what they are made of.

    Args:
        config: what is planned.
        account: amounts, or why there are none.
    """
    if isinstance(account, str):
        return dict.fromkeys(_NAMES, Quantity(value=None, kind="gap", how=account).to_json())
    cached, live = account.cached, account.live
    epochs, students, every = config.epochs, config.students, config.teacher_changes
    meet = model.break_even(cached, live, students)
    enough = model.break_even_students(cached, live, epochs, every)
    found = (
        _made(account, model.FORMULA_CACHED, cached.total(epochs, students, every)),
        _made(account, model.FORMULA_LIVE, live.total(epochs, students)),
        _made(account, "bytes / 1e9 x price_per_gb_month x months", cached.kept),
        _met(account, meet),
        _enough(account, enough),
    )
    amounts = {
        "capture": cached.once,
        "cached_fixed": cached.per_student,
        "cached_epoch": cached.per_epoch,
        "live_fixed": live.per_student,
        "live_epoch": live.per_epoch,
    }
    plain = {name: one.to_json() for name, one in zip(_NAMES, found, strict=True)}
    return plain | {"pays": meet.pays, "amounts": amounts}


def totals_of(config: BenchmarkConfig, account: Account | str) -> Totals | None:
    """What the verdict looks at."""
    if isinstance(account, str):
        return None
    cached, live = account.cached, account.live
    return Totals(
        cached=cached.total(config.epochs, config.students, config.teacher_changes),
        live=live.total(config.epochs, config.students),
        break_even=model.break_even(cached, live, config.students),
        storage=cached.kept,
        noisy=account.noisy,
    )


def _met(account: Account, meet: Meeting) -> Quantity:
    if meet.at is None:
        return never(NEVER)
    further = "; a cache is cheaper up to there" if meet.before else ""
    return _made(account, model.FORMULA_BREAK_EVEN + further, meet.at)


def _enough(account: Account, students: float | None) -> Quantity:
    if students is None:
        return never("a student's run from the cache, its start included, costs no less than live")
    return _made(account, model.FORMULA_STUDENTS, students)


def _made(account: Account, formula: str, value: float) -> Quantity:
    return Quantity(value=value, kind="extrapolated", how=formula, noisy=account.noisy)

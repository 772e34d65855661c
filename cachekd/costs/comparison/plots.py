"""The figures of a comparison: what both ways cost over epochs, the break-even, a step, memory.

In: the report of a comparison. Out: `Plot`s and `Bars`. What was not measured leaves a gap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cachekd.costs.comparison.jobs import SIDES
from cachekd.costs.comparison.model import Way
from cachekd.report.bars import Bars
from cachekd.report.figures import Figure
from cachekd.report.svg import Plot, Series

_POINTS = 60
_GIGA = 1e9
_UNITS = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"))
NOISY = "†"
Report = Mapping[str, Any]


def plots_of(report: Report) -> list[Figure]:
    """All figures that the report has data for."""
    found: list[Figure] = []
    for what in ("time", "money", "energy"):
        if "amounts" in report[what]:
            found.append(_cumulative(report, what))
    if "rows" in report["sensitivity"]:
        found.append(_sizes(report))
    return [*found, _steps(report), _memory(report)]


def mark(quantity: Mapping[str, Any]) -> str:
    """The mark of a noisy quantity, or nothing."""
    return NOISY if quantity.get("noisy") else ""


def ways_of(report: Report, what: str) -> tuple[Way, Way]:
    """Amounts of both ways, cached and live, as the report states them."""
    amounts = report[what]["amounts"]
    cached = Way(
        once=amounts["capture"],
        kept=report[what]["storage"]["value"],
        per_student=amounts["cached_fixed"],
        per_epoch=amounts["cached_epoch"],
    )
    return cached, Way(per_student=amounts["live_fixed"], per_epoch=amounts["live_epoch"])


def _cumulative(report: Report, what: str) -> Plot:
    """Totals against epochs x students, and where they meet."""
    cached, live = ways_of(report, what)
    plan, meet = report["plan"], report[what]["break_even"]["value"]
    students, every = plan["students"], plan["teacher_changes"]
    last = _last(report, what)
    xs = [last * i / _POINTS for i in range(_POINTS + 1)]
    totals = {
        "cached": [cached.total(x / students, students, every) for x in xs],
        "live": [live.total(x / students, students) for x in xs],
    }
    scale, label = _unit(what, max(totals["live"][-1], totals["cached"][-1]))
    series: list[Series] = [
        (name, xs, [value / scale for value in values]) for name, values in totals.items()
    ]
    uncrossed = _uncrossed(report, what)
    crossing = meet is not None and not uncrossed
    if crossing:
        height = live.total(meet / students, students) / scale
        series.append((f"break-even: {meet:.3g}", [meet], [height]))
    return Plot(
        title=f"{what.capitalize()} over epochs x students (extrapolated){uncrossed}",
        x_label=f"epochs x students (students: {students})",
        y_label=label,
        series=tuple(series),
        marks={series[-1][0]: "alone"} if crossing else {},
    )


def _last(report: Report, what: str) -> float:
    """Epochs x students up to which totals are drawn."""
    plan, meet = report["plan"], report[what]["break_even"]["value"]
    planned = plan["epochs"] * plan["students"]
    far = 0.0 if meet is None else min(2 * float(meet), 50 * planned)
    return max(1.5 * float(planned), 3.0, far)


def _uncrossed(report: Report, what: str) -> str:
    """Why the lines do not cross in the drawing; empty where they do."""
    meet, every = report[what]["break_even"]["value"], report["plan"]["teacher_changes"]
    if meet is None:
        return ": they do not cross, live is always cheaper"
    if every is not None:
        return ": a teacher that changes leaves no single break-even"
    if meet == 0:
        return ": they do not cross, a cache is always cheaper"
    return "" if meet <= _last(report, what) else f": they cross far to the right, at {meet:.3g}"


def _unit(what: str, largest: float) -> tuple[float, str]:
    """What a value of the axis is worth, and its name."""
    if what == "time":
        return next(
            (one for one in reversed(_UNITS) if largest >= 2 * one[0]),
            _UNITS[0],
        )
    if what == "money":
        return 1.0, "money, in the currency of the prices"
    return (3.6e6, "kWh") if largest >= 3.6e6 else (1.0, "joules")


def _sizes(report: Report) -> Plot:
    """From where on a cache pays, against the ratio of active parameters; else a gap."""
    found = report["sensitivity"]
    rows = found["rows"]
    values = [row["break_even"] if row["pays"] == "from" else math.nan for row in rows]
    time = report["time"]
    here = time["break_even"]["value"] if time["pays"] == "from" else math.nan
    series: list[Series] = [("extrapolated", [row["ratio"] for row in rows], values)]
    series.append(("at the measured ratio", [found["measured_at"]], [here]))
    return Plot(
        title="Break-even against the size of the teacher",
        x_label="active parameters, teacher / student",
        y_label="epochs x students",
        series=tuple(series),
        log_x=True,
        log_y=True,
        marks={"extrapolated": "line", "at the measured ratio": "alone"},
        names={
            "extrapolated": ["" if math.isnan(v) else f"{v:.2g}" for v in values],
            "at the measured ratio": ["here"],
        },
    )


def _steps(report: Report) -> Bars:
    """A step of each side, and what of it is the teacher's and the loader's."""
    steps = report["steps"]
    whole = [_ms(steps[name]["step_seconds"]["value"]) for name in SIDES]
    quartiles = [
        (
            _ms(steps[name]["step_seconds_low"]["value"]),
            _ms(steps[name]["step_seconds_high"]["value"]),
        )
        for name in SIDES
    ]
    teacher = [
        _ms(steps["live"]["teacher_step_seconds"]["value"]) if name == "live" else None
        for name in SIDES
    ]
    waits = [
        _ms(_times(steps[name]["step_seconds"], steps[name]["data_wait_share"])) for name in SIDES
    ]
    return Bars(
        title="A training step (measured)",
        x_label="milliseconds, median with its quartiles",
        groups=tuple(name + mark(steps[name]["step_seconds"]) for name in SIDES),
        series=(
            ("whole step", whole, quartiles),
            ("teacher's forward", teacher, None),
            ("waiting for data", waits, None),
        ),
    )


def _memory(report: Report) -> Bars:
    """Peaks of all processes."""
    peaks = {"capture": report["capture"]["peak_memory_bytes"]}
    peaks |= {name: report["steps"][name]["peak_memory_bytes"] for name in SIDES}
    values = [math.nan if p["value"] is None else p["value"] / _GIGA for p in peaks.values()]
    return Bars(
        title="Peak memory (measured)",
        x_label="GB, of a process of its own",
        groups=tuple(name + mark(peak) for name, peak in peaks.items()),
        series=(("peak", values, None),),
    )


def _ms(seconds: float | None) -> float:
    return math.nan if seconds is None else 1e3 * seconds


def _times(left: Mapping[str, Any], right: Mapping[str, Any]) -> float | None:
    if left["value"] is None or right["value"] is None:
        return None
    return float(left["value"] * right["value"])

"""The page of training runs: curves side by side, what they came to, and why they differ.

In: the figures of `cachekd.overview.runs`. Out: the sections of a page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cachekd.overview.evaluated import PREFIX
from cachekd.report.bars import Bars
from cachekd.report.curves import Section, Table
from cachekd.report.figures import Figure
from cachekd.report.svg import STYLES
from cachekd.report.text import amount, short
from cachekd.training.figures import MOST_POINTS, plot_of, rollouts_of

_BEST = "\u00a0*"  # on the line of its figure
_GAP = "-"
_HELD_OUT = ("eval_", PREFIX)


def title_of(report: Mapping[str, Any]) -> str:
    """Title of the page."""
    runs = report["runs"]
    return f"The run {runs[0]['name']}" if len(runs) == 1 else f"{len(runs)} training runs"


def intro_of(report: Mapping[str, Any]) -> list[str]:
    """Which runs these are and what differs, in sentences."""
    runs = report["runs"]
    said = ["; ".join(f"{run['name']}: {_state(run)}" for run in runs) + "."]
    for run in runs:
        if not run["log_rows"]:
            said.append(f"{run['name']} has no history: it was ended before it could write one.")
    if len(runs) > 1:
        names = ", ".join(report["differences"]) or "nothing that is recorded"
        said.append(f"The runs differ in {names}.")
    for group in report["groups"]:
        for name, found in group["figures"].items():
            if name.startswith(_HELD_OUT) and found["deviation"] is not None:
                said.append(
                    f"{group['name']}: {_words(name)} {found['mean']:.4f} ± "
                    f"{found['deviation']:.4f} over {found['runs']} runs that differ by seed alone."
                )
    return said


def _state(run: Mapping[str, Any]) -> str:
    steps = "" if run["steps"] is None else f", {run['steps']:,} steps"
    return f"objective {run['objective']}{steps}, status {run['status']}"


def sections_of(report: Mapping[str, Any]) -> list[Section]:
    """All parts of the page below the introduction."""
    return [
        _final(report),
        *_seeds(report),
        *_curves(report),
        _settings(report),
        _caches(report["runs"]),
        *_rollouts(report["runs"]),
    ]


def _final(report: Mapping[str, Any]) -> Section:
    runs, best = report["runs"], report["best"]
    figures = list(dict.fromkeys(name for run in runs for name in run["final"]))
    rows = tuple(
        (
            run["name"],
            run["status"],
            _GAP if run["steps"] is None else f"{run['steps']:,}",
            *(
                _value(name, run["final"].get(name)) + _BEST * (best.get(name) == run["name"])
                for name in figures
            ),
        )
        for run in runs
    )
    header = ("run", "status", "steps", *map(_words, figures))
    text = ["A star marks the best run of a figure by which they can be compared."] if best else []
    return Section(
        heading="What they came to" if len(runs) > 1 else "What it came to",
        text=text,
        tables=[Table(title="Final figures", header=header, rows=rows)],
    )


def _seeds(report: Mapping[str, Any]) -> list[Section]:
    """Nothing where no runs differ by seed alone."""
    groups = report["groups"]
    if not groups:
        return []
    figures = list(dict.fromkeys(name for group in groups for name in group["figures"]))
    rows = [
        ("runs", *(", ".join(group["runs"]) for group in groups)),
        ("seeds", *("; ".join(group["seeds"]) for group in groups)),
        ("n", *(str(len(group["runs"])) for group in groups)),
        *(
            (_words(name), *(_mean(name, group["figures"].get(name)) for group in groups))
            for name in figures
        ),
    ]
    header = ("", *(group["name"] for group in groups))
    evaluated = [name for name in figures if name.startswith(_HELD_OUT)]
    bars = [_bars(name, groups) for name in evaluated]
    return [
        Section(
            heading="Over seeds",
            text=[
                "Mean ± sample deviation of runs that differ by their seeds alone; a run that has "
                "no other beside it is one value (n is 1)."
            ],
            tables=[Table(title="Means over seeds", header=header, rows=tuple(rows))],
            # One bar alone would say no more than the table.
            plots=[one for one in bars if len(one.groups) > 1],
        )
    ]


def _mean(name: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return _GAP
    mean, deviation = found["mean"], found["deviation"]
    return _value(name, mean) + ("" if deviation is None else f" ± {_value(name, deviation)}")


def _bars(name: str, groups: Sequence[Mapping[str, Any]]) -> Bars:
    """A bar of each group that has the figure."""
    having = [group for group in groups if name in group["figures"]]
    found = [group["figures"][name] for group in having]
    deviations = [math.nan if one["deviation"] is None else one["deviation"] for one in found]
    return Bars(
        title=f"{_words(name)} over seeds",
        x_label=_words(name),
        groups=tuple(group["name"] for group in having),
        series=((_words(name), [one["mean"] for one in found], deviations),),
    )


def _curves(report: Mapping[str, Any]) -> list[Section]:
    """Nothing where no run has a history."""
    plots: list[Figure] = []
    longest = 0
    for one in report["curves"]:
        series = [
            (
                line["run"],
                line["steps"],
                [math.nan if value is None else value for value in line["values"]],
            )
            for line in one["lines"]
        ]
        longest = max([longest, *(len(line["steps"]) for line in one["lines"])])
        plots.append(plot_of(one["figure"], series, one["on"]))
    text = []
    if longest >= MOST_POINTS:
        text.append(f"Of a curve with more than {MOST_POINTS:,} points every so manyth is drawn.")
    if len(report["runs"]) > STYLES:
        text.append(f"Lines have {STYLES} looks, which repeat.")
    return [Section(heading="Curves", text=text, plots=plots)] if plots else []


def _settings(report: Mapping[str, Any]) -> Section:
    names = [run["name"] for run in report["runs"]]
    tables = []
    if len(names) > 1:
        rows = tuple(
            (key, *(short(values[name] or _GAP) for name in names))
            for key, values in report["differences"].items()
        )
        tables.append(Table(title="Settings that differ", header=("", *names), rows=rows))
    same = Table(
        title="Settings of all runs" if len(names) > 1 else "Settings",
        header=("", "value"),
        rows=tuple((name, short(value)) for name, value in report["same_for_all"].items()),
    )
    text = [
        f"A setting of the Trainer that is its default is not shown; {_GAP} is unset or default."
    ]
    return Section(heading="Settings", text=text, tables=[*tables, same])


def _caches(runs: Sequence[Mapping[str, Any]]) -> Section:
    used: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        for cache in run["caches"]:
            about = tuple(
                str(cache.get(name))
                for name in ("name", "samples", "source_id", "capture_id", "root")
            )
            used.setdefault(about, []).append(run["name"])
    rows = tuple((*about, ", ".join(dict.fromkeys(names))) for about, names in used.items())
    header = ("cache", "samples", "source id", "capture id", "root digest", "used by")
    return Section(heading="Caches", tables=[Table(title="Caches used", header=header, rows=rows)])


def _rollouts(runs: Sequence[Mapping[str, Any]]) -> list[Section]:
    """What on-policy runs wrote and asked their teacher; nothing without such runs."""
    found = {run["name"]: rollouts_of(run["rollouts"]) for run in runs if run["rollouts"]}
    if not found:
        return []
    keys = dict.fromkeys(key for values in found.values() for key in values)
    rows = tuple((key, *(values.get(key, _GAP) for values in found.values())) for key in keys)
    table = Table(title="Text of the students, and their teachers", header=("", *found), rows=rows)
    return [Section(heading="On-policy costs", tables=[table])]


def _words(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _value(name: str, value: float | None) -> str:
    if value is None:
        return _GAP
    if name.endswith("_bytes"):
        return amount(value)
    return f"{value:,.4g}" if name in ("training_seconds", "tokens_per_second") else f"{value:.4f}"

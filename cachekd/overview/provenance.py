"""Who made a cache, of what, where and when: the last part of its page.

In: the figures of `cachekd.overview.cache`. Out: a section of a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cachekd.report.curves import Section, Table
from cachekd.report.text import short, text_of


def provenance_of(report: Mapping[str, Any]) -> Section:
    """Identity, counts, and the runs of precompute that filled the cache."""
    about, made = report["about"], report["made"]
    values = {
        name.replace("_", " "): short(text_of(value))
        for name, value in about.items()
        if name not in ("runs", "imported_said") and not (name == "imported" and value is None)
    }
    values |= {
        "units": f"{made['units']:,} (records read: {made['units_read']:,})",
        "hosts": ", ".join(made["hosts"]) or "not recorded",
        "devices": ", ".join(made["devices"]) or "not recorded",
        "made": f"{made['first'] or 'not recorded'} to {made['last'] or 'not recorded'}",
        "licence": "that of the teacher and of the data; the cache records none of its own",
    }
    values |= {name.replace("_", " "): f"{n:,}" for name, n in report["totals"].items()}
    runs = tuple(
        (run["plan"][:12], f"{run['new_keys']:,}", text_of(run["skipped"]), text_of(run["changed"]))
        for run in about["runs"]
    )
    return Section(
        heading="Identity and provenance",
        tables=[
            Table(title="This cache", header=("", "value"), rows=tuple(values.items())),
            Table(
                title="Runs of precompute",
                header=("plan", "new documents", "left out", "changed"),
                rows=runs,
            ),
        ],
    )

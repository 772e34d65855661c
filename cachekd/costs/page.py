"""A plan as an HTML page: the front as a plot, every candidate, the recommendation and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cachekd.report.curves import Table, write_page
from cachekd.report.svg import Plot, Series
from cachekd.report.text import amount

Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the page.

    Raises:
        OSError: the file cannot be written.
    """
    advice = report["recommendation"]
    write_page(
        path,
        title="What a capture would cost, and what it would lose",
        intro=[
            f"Recommended: {advice['name']}: {advice['why']}.",
            advice["command"],
            *(f"Note: {warning}." for warning in advice["warnings"]),
            *explain(report),
        ],
        tables=[
            table(report, "What is kept and what is lost", loss_columns()),
            table(report, "What it takes", size_columns(report)),
        ],
        plots=[_plot(report)],
    )


def explain(report: Mapping[str, Any]) -> list[str]:
    """What was measured and how to read the figures, in sentences."""
    priced = "teacher_cost" in report
    cost = ""
    if priced:
        cost = (
            f"; at the price given {report['teacher_cost']:,.2f} and "
            f"{report['teacher_cost_per_1e9_tokens']:,.2f}"
        )
    stored = "storage_cost" in report["candidates"][0]
    missing = [
        name
        for name, known in (("teacher (--price-per-hour)", priced), ("storage", stored))
        if not known
    ]
    money = (
        [f"No price was given for {' and '.join(missing)}, so that money is left out."]
        if missing
        else []
    )
    return [
        f"{report['documents_measured']} random documents were measured "
        f"({report['rows_measured']:,} rows), with priors learned of "
        f"{report['documents_learned_from']} others. The whole data has {report['documents']:,} "
        f"documents and {report['tokens']:,} tokens; the teacher's mean entropy is "
        f"{report['entropy']:.3f} nats.",
        f"The teacher scores {report['teacher_tokens_per_second']:,.0f} tokens a second: "
        f"{hours(report['teacher_hours'])} for this data, "
        f"{hours(report['teacher_hours_per_1e9_tokens'])} for 1e9 tokens{cost}.",
        *money,
        "KL is that of the dense teacher to what the cache decodes to, in nats a row, with the "
        "tail spread like the square root of the teacher's mean distribution (flat: evenly). "
        "Sampled settings are right in expectation (bias 0); their error is a variance, which "
        "averages out over a batch, while that of the others does not.",
    ]


def loss_columns() -> list[Column]:
    """Columns of what a setting retains and loses."""
    return [
        ("setting", lambda row: row["name"] + (" *" if row["on_front"] else "")),
        ("entries", lambda row: f"{row['entries']:.1f}"),
        *[(f"mass T={t}", lambda row, t=t: _mass(row, t)) for t in (1, 2, 4)],
        ("KL", lambda row: _number(row, "kl_unigram")),
        ("KL flat", lambda row: _number(row, "kl_flat")),
        ("KL flat T=2", lambda row: _number(row, "kl_flat_2")),
        ("error²", lambda row: _number(row, "error")),
        ("B/token", lambda row: f"{row['bytes_per_token']:.1f}"),
    ]


def _mass(row: Mapping[str, Any], temperature: int) -> str:
    """Retained mass; draws without an exact head retain none and are right in expectation."""
    mass = row[f"mass_{temperature}"]
    return f"{mass:.3f}" if mass else ""


def size_columns(report: Mapping[str, Any]) -> list[Column]:
    """Columns of sizes, and of money where there are prices."""
    columns: list[Column] = [
        ("setting", lambda row: row["name"] + (" *" if row["on_front"] else "")),
        ("targets B/token", lambda row: f"{row['targets_bytes_per_token']:.1f}"),
        ("ids", lambda row: f"{row['input_ids_bytes_per_token']:.2f}"),
        ("container", lambda row: f"{row['container_bytes_per_token']:.2f}"),
        ("prior", lambda row: amount(row["prior_bytes"])),
        ("this data", lambda row: amount(row["bytes_total"])),
        ("1e9 tokens", lambda row: amount(row["bytes_per_1e9_tokens"])),
    ]
    if "storage_cost" in report["candidates"][0]:
        columns += [
            ("storage", lambda row: f"{row['storage_cost']:,.2f}"),
            ("storage 1e9", lambda row: f"{row['storage_cost_per_1e9_tokens']:,.2f}"),
        ]
    if "teacher_cost" in report and "storage_cost" in report["candidates"][0]:
        teacher = report["teacher_cost"]
        columns.append(("with teacher", lambda row: f"{teacher + row['storage_cost']:,.2f}"))
    return columns


def table(report: Mapping[str, Any], title: str, columns: Sequence[Column]) -> Table:
    """Candidates by size; a star stands at those on the front."""
    rows = sorted(report["candidates"], key=lambda row: float(row["bytes_per_token"]))
    return Table(
        title=f"{title}, smallest first (*: on the front)",
        header=tuple(name for name, _ in columns),
        rows=tuple(tuple(text(row) for _, text in columns) for row in rows),
    )


def hours(value: float) -> str:
    """A time that was given in hours."""
    if value < 1 / 60:
        return f"{3600 * value:.3g} s"
    return f"{60 * value:.3g} min" if value < 1 else f"{value:,.3g} h"


def _number(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.3g}" if name in row else "-"


def _plot(report: Mapping[str, Any]) -> Plot:
    """Bytes per token against KL, both on log axes: the front as a line, the rest as dots."""
    rows = [row for row in report["candidates"] if "kl_unigram" in row]
    rows.sort(key=lambda row: float(row["bytes_per_token"]))
    chosen = report["recommendation"]["name"]
    groups = {
        "on the front": [row for row in rows if row["on_front"]],
        "beaten by another": [row for row in rows if not row["on_front"]],
        "recommended": [row for row in rows if row["name"] == chosen],
    }
    series: list[Series] = [
        (name, [r["bytes_per_token"] for r in part], [r["kl_unigram"] for r in part])
        for name, part in groups.items()
    ]
    return Plot(
        title="Size against loss",
        x_label="bytes per token",
        y_label="KL to dense, nats",
        series=tuple(series),
        log_x=True,
        log_y=True,
        marks={name: "line" if name == "on the front" else "alone" for name in groups},
        names={name: [r["name"] for r in part] for name, part in groups.items()},
    )

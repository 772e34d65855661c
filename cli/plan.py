"""``cachekd plan``: what a capture would cost and lose, measured on a sample."""

from __future__ import annotations

from typing import Any

import click

from cachekd.config import PlanConfig

from .options import (
    CONFIG_OPTION,
    JSON_OPTION,
    Dashed,
    build,
    options_of,
    read_yaml,
    refuse_unknown,
    values_of,
)
from .output import emit, table_text
from .progress import TokenProgress


def run(config: str | None, as_json: bool, **given: Any) -> None:
    """Measure what each setting of precompute would keep, lose and cost; recommend one.

    A random sample of the data is scored once; every setting is judged on the same distributions.

    Example:
        cachekd plan --teacher ./teacher --data train.jsonl --out plan.html
    """
    from_yaml = read_yaml(config)
    refuse_unknown(list(from_yaml), [option.name or "" for option in OPTIONS], config or "")
    settings = build(PlanConfig, values_of(PlanConfig, given, from_yaml))
    from time import monotonic

    from cachekd.costs import plan

    bar, begun = TokenProgress("sample"), monotonic()
    try:
        report = plan(settings, progress=lambda done, all: bar(done, all, monotonic() - begun))
    finally:
        bar.close()
    if as_json:
        emit(report, as_json=True)
    else:
        _show(report, settings.out)


def _show(report: dict[str, Any], page: str | None) -> None:
    """The report for a terminal."""
    from cachekd.costs.page import explain, loss_columns, size_columns, table

    advice = report["recommendation"]
    for sentence in explain(report):
        click.echo(sentence + "\n")
    for columns in (loss_columns(), size_columns(report)):
        click.echo(table_text(table(report, "", columns)) + "\n")
    click.echo(f"Recommended: {advice['name']}: {advice['why']}.")
    for warning in advice["warnings"]:
        click.echo(f"  note: {warning}")
    click.echo(f"\n{advice['command']}")
    if page:
        click.echo(f"\nPage: {page}")


OPTIONS = options_of(PlanConfig)
command = Dashed(
    "plan", callback=run, params=[*OPTIONS, CONFIG_OPTION, JSON_OPTION], help=run.__doc__
)

"""``cachekd evaluate``: models on prompts with references, in one table."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from cachekd.config import EvaluateConfig
from cachekd.errors import EXIT_FAILED

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
from .output import emit
from .progress import Stages

if TYPE_CHECKING:
    from cachekd.report.curves import Table


def run(config: str | None, as_json: bool, **given: Any) -> None:
    """Evaluate models: ROUGE-L over seeds, diversity, length, loss; with a teacher KL and ExAccErr.

    Each model answers the prompts of the data once for each seed. Several models give one table.

    Example:
        cachekd evaluate --model sft=./sft --model kd=./kd --data test.jsonl --teacher ./teacher
    """
    from_yaml = read_yaml(config)
    refuse_unknown(list(from_yaml), [option.name or "" for option in OPTIONS], config or "")
    settings = build(EvaluateConfig, values_of(EvaluateConfig, given, from_yaml))
    from cachekd.evaluation.run import OUTPUTS, evaluate

    with Stages("examples") as progress:
        report = evaluate(settings, progress=progress)
    if as_json:
        emit(report, as_json=True)
    else:
        _show(report, list(filter(None, (getattr(settings, name) for name in OUTPUTS))))
    failed = [model["failed"] for model in report["models"] if model["failed"] is not None]
    for why in failed:
        click.echo(f"cachekd: {why}", err=True)
    if failed:
        sys.exit(EXIT_FAILED)


def _show(report: dict[str, Any], pages: list[str]) -> None:
    """The report for a terminal."""
    from cachekd.evaluation.tables import exposure_table, main_table, notes

    for table in (main_table(report), exposure_table(report)):
        if table is not None:
            _print(table)
    for note in notes(report):
        click.echo(f"  note: {note}")
    for page in pages:
        click.echo(f"Written: {page}")


def _print(table: Table) -> None:
    """A table on stdout, as wide as it is where that is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for place, name in enumerate(table.header):
        shown.add_column(Text(name), justify="right" if place else "left")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 1000).print(shown)


# All examples are judged alike, whatever domain a row is of.
OPTIONS = options_of(EvaluateConfig, skip=frozenset({"domain_column"}))
command = Dashed(
    "evaluate", callback=run, params=[*OPTIONS, CONFIG_OPTION, JSON_OPTION], help=run.__doc__
)

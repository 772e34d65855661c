"""``cachekd benchmark``: cached against live distillation, on one's own models and data."""

from __future__ import annotations

from typing import Any

import click

from cachekd.config import BenchmarkConfig
from cachekd.plugins import find

from .options import CONFIG_OPTION, JSON_OPTION, options_of, read_yaml
from .output import emit, table_text
from .progress import TokenProgress
from .training_flags import NOT_FLAGS, TrainingCommand, settings


def run(config: str | None, as_json: bool, **given: Any) -> None:
    """Measure whether caching the teacher pays: capture, cached, live and plain steps; a verdict.

    A random sample of the data is captured and trained on, each side in a process of its own; what
    is planned (--epochs, --students) is extrapolated from it. Money needs --price-per-hour and
    --price-per-gb-month.

    Beside the flags below, every field of transformers.TrainingArguments is a flag
    (--per-device-train-batch-size 8) or a key under training: in the YAML file.

    Example:
        cachekd benchmark --teacher ./teacher --student ./student --data train.jsonl
            --epochs 3 --students 4 --out bench.html
    """
    ctx = click.get_current_context()
    objective = find("objectives", ctx.meta["objective"])
    found = settings(
        BenchmarkConfig, given, read_yaml(config), objective.Options, ctx.args, config or ""
    )
    from cachekd.costs.comparison import benchmark

    progress = _Progress()
    try:
        report = benchmark(found, progress=progress)
    finally:
        progress.close()
    if as_json:
        emit(report, as_json=True)
    else:
        _show(report, found)


class _Progress:
    """A line when the capture is done, and a bar over the steps of all sides."""

    def __init__(self) -> None:
        from time import monotonic

        self._now, self._begun = monotonic, monotonic()
        self._bar = TokenProgress("steps", "rounds")

    def __call__(self, what: str, done: int, of: int) -> None:
        """Show what is done."""
        seconds = self._now() - self._begun
        if what == "steps":
            self._bar(done, of, seconds)
        elif done:
            click.echo(f"{what}: done in {seconds:,.0f} s", err=True)
            self._begun = self._now()

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()


def _show(report: dict[str, Any], config: BenchmarkConfig) -> None:
    """The report for a terminal."""
    from cachekd.costs.comparison import page

    click.echo(page.headline(report))
    for reason in page.reasons(report):
        click.echo(f"  {reason}")
    click.echo("")
    for sentence in page.explain(report):
        click.echo(sentence + "\n")
    for table in (
        page.step_table(report),
        page.capture_table(report),
        *page.account_tables(report),
    ):
        click.echo(f"{table.title}\n{table_text(table)}\n")
    for reason in page.gaps(report):
        click.echo(reason)
    for place in filter(None, (config.out, config.plots_dir)):
        click.echo(f"Written: {place}")


OPTIONS = options_of(BenchmarkConfig, skip=NOT_FLAGS)
command = TrainingCommand(
    "benchmark",
    callback=run,
    params=[*OPTIONS, CONFIG_OPTION, JSON_OPTION],
    help=run.__doc__,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)

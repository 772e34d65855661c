"""``cachekd benchmark``: cached against live distillation, on one's own models and data."""

from __future__ import annotations

from typing import Any, ClassVar

import click

from cachekd.config import BenchmarkConfig
from cachekd.plugins import find

from .options import CONFIG_OPTION, JSON_OPTION, options_of, read_yaml
from .output import emit, table_text
from .progress import Counted
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
    from cachekd.costs.comparison import benchmark
    from cachekd.costs.comparison.checks import checked

    yaml = read_yaml(config)
    found = settings(
        BenchmarkConfig, given, yaml, objective.Options, ctx.args, config or "", checked
    )
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
    """A bar over the tokens of the capture, then one over the rounds of steps of all sides."""

    _UNITS: ClassVar = {"capture": "tokens", "steps": "rounds"}

    def __init__(self) -> None:
        self._bar: Counted | None = None

    def __call__(self, what: str, done: int, of: int) -> None:
        """Show what is done; nothing done begins a stage, whose libraries and models then load."""
        unit = self._UNITS[what]
        if not done:
            self.close()
            click.echo(f"{what}: loading, then {of:,} {unit}", err=True)
            self._bar = Counted(what, unit)
        elif self._bar is not None:
            self._bar(done, of)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.__exit__()
        self._bar = None


def _show(report: dict[str, Any], config: BenchmarkConfig) -> None:
    """The report for a terminal."""
    from cachekd.costs.comparison import page

    click.echo(page.headline(report))
    for reason in page.reasons(report):
        click.echo(f"  {reason}")
    click.echo("")
    for sentence in (*page.noise(report), page.planned(report)):
        click.echo(sentence + "\n")
    table = page.account_table(report)
    click.echo(f"{table.title}\n{table_text(table)}\n")
    for sentence in page.explain(report):
        click.echo(sentence + "\n")
    for table in (page.step_table(report), page.run_table(report), page.capture_table(report)):
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

"""``cachekd demo``: the whole way on a bundled tiny teacher and text, offline, on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .options import JSON_OPTION, Dashed
from .output import emit


def run(out: str, steps: int | None, seed: int, as_json: bool) -> None:
    """Precompute, train and compare on a bundled tiny teacher; offline, about two minutes.

    Example:
        cachekd demo --out ./cachekd-demo
    """
    from cachekd.demo.run import run_demo, summary_rows

    settings: dict[str, Any] = {} if steps is None else {"steps": steps}
    terminal = sys.stderr  # the demo sends what libraries print elsewhere

    def say(line: str) -> None:
        click.echo(line, file=terminal)

    result = run_demo(Path(out), seed=seed, report=say, **settings)
    if as_json:
        emit(result, as_json=True)
        return
    _table(summary_rows(result))


def _table(rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    head, *body = rows
    table = Table(*head, title="What distillation bought")
    for row in body:
        table.add_row(*row)
    Console().print(table)


command = Dashed(
    "demo",
    callback=run,
    help=run.__doc__,
    params=[
        click.Option(["--out"], default="cachekd-demo", show_default=True, help="Output folder."),
        click.Option(["--steps"], type=int, help="Training steps of each student."),
        click.Option(["--seed"], type=int, default=0, show_default=True, help="Random seed."),
        JSON_OPTION,
    ],
)

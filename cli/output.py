"""What commands print: results on stdout, progress and logs on stderr."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cachekd.report.curves import Table


def emit(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object, or a line a value."""
    if as_json:
        click.echo(json.dumps(result, sort_keys=True, default=str))
        return
    width = max((len(key) for key in result), default=0)
    for key, value in result.items():
        click.echo(f"{key.replace('_', ' '):<{width}}  {_text(key, value)}")


def table_text(table: Table) -> str:
    """A table in columns, the first to the left."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.startswith("bytes") and isinstance(value, int):
        return f"{value:,} ({value / 1e6:,.1f} MB)"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_text(k, v)}" for k, v in value.items()) or "none"
    return str(value)

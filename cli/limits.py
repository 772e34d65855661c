"""``cachekd limits``: the most that is read of anything in a cache."""

from __future__ import annotations

import click

from cachekd.data.limits import ALL

from .options import JSON_OPTION, Dashed
from .output import emit


def run(as_json: bool) -> None:
    """Show every hard limit on what is read from a cache: a file beyond one is refused.

    Example:
        cachekd limits --json
    """
    if as_json:
        emit({limit.name: limit.most for limit in ALL}, as_json=True)
        return
    rows = [(limit.name, f"{limit.most:,}", limit.what) for limit in ALL]
    name_width, number_width = (max(len(row[i]) for row in rows) for i in (0, 1))
    for name, most, what in rows:
        click.echo(f"{name:<{name_width}}  {most:>{number_width}}  {what}")


command = Dashed("limits", callback=run, help=run.__doc__, params=[JSON_OPTION])

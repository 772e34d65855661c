"""``cachekd gc``: unite small shards, take away what nothing needs."""

from __future__ import annotations

from typing import Any

import click

from cachekd.config import GcConfig

from .options import CONFIG_OPTION, JSON_OPTION, Dashed, given_config, options_of
from .output import emit


def run(cache: str, config: str | None, as_json: bool, **given: Any) -> None:
    """Tell what a cache does not need, and with --yes take it away.

    That are files that no plan, commit record or seal names, and seals that newer ones followed;
    what is younger than --older-than hours stays. With --compact small shards are united.

    Example:
        cachekd gc ./cache --compact --yes
    """
    settings = given_config(GcConfig, given, config, OPTIONS, {"cache": cache})
    from cachekd.store.gc import collect

    report = collect(settings)
    emit(report, as_json=as_json)
    if not settings.yes:
        click.echo("nothing was changed: pass --yes to do it", err=True)


OPTIONS = options_of(GcConfig, skip=frozenset({"cache"}))
command = Dashed(
    "gc",
    callback=run,
    help=run.__doc__,
    params=[click.Argument(["cache"]), *OPTIONS, CONFIG_OPTION, JSON_OPTION],
)

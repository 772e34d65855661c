"""``cachekd export``: a cache in another tool's format."""

from __future__ import annotations

from typing import Any

import click

from cachekd.config import ExportConfig

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
from .progress import Counted


def run(cache: str | None, config: str | None, as_json: bool, **given: Any) -> None:
    """Write a cache in another format: axolotl, distillkit, arrow. Whole, or not at all.

    Example:
        cachekd export ./cache --format axolotl --out ./for-axolotl
    """
    from_yaml = read_yaml(config)
    known = [option.name or "" for option in OPTIONS]
    refuse_unknown(list(from_yaml), ["cache", *known], config or "")
    settings = build(ExportConfig, values_of(ExportConfig, {**given, "cache": cache}, from_yaml))
    from cachekd.exchange._export import export_cache

    with Counted("export", "samples") as show:
        report = export_cache(settings, progress=show)
    emit(report, as_json=as_json)


OPTIONS: list[click.Option] = [
    CONFIG_OPTION,
    *options_of(ExportConfig, skip=frozenset({"cache"})),
    JSON_OPTION,
]

command = Dashed(
    "export",
    callback=run,
    help=run.__doc__,
    params=[click.Argument(["cache"], required=False), *OPTIONS],
)

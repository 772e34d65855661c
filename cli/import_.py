"""``cachekd import``: targets of another tool's format into a cache."""

from __future__ import annotations

from typing import Any

import click

from cachekd.config import ImportConfig

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


def run(source: tuple[str, ...], config: str | None, as_json: bool, **given: Any) -> None:
    """Make a cache of targets in another format: distillkit, axolotl, openai, megatron, arrow.

    Whose targets they are is what --teacher and --tokenizer say; the cache marks it as asserted.
    Interrupted, the same command continues.

    Example:
        cachekd import ./logits --format distillkit --teacher org/teacher --tokenizer org/teacher
            --cache ./cache
    """
    from_yaml = read_yaml(config)
    known = [option.name or "" for option in OPTIONS]
    refuse_unknown(list(from_yaml), ["source", *known], config or "")
    values = values_of(ImportConfig, {**given, "source": source}, from_yaml)
    settings = build(ImportConfig, values)
    from cachekd.exchange._import import import_cache

    with Counted("import", "documents") as show:
        report = import_cache(
            settings, progress=lambda done, total: show(done, max(done, total or done))
        )
    emit(report, as_json=as_json)


OPTIONS: list[click.Option] = [
    CONFIG_OPTION,
    *options_of(ImportConfig, skip=frozenset({"source"})),
    JSON_OPTION,
]

command = Dashed(
    "import",
    callback=run,
    help=run.__doc__,
    params=[click.Argument(["source"], nargs=-1), *OPTIONS],
)

"""``cachekd precompute``: run a teacher once, store its targets."""

from __future__ import annotations

from typing import Any

from cachekd.config import PrecomputeConfig

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
from .progress import TokenProgress


def run(config: str | None, as_json: bool, **given: Any) -> None:
    """Run a teacher over data once and store its targets in a cache.

    Run the same command again to continue after an interruption, or with more data to add to the
    cache: what is cached is never scored twice.

    Example:
        cachekd precompute --teacher ./teacher --data train.jsonl --cache ./cache
    """
    from_yaml = read_yaml(config)
    known = [option.name or "" for option in OPTIONS]
    refuse_unknown(list(from_yaml), known, config or "")
    settings = build(PrecomputeConfig, values_of(PrecomputeConfig, given, from_yaml))
    from cachekd.capture import Progress, precompute

    bars: dict[str, TokenProgress] = {}

    def show(step: Progress) -> None:
        if step.stage not in bars:
            close()
            bars[step.stage] = TokenProgress(step.stage)
        bars[step.stage](step.tokens_done, step.tokens_total, step.seconds)

    def close() -> None:
        for bar in bars.values():
            bar.close()

    try:
        report = precompute(settings, progress=show)
    finally:
        close()
    emit(report, as_json=as_json)


OPTIONS = options_of(PrecomputeConfig)
command = Dashed(
    "precompute", callback=run, params=[*OPTIONS, CONFIG_OPTION, JSON_OPTION], help=run.__doc__
)

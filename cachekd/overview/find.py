"""What the paths of a report are: a cache, or output folders of training runs."""

from __future__ import annotations

from pathlib import Path

from cachekd.config import ReportConfig
from cachekd.errors import ConfigError
from cachekd.store.names import shown
from cachekd.training.record import RECORD

_CACHE = "cache.json"


def kind_of(config: ReportConfig) -> str:
    """Either "cache" or "runs".

    Raises:
        ConfigError: they are of both kinds, of neither, or a setting is for the other kind.
    """
    runs = [path for path in config.paths if _is_run(path)]
    if len(runs) == len(config.paths):
        if config.recheck is not None or config.tokenizer is not None:
            raise ConfigError("teacher and tokenizer are for the report of a cache; these are runs")
        return "runs"
    others = [path for path in config.paths if path not in runs]
    if runs or len(others) > 1:
        raise ConfigError(
            "expected one cache, or one or more run folders; found "
            + ", ".join(f"{shown(path)} ({_what(path)})" for path in config.paths)
            + ". Make a report of each cache, and one of all runs"
        )
    if "://" not in others[0] and not (Path(others[0]) / _CACHE).is_file():
        raise ConfigError(
            f"{others[0]}: expected a cache (a folder with {_CACHE}) or the output folder of "
            f"cachekd train (with {RECORD}); found {_what(others[0])}"
        )
    return "cache"


def _is_run(path: str) -> bool:
    """Whether it is an output folder, or the record in it."""
    return "://" not in path and (
        (Path(path) / RECORD).is_file() or (Path(path).name == RECORD and Path(path).is_file())
    )


def _what(path: str) -> str:
    if "://" in path:
        return "a location"
    if not Path(path).exists():
        return "nothing there"
    if _is_run(path):
        return "a run"
    if (Path(path) / _CACHE).is_file():
        return "a cache"
    return "a folder without either" if Path(path).is_dir() else "a file"

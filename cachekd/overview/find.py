"""What the paths of a report are: a cache, or output folders of training runs."""

from __future__ import annotations

from pathlib import Path

from cachekd.config import ReportConfig
from cachekd.errors import ConfigError
from cachekd.store.names import shown
from cachekd.training.record import RECORD

_CACHE, _SEALS = "cache.json", "manifest-*.json"


def kind_of(config: ReportConfig) -> str:
    """Either "cache" or "runs".

    Raises:
        ConfigError: they are of both kinds, of neither, or a setting is for the other kind.
    """
    runs = [path for path in config.paths if is_run(path)]
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
    if "://" not in others[0] and not _is_cache(others[0]):
        raise ConfigError(
            f"{others[0]}: expected a cache (a folder with {_CACHE}) or the output folder of "
            f"cachekd train (with {RECORD}); found {_what(others[0])}"
        )
    if config.evaluation:
        raise ConfigError("evaluation is for the report of runs; this is a cache")
    return "cache"


def is_run(path: str) -> bool:
    """Whether it is an output folder of ``cachekd train``, or the record in it."""
    return "://" not in path and (
        (Path(path) / RECORD).is_file() or (Path(path).name == RECORD and Path(path).is_file())
    )


def _is_cache(path: str) -> bool:
    """Whether it is a cache, whole or not: what is wrong with it is told when it is opened."""
    folder = Path(path)
    return (folder / _CACHE).is_file() or any(folder.glob(_SEALS))


def _what(path: str) -> str:
    if "://" in path:
        return "a location"
    if not Path(path).exists():
        return "nothing there"
    if is_run(path):
        return "a run"
    if _is_cache(path):
        return "a cache"
    return "a folder without either" if Path(path).is_dir() else "a file"

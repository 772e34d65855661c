"""How this process reaches remote locations: options of the filesystem, and the local cache.

Comes in: a `LocationConfig`, or the environment (``CACHEKD_STORAGE_OPTIONS``,
``CACHEKD_LOCAL_CACHE``, ``CACHEKD_LOCAL_CACHE_SIZE``). Goes out: `StoreSettings`, which every
location takes that is not told otherwise.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cachekd.config import LOCAL_CACHE_SIZE, LocationConfig, bytes_of
from cachekd.errors import ConfigError

HANDED_ON = "_CACHEKD_STORE_SETTINGS"  # to processes that this one starts
_CREDENTIAL = re.compile("key|secret|token|pass|user|account|client_id|tenant|credential")
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """How remote locations are reached.

    Attributes:
        options: of the filesystem, as fsspec takes them; they may hold secrets.
        folder: of the local cache.
        limit: bytes that it holds at most.
    """

    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    folder: str
    limit: int


_in_use: list[StoreSettings] = []


def settings() -> StoreSettings:
    """The settings in use: of the innermost `using`, else those of the environment."""
    if _in_use:
        return _in_use[-1]
    handed = os.environ.get(HANDED_ON)
    return StoreSettings(**json.loads(handed)) if handed else settings_of(LocationConfig())


@contextmanager
def using(config: LocationConfig) -> Iterator[None]:
    """Within, locations are reached as a configuration says."""
    _in_use.append(settings_of(config))
    try:
        yield
    finally:
        _in_use.pop()


def settings_of(config: LocationConfig) -> StoreSettings:
    """Settings of a configuration; what it leaves open is taken from the environment.

    Raises:
        ConfigError: a value means nothing.
    """
    folder = config.local_cache or os.environ.get("CACHEKD_LOCAL_CACHE") or _default_folder()
    size = config.local_cache_size or os.environ.get("CACHEKD_LOCAL_CACHE_SIZE")
    options = config.storage_options or _pairs(os.environ.get("CACHEKD_STORAGE_OPTIONS", ""))
    return StoreSettings(
        options={key: _value(key, value) for key, value in options.items()},
        folder=os.path.abspath(folder),
        limit=bytes_of(size or LOCAL_CACHE_SIZE),
    )


def handed_on() -> dict[str, str]:
    """Environment variables for a process of this program that this process starts."""
    return {HANDED_ON: json.dumps(asdict(settings()))}


def _default_folder() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(base) / "cachekd" / "shards")


def _pairs(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise ConfigError("CACHEKD_STORAGE_OPTIONS: expected key=value, with commas between them")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _value(name: str, value: Any) -> Any:
    """What a flag's text stands for: switches and whole numbers are not text, but of credentials.

    A password may have digits alone.
    """
    if not isinstance(value, str):
        return value
    number = value.isdecimal() and not _CREDENTIAL.search(name.lower())
    return int(value) if number else _WORDS.get(value.lower(), value)


def texts_of(options: Any) -> Iterator[str]:
    """All texts among options that may be secrets."""
    if isinstance(options, Mapping):
        for value in options.values():
            yield from texts_of(value)
    elif isinstance(options, str) and len(options) > 3:
        yield options

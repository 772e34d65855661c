"""How caches at other places than a local folder are reached, and held on this machine's disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cachekd.config._fields import option
from cachekd.errors import ConfigError

LOCAL_CACHE_SIZE = "50GB"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, kw_only=True)
class LocationConfig:
    """Where caches are that are no local folders; none of it changes what is read or written."""

    storage_options: Mapping[str, Any] = option(
        {},
        "Options of the filesystem of cache locations (fsspec's storage_options), as key=value; "
        "they are not written down anywhere.",
        group="Locations",
    )
    local_cache: str | None = option(
        None,
        "Folder that holds files of remote caches, for all runs on this machine. Default: "
        "~/.cache/cachekd/shards.",
        group="Locations",
    )
    local_cache_size: str | None = option(
        None,
        f"Bytes that this folder holds at most, such as 200GB. Default: {LOCAL_CACHE_SIZE}.",
        group="Locations",
    )


def bytes_of(text: str, name: str = "local_cache_size") -> int:
    """Bytes that a text such as 50GB, 1.5 GiB or 4096 stands for; ``name`` is of the setting.

    Raises:
        ConfigError: it stands for none, or for less than one byte.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise ConfigError(f"{name}: expected bytes, such as 50GB; found {text!r:.80}")
    unit = match[2].upper()
    found = int(float(match[1]) * (_BINARY[unit] if match[3] else _UNITS[unit]))
    if found < 1:
        raise ConfigError(f"{name}: expected at least one byte; found {text!r:.80}")
    return found

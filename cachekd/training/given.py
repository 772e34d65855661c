"""Caches as a caller may give them: opened, or by their location; one or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cachekd.errors import ConfigError

if TYPE_CHECKING:
    from cachekd.store.reader import Cache

Location = str | os.PathLike[str]


def opened(caches: Cache | Location | Sequence[Cache | Location]) -> list[Cache]:
    """The caches, opened where they are not.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(caches, str | os.PathLike) or not isinstance(caches, Sequence):
        return [_open(caches)]
    if not caches:
        raise ConfigError("cache: expected at least one; found none")
    return [_open(item) for item in caches]


def _open(cache: Cache | Location) -> Cache:
    if not isinstance(cache, str | os.PathLike):
        return cache
    from cachekd.store.reader import open_cache

    return open_cache(os.fspath(cache), attention=False)

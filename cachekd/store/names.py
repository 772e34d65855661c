"""Names that a file of a cache may have, and URLs as they may be told."""

from __future__ import annotations

import re

from cachekd.data import limits
from cachekd.errors import CorruptCache

_COMPONENT = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{limits.NAME_LENGTH - 1}}}(?<!\.)")


def check_name(name: str) -> str:
    """The name if it is safe below a cache folder: at most two plain components.

    Raises:
        CorruptCache: the name could lead out of the cache.
    """
    parts = name.split("/")
    if len(parts) > 2 or not all(_COMPONENT.fullmatch(part) for part in parts):
        raise CorruptCache(
            f"{name!r:.200} is not a file name that a cache may hold; the file that names it was "
            "altered"
        )
    return name


def shown(url: str) -> str:
    """A URL as messages and records may hold it: without what signs it or who it is opened as."""
    if "://" not in url:
        return url
    return re.sub(r"[?#].*", "?...", re.sub(r"//[^/@]*@", "//...@", url))

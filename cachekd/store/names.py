"""Names that a file of a cache may have, and URLs as they may be told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from cachekd.data import limits
from cachekd.errors import CorruptCache, StoreError

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


def altered(path: str, what: str) -> CorruptCache:
    """The error for a file whose bytes are not those that were written."""
    return CorruptCache(
        f"{path}: {what}. The file was altered: restore it, or delete it and run the "
        "precompute command again to make it anew"
    )


def gone(root: str) -> StoreError:
    """The error for a cache's folder that is there no more."""
    return StoreError(f"{root} went away while it was worked on")


def missing(path: str) -> CorruptCache:
    """The error for a file of a cache that should be there and is not."""
    mend = "Restore it, or run the precompute command again to make it anew"
    if path.rpartition("/")[2] in ("cache.json", "capture.json"):
        mend = (
            "It says whose the cache is: restore it from a copy (a lost cache.json of a cache "
            "without attention is also written anew by the precompute command of its teacher)"
        )
    return CorruptCache(
        f"{path} is missing; it was deleted, or the cache was copied only in part. {mend}"
    )


def not_plain(path: str) -> CorruptCache:
    """The error for a name below a cache that is no plain file or folder."""
    return CorruptCache(
        f"{path}: expected a plain file in a plain folder, found a link or another kind of file; "
        "links below a cache are not followed. Put the file itself there"
    )


def too_large(path: str, most: int) -> CorruptCache:
    """The error for a file that is larger than what is read."""
    return CorruptCache(
        f"{path}: at most {most} bytes of such a file are read (cachekd limits); it was altered"
    )


@contextmanager
def told(root: str, name: str) -> Iterator[None]:
    """Within, errors of the operating system about a file below a cache become those of a cache."""
    path = f"{root}/{name}" if name else root
    try:
        yield
    except FileNotFoundError as error:
        raise (missing(path) if name else gone(root)) from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise StoreError(f"cannot read {path}: it is larger than the memory") from error


def cannot_write(path: str, size: int, error: OSError) -> StoreError:
    """The error for a file that cannot be written."""
    return StoreError(
        f"cannot write {path} ({size} bytes): {error.strerror or error}. What was committed before "
        "is whole; free space or fix access, then run the same command again"
    )


def shown(url: str) -> str:
    """A URL as messages and records may hold it: without what signs it or who it is opened as."""
    if "://" not in url:
        return url
    return re.sub(r"[?#].*", "?...", re.sub(r"//[^/@]*@", "//...@", url))

"""What a listing of a folder tells of its files: sizes, times and, on S3, checksums.

Comes in: a folder of this machine, or a path on an fsspec filesystem. Goes out: an `Entry` a file.
One request lists a thousand objects of S3; to ask for each of them would take a thousand.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_ETAG = re.compile(r'"?([0-9a-f]{32}(?:-[0-9]+)?)"?')
_TIMES = ("LastModified", "mtime", "last_modified", "updated", "created")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file as a listing tells of it.

    Attributes:
        size: bytes.
        modified: seconds since 1970, or None where the filesystem does not tell.
        etag: of an object of S3 that is not encrypted with a key of the user's: the MD5 of one
            that came whole, the MD5 of the MD5s of its parts, and their number, of another.
    """

    size: int
    modified: float | None = None
    etag: str | None = None


def local_folders(path: str) -> list[str]:
    """Names of the folders below one of this machine; links are not followed."""
    try:
        with os.scandir(path) as listing:
            return [item.name for item in listing if item.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def local_entries(path: str) -> dict[str, Entry]:
    """Plain files of a folder of this machine, by name; none where there is no folder."""
    found = {}
    try:
        with os.scandir(path) as listing:
            for item in listing:
                told = item.stat(follow_symlinks=False)
                if stat.S_ISREG(told.st_mode):
                    found[item.name] = Entry(size=told.st_size, modified=told.st_mtime)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return found


def entries_of(listed: Iterable[dict[str, Any]]) -> dict[str, Entry]:
    """Files of a listing of fsspec's, by name."""
    return {
        _base(item): Entry(
            size=int(item.get("size") or 0), modified=_modified(item), etag=_etag(item)
        )
        for item in listed
        if item["type"] == "file" and _base(item)
    }


def folders_of(listed: Iterable[dict[str, Any]]) -> list[str]:
    """Names of the folders of a listing of fsspec's."""
    return [_base(item) for item in listed if item["type"] == "directory"]


def _base(item: dict[str, Any]) -> str:
    return str(item["name"]).rstrip("/").rsplit("/", 1)[-1]


def _modified(item: dict[str, Any]) -> float | None:
    for name in _TIMES:
        value = item.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


def _etag(item: dict[str, Any]) -> str | None:
    match = _ETAG.fullmatch(str(item.get("ETag", "")))
    return match[1] if match and item.get("StorageClass") else None

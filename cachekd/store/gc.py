"""``gc``: unite small shards, and take away what nothing needs.

Comes in: a `GcConfig`. Goes out: a report; without ``yes`` nothing is changed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cachekd.config import GcConfig, bytes_of
from cachekd.store.claims import alone
from cachekd.store.collect import find_garbage, take_away
from cachekd.store.compact import compact
from cachekd.store.io import Location
from cachekd.store.layout import FOLDERS
from cachekd.store.settings import using

_HOUR = 3600.0


def collect(config: GcConfig) -> dict[str, Any]:
    """Compact a cache where that was asked for, then take away what nothing names.

    Raises:
        CacheNotFound: there is no cache.
        StoreError: another process writes it, or a file cannot be written or taken away.
        CorruptCache: a document does not parse, or a shard is altered; nothing was taken away.
    """
    with using(config):
        return _collect(config, Location(config.cache))


def _collect(config: GcConfig, location: Location) -> dict[str, Any]:
    with alone(location):
        report: dict[str, Any] = {"cache": location.url, "dry_run": not config.yes}
        if config.compact:
            done = compact(location, bytes_of(config.target_size), dry_run=not config.yes)
            report |= {
                "shards_before": done.shards_before,
                "shards_after": done.shards_after,
                "bytes_before": done.bytes_before,
                "bytes_after": done.bytes_after,
                "duplicates": done.duplicates,
            }
        # Times of files are times of day, so this is one of the few places that compares them.
        age, now = config.older_than * _HOUR, datetime.now(UTC).timestamp()
        garbage = find_garbage(location, age, now)
        files, swept = garbage.files, 0
        if config.yes:
            swept = location.sweep(FOLDERS)
            files = take_away(location, garbage, age, now)
    return {
        **report,
        "files": len(files),
        "bytes": sum(files.values()),
        "files_spared": len(garbage.spared),
        "bytes_spared": sum(garbage.spared.values()),
        "temporary_files_swept": swept,
    }

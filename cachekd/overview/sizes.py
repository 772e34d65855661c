"""What a cache takes on its disk: bytes by kind of file, and by column of its tables.

In: where a cache is and its seal. Out: bytes, of the real files. Columns are measured in the shards
that a report has drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cachekd.errors import CorruptCache
from cachekd.store.io import Location
from cachekd.store.layout import (
    ATTENTION_CAPTURE,
    CAPTURE,
    attention_name,
    index_name,
    prior_name,
    samples_name,
    shard_name,
)
from cachekd.store.manifest import Manifest
from cachekd.store.pages import column_bytes

_LOGS = ("plans", "units")


def bytes_of(location: Location, manifest: Manifest, shards: Sequence[str]) -> dict[str, Any]:
    """Bytes of a sealed cache.

    Args:
        location: of the cache.
        manifest: its seal.
        shards: digests of logits shards whose columns are measured.

    Returns:
        ``kinds``: bytes by kind of file; ``total``; ``columns``: bytes of each column in the
        measured shards, ``rest`` of them being footers; ``column_tokens``: tokens of these shards.

    Raises:
        CorruptCache: a file of the seal is missing, or no table.
    """
    attention = [facts.digest for facts in manifest.attention.values()]
    kinds = {
        "logits": _sum(location, map(shard_name, manifest.shards)),
        "attention": _sum(location, map(attention_name, attention)),
        "samples": _sum(location, map(samples_name, manifest.samples)),
        "index": _sum(location, [index_name(manifest.index)]),
        "priors": _sum(location, map(prior_name, manifest.priors)),
        "responses written by the teacher": _sum(
            location, [f"generated/{name}" for name in location.names("generated")]
        ),
        "plans, commit records and seals": _sum(location, _records(location)),
    }
    held = {kind: size for kind, size in kinds.items() if size or kind == "logits"}
    return {
        "kinds": held,
        "total": sum(held.values()),
        "columns": _columns(location, shards),
        "column_tokens": sum(manifest.shards[digest].tokens for digest in shards),
    }


def _sum(location: Location, names: Iterable[str]) -> int:
    return sum(location.size(name) for name in names)


def _records(location: Location) -> list[str]:
    """Files that say what was done."""
    below = [f"{folder}/{name}" for folder in _LOGS for name in location.names(folder)]
    captures = [name for name in (CAPTURE, ATTENTION_CAPTURE) if location.exists(name)]
    return [*location.names(), *captures, *below]


def _columns(location: Location, shards: Sequence[str]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for digest in shards:
        name = shard_name(digest)
        data = memoryview(location.map(name))
        try:
            found = column_bytes(data)
        except ValueError as error:
            raise CorruptCache(f"{location.path(name)}: {error}; the file was altered") from error
        found["rest"] = len(data) - sum(found.values())
        for column, size in found.items():
            sums[column] = sums.get(column, 0) + size
    return sums

"""Rows that a teacher gave no distribution of and that were let go: which, of which document.

They are empty in their shard, as rows that were not asked for are; only this record tells them
apart. Comes in and goes out: JSON of commit records and seals, which say nothing where there are
none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.data.digests import KEY_BYTES
from cachekd.errors import CorruptCache
from cachekd.store.index import KeyIndex

Skipped = Mapping[bytes, tuple[int, ...]]
"""Ascending row numbers by sample key; no key without rows."""
FIELD = "skipped_rows"


def dump_skipped(skipped: Skipped) -> dict[str, Any]:
    """The field of a document; none if nothing was let go."""
    return {FIELD: plain(skipped)} if skipped else {}


def plain(skipped: Skipped) -> dict[str, list[int]]:
    """As JSON types, keys in hex."""
    return {key.hex(): list(rows) for key, rows in sorted(skipped.items())}


def load_skipped(document: Mapping[str, Any]) -> Skipped:
    """From the field of a document, or from none.

    Raises:
        ValueError, TypeError, AttributeError: it is no such field.
    """
    return parse(document.get(FIELD, {}))


def parse(value: Mapping[str, Any]) -> Skipped:
    """From JSON types (errors of `load_skipped`)."""
    found = {bytes.fromhex(key): tuple(rows) for key, rows in value.items()}
    for key, rows in found.items():
        whole = all(type(row) is int and row >= 0 for row in rows)
        if len(key) != KEY_BYTES or not rows or not whole or list(rows) != sorted(set(rows)):
            raise ValueError(f"skipped rows {rows} of {key.hex()}")
    return found


def in_force(by_shard: Mapping[str, Skipped], index: KeyIndex) -> Skipped:
    """What holds for the records that are read, where two shards hold one key."""
    found = {}
    for digest, skipped in by_shard.items():
        for key, rows in skipped.items():
            place = index.find(key)
            if place is not None and index.shards[place[0]] == digest:
                found[key] = rows
    return found


def marked(rows: tuple[int, ...] | None, count: int) -> NDArray[np.bool_] | None:
    """The rows of a document that were let go, bool [L-1]; None if none were.

    Raises:
        CorruptCache: the document does not have these rows.
    """
    if rows is None:
        return None
    if rows[-1] >= count:
        raise CorruptCache(
            f"row {rows[-1]} of a record is said to be left out; it has {count} rows"
        )
    return np.isin(np.arange(count), rows)

"""Where each key of a score store stands: 32 bytes a record in memory, and a little for new ones.

In: entries as files are read or written. Out: file, offset and length of a key. Entries lie sorted
in one array; new ones wait in a dictionary until they are an eighth of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.data.digests import KEY_BYTES
from cachekd.data.packed import Keys

ENTRY = np.dtype([("key", f"S{KEY_BYTES}"), ("file", "<i4"), ("length", "<u4"), ("offset", "<i8")])
_PLACE = np.dtype([("file", "<i4"), ("offset", "<i8"), ("length", "<u4")])
Entries = NDArray[np.void]
Place = tuple[int, int, int]
"""File, offset and length."""

_FEW = 4096


def entries_of(rows: Sequence[tuple[bytes, int, int, int]]) -> Entries:
    """Entries of keys with file, length and offset."""
    return np.array(rows, dtype=ENTRY)


def sorted_once(entries: Entries) -> Entries:
    """Entries by key; of equal keys the first."""
    entries = entries[np.argsort(entries["key"], kind="stable")]
    keys = entries["key"]
    new = np.ones(len(keys), dtype=np.bool_)
    new[1:] = keys[1:] != keys[:-1]
    return entries if new.all() else entries[new]


class ScoreIndex:
    """Entries by key. Of a key that comes twice the first stays: its values are equal."""

    def __init__(self) -> None:
        self._set(np.empty(0, ENTRY))

    def _set(self, entries: Entries) -> None:
        self._keys = np.ascontiguousarray(entries["key"])  # contiguous: a search copies no other
        self._places = entries[["file", "offset", "length"]].astype(_PLACE)
        self._recent: dict[bytes, Place] = {}

    def __len__(self) -> int:
        return len(self._keys) + len(self._recent)

    def add(self, entries: Entries) -> None:
        """Take entries up; keys that are known are left out."""
        known = self.find(Keys(np.ascontiguousarray(entries["key"])))
        entries = sorted_once(entries[[place is None for place in known]])
        if len(self._recent) + len(entries) > _FEW + len(self._keys) // 8:
            self._set(sorted_once(np.concatenate([self._all(), entries])))
            return
        keys = Keys(np.ascontiguousarray(entries["key"]))
        self._recent.update(zip(keys, map(_place, entries), strict=True))

    def find(self, keys: Sequence[bytes]) -> list[Place | None]:
        """Where each of these keys stands, or None."""
        wanted = Keys.of(keys)
        at = np.searchsorted(self._keys, wanted.array)
        inside = np.flatnonzero(at < len(self._keys))
        hit = np.zeros(len(wanted), dtype=np.bool_)
        hit[inside] = self._keys[at[inside]] == wanted.array[inside]
        return [
            _place(self._places[at[i]]) if hit[i] else self._recent.get(key)
            for i, key in enumerate(wanted)
        ]

    def forget(self, key: bytes) -> None:
        """Leave a key out from now on, so that it can be written again."""
        entries = self._all()
        wanted = np.frombuffer(key, dtype=f"S{KEY_BYTES}")[0]
        self._set(sorted_once(entries[entries["key"] != wanted]))

    def _all(self) -> Entries:
        entries = np.empty(len(self._keys), ENTRY)
        entries["key"] = self._keys
        for name in _PLACE.names or ():
            entries[name] = self._places[name]
        rows = [(key, file, length, at) for key, (file, at, length) in self._recent.items()]
        return np.concatenate([entries, entries_of(rows)])


def _place(entry: Any) -> Place:
    return int(entry["file"]), int(entry["offset"]), int(entry["length"])

"""The index of a cache: key -> shard and row, as one sorted binary file.

Layout, little-endian: 8 bytes ``CKDINDEX``; uint32 version 1; uint32 number of shards S; uint64
number of keys N; S shard digests of 32 bytes; N keys of 16 bytes, ascending; N uint32 shard
numbers; N uint32 row numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cachekd.data import limits
from cachekd.data.packed import Keys
from cachekd.data.spool import spilled
from cachekd.errors import CorruptCache
from cachekd.types import Int64

_MAGIC = b"CKDINDEX"
_PART = 1 << 17
_HEAD = struct.Struct("<8sIIQ")


class KeyIndex:
    """Where the targets of a key are."""

    def __init__(self, shards: Sequence[str], keys: np.ndarray, places: np.ndarray) -> None:
        self.shards = list(shards)
        self._keys = keys
        self._places = places

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> Keys:
        """All keys, ascending."""
        return Keys(self._keys)

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Shard number and row of a key, or None."""
        wanted = np.frombuffer(key, dtype="S16")
        place = int(np.searchsorted(self._keys, wanted[0]))
        if place == len(self._keys) or self._keys[place] != wanted[0]:
            return None
        return int(self._places[0, place]), int(self._places[1, place])

    def holds(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether each of these keys has a place, [P]."""
        if not len(self._keys):
            return np.zeros(len(keys), dtype=np.bool_)
        at = self._at(keys)
        return np.asarray(self._keys[np.minimum(at, len(self._keys) - 1)] == keys.array)

    def shards_of(self, keys: Keys) -> Int64:
        """Shard number of each of these keys, [P]; all of them have a place."""
        shards: Int64 = self._places[0, self._at(keys)].astype(np.int64)
        return shards

    def _at(self, keys: Keys) -> Int64:
        """Where each of these keys is or would be, [P]."""
        heads = Keys(self._keys).heads
        if (heads[1:] == heads[:-1]).any():  # nearly never: then all of a key is compared
            return np.searchsorted(self._keys, keys.array)
        at = np.empty(len(keys), dtype=np.int64)
        for first in range(0, len(keys), _PART):
            part = slice(first, first + _PART)
            wanted = keys[part].heads
            order = np.argsort(wanted)  # neighbours are looked up in the same pages
            at[part][order] = np.searchsorted(heads, wanted[order])
        return at

    def dump(self) -> bytes:
        """Bytes of the index file."""
        head = _HEAD.pack(_MAGIC, 1, len(self.shards), len(self._keys))
        digests = b"".join(bytes.fromhex(shard) for shard in self.shards)
        places = self._places.astype("<u4", copy=False)
        return b"".join(
            [head, digests, Keys(self._keys).data.data, np.ascontiguousarray(places).data]
        )

    def spilled(self) -> KeyIndex:
        """The same, on disk: see `cachekd.data.spool.spilled`."""
        return KeyIndex(self.shards, spilled(self._keys), spilled(self._places))


def build_index(shards: Mapping[str, Sequence[bytes]]) -> KeyIndex:
    """Index of shards, given by digest with their keys in row order.

    Of two shards that hold one key, the one with the lower digest is used.
    """
    names = sorted(shards)
    counts = [len(shards[name]) for name in names]
    keys = Keys.joined([Keys.of(shards[name]) for name in names]).array
    order = np.argsort(keys, kind="stable").astype(np.uint32)
    keys = keys[order]
    if not (keys[1:] > keys[:-1]).all():
        first = np.ones(len(keys), dtype=bool)
        first[1:] = keys[1:] != keys[:-1]
        keys, order = keys[first], order[first]
    ends = np.cumsum(counts, dtype=np.uint32) if counts else np.zeros(0, np.uint32)
    places = np.empty((2, len(keys)), dtype=np.uint32)
    places[0] = np.searchsorted(ends, order, side="right")
    begins = np.concatenate([np.zeros(1, np.uint32), ends])
    places[1] = order - begins[places[0]]
    return KeyIndex(names, keys, places)


def load_index(name: str, data: bytes | memoryview) -> KeyIndex:
    """Parse an index file.

    Raises:
        CorruptCache: its size or order is not what its head says.
    """
    if len(data) < _HEAD.size:
        raise CorruptCache(f"{name}: too short for an index")
    magic, version, n_shards, n_keys = _HEAD.unpack_from(data)
    start = _HEAD.size + 32 * n_shards
    if magic != _MAGIC or version != 1 or len(data) != start + 24 * n_keys:
        raise CorruptCache(f"{name}: its head does not fit its size; the file was altered")
    if n_shards > limits.SHARDS or n_keys > limits.KEYS:
        raise CorruptCache(f"{name}: {n_shards} shards and {n_keys} keys are more than are read")
    shards = [data[_HEAD.size + 32 * i : _HEAD.size + 32 * (i + 1)].hex() for i in range(n_shards)]
    keys = np.frombuffer(data, dtype="S16", count=n_keys, offset=start)
    places = np.frombuffer(data, dtype="<u4", offset=start + 16 * n_keys).reshape(2, n_keys)
    if n_keys and (places[0].max() >= n_shards or not (keys[1:] > keys[:-1]).all()):
        raise CorruptCache(f"{name}: its keys are out of order or point nowhere")
    if sorted(set(shards)) != shards:
        raise CorruptCache(f"{name}: its shards are out of order")
    return KeyIndex(shards, keys, places)

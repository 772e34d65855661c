"""Keys and labels of many records, packed: a few bytes each and no Python object that stays.

In: digests of 16 bytes, or labels of which few differ. Out: sequences of them over flat arrays, and
`Places`, which finds keys by binary search.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from cachekd.data.digests import KEY_BYTES
from cachekd.data.spool import Spool, spilled
from cachekd.types import Int32, Int64, UInt8

Packed = NDArray[np.bytes_]
_PART = 1 << 16


class Keys(Sequence[bytes]):
    """Digests of 16 bytes, in order [P].

    Args:
        array: the digests, dtype S16 [P]. Compare and sort it as it is; its single elements lose
            zeros at their end, which ``keys[i]`` does not.
    """

    __slots__ = ("array",)
    __hash__ = None  # type: ignore[assignment]  # equal to lists of the same digests

    def __init__(self, array: Packed) -> None:
        self.array = array

    @classmethod
    def of(cls, keys: Iterable[bytes]) -> Keys:
        """Digests packed one by one, so that none of them stays as an object."""
        if isinstance(keys, Keys):
            return keys
        data = bytearray()
        for key in keys:
            assert len(key) == KEY_BYTES, "a digest"
            data += key
        return cls(np.frombuffer(data, f"S{KEY_BYTES}"))

    @classmethod
    def joined(cls, parts: Sequence[Keys]) -> Keys:
        """All digests of all parts, in order."""
        return cls(np.concatenate([np.empty(0, f"S{KEY_BYTES}"), *(part.array for part in parts)]))

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Keys: ...
    def __getitem__(self, place: int | slice) -> bytes | Keys:
        if isinstance(place, slice):
            return Keys(self.array[place])
        return bytes(self.array[place].ljust(KEY_BYTES, b"\0"))

    def __iter__(self) -> Iterator[bytes]:
        return (bytes(key.ljust(KEY_BYTES, b"\0")) for key in self.array)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        if not isinstance(other, Keys):
            return len(self) == len(other) and list(self) == list(other)
        return np.array_equal(self.array, other.array)

    @classmethod
    def spooled(cls, keys: Iterable[bytes]) -> Keys:
        """Digests packed one by one on disk, and mapped: see `cachekd.data.spool`."""
        spool = Spool()
        for key in keys:
            assert len(key) == KEY_BYTES, "a digest"
            spool.append(key)
        return cls(spool.mapped(f"S{KEY_BYTES}"))

    def spilled(self) -> Keys:
        """The same, on disk: see `cachekd.data.spool.spilled`."""
        return Keys(spilled(self.array))

    def take(self, places: NDArray[np.integer] | Sequence[int]) -> Keys:
        """The digests at these places."""
        return Keys(self.array[np.asarray(places, dtype=np.int64)])

    @property
    def data(self) -> UInt8:
        """The digests one after another, as bytes."""
        return np.ascontiguousarray(self.array).view(np.uint8)

    @property
    def heads(self) -> NDArray[np.uint64]:
        """The first half of each digest as a number [P]: in the same order, and faster to compare.

        Digests with different heads differ; those with equal ones may.
        """
        return np.ascontiguousarray(self.array).view(">u8")[::2].astype(np.uint64)


def has_copies(keys: Keys) -> bool:
    """Whether two of these digests may be equal: some have equal heads."""
    heads = keys.heads
    heads.sort()
    return bool((heads[1:] == heads[:-1]).any())


class Places:
    """Where each digest of a list stands: the digests sorted, with their places (20 bytes each).

    Args:
        keys: digests; some may be equal.
        on_disk: keep both there, and mapped: see `cachekd.data.spool`.
    """

    def __init__(self, keys: Keys, *, on_disk: bool = False) -> None:
        self._order: Int32 = np.argsort(keys.array, kind="stable").astype(np.int32)
        if not on_disk:
            self._sorted = keys.array[self._order]
            return
        self._order, spool = spilled(self._order), Spool()
        for first in range(0, len(keys), _PART):
            spool.append(keys.take(self._order[first : first + _PART]).data.data)
        self._sorted = spool.mapped(keys.array.dtype)

    def find(self, keys: Keys) -> Int64:
        """First place of each of these digests, or -1 where it is not in the list."""
        at = np.searchsorted(self._sorted, keys.array)
        found = np.full(len(keys), -1, dtype=np.int64)
        inside = np.flatnonzero(at < len(self._sorted))
        hit = inside[self._sorted[at[inside]] == keys.array[inside]]
        found[hit] = self._order[at[hit]]
        return found

    def all_of(self, key: bytes) -> Int32:
        """All places of a digest, ascending."""
        wanted = np.frombuffer(key, dtype=self._sorted.dtype)
        first = np.searchsorted(self._sorted, wanted, side="left")[0]
        return self._order[first : np.searchsorted(self._sorted, wanted, side="right")[0]]

    def firsts(self) -> Int64:
        """First place of each different digest, ascending."""
        return np.sort(self._order[self._new()]).astype(np.int64)

    def copies(self) -> Int32:
        """How many equal digests stand before each place, [P]."""
        ranks = np.arange(len(self._sorted), dtype=np.int32)
        ranks -= np.maximum.accumulate(np.where(self._new(), ranks, 0))
        copies = np.empty_like(ranks)
        copies[self._order] = ranks
        return copies

    def _new(self) -> NDArray[np.bool_]:
        """Whether a digest in sorted order is another than the one before."""
        new = np.ones(len(self._sorted), dtype=np.bool_)
        new[1:] = self._sorted[1:] != self._sorted[:-1]
        return new


class Labels(Sequence[str]):
    """Labels of which few differ, in order [P].

    Args:
        codes: number of each label's name, int32 [P].
        names: the different labels.
    """

    __slots__ = ("codes", "names")
    __hash__ = None  # type: ignore[assignment]  # equal to lists of the same labels

    def __init__(self, codes: Int32, names: Sequence[str]) -> None:
        self.codes = codes
        self.names = names

    @classmethod
    def joined(cls, parts: Sequence[Labels]) -> Labels:
        """All labels of all parts, in order."""
        numbers: dict[str, int] = {}
        codes = [np.empty(0, dtype=np.int32)]
        for part in parts:
            own = [numbers.setdefault(name, len(numbers)) for name in part.names]
            codes.append(np.array(own, dtype=np.int32)[part.codes])
        return cls(np.concatenate(codes), list(numbers))

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Labels: ...
    def __getitem__(self, place: int | slice) -> str | Labels:
        if isinstance(place, slice):
            return Labels(self.codes[place], self.names)
        return self.names[int(self.codes[place])]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == theirs for mine, theirs in zip(self, other, strict=True)
        )

    def take(self, places: NDArray[np.integer] | Sequence[int]) -> Labels:
        """The labels at these places."""
        return Labels(self.codes[np.asarray(places, dtype=np.int64)], self.names)

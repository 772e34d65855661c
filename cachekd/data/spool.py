"""Spools: prepared samples and files wait on disk, not in memory, until they are used.

Comes in: samples as they are prepared, and the bytes of files to be written later. Goes out: the
same by place or by digest. All lies in files without a name in the folder for temporary files
(``TMPDIR``), which vanish with the process; nothing of a sample stays in memory. Samples are read,
not mapped: mapped pages count as memory of the process until the system wants them back. Only what
is searched is mapped (`spilled`, `Spool.mapped`), some tens of bytes a sample. What is small, below
a megabyte, stays in memory.
"""

from __future__ import annotations

import os
import struct
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np

from cachekd.data.digests import bytes_digest
from cachekd.errors import StoreError
from cachekd.types import Int64, Sample

_WAITING_BYTES = 1 << 20
_FACTS = struct.Struct("<qqdqii")  # end of its roles, prompt, weight, row, domain, source
_PART = 1 << 16
_Array = TypeVar("_Array", bound=np.ndarray[Any, Any])


class Spool:
    """Bytes that are appended, and read from anywhere; few of them stay in memory."""

    def __init__(self) -> None:
        self._file: Any = None  # made when there is much to write
        self._waiting = bytearray()
        self.size = 0

    def append(self, data: Any) -> None:
        """Put bytes (or a buffer) behind what is there.

        Raises:
            StoreError: the disk is full; names the folder.
        """
        self._waiting += data
        self.size += memoryview(data).nbytes
        if len(self._waiting) >= _WAITING_BYTES:
            self._write()

    def read(self, start: int, size: int) -> bytearray:
        """So many bytes from a place on, as a copy of their own.

        Raises:
            StoreError: what was appended last does not fit on the disk.
        """
        if self._file is None:
            return self._waiting[start : start + size]
        if start + size > self.size - len(self._waiting):
            self._write()
        data = bytearray(size)
        found = os.preadv(self._file.fileno(), [data], start)
        assert found == size, "only what was appended is read"
        return data

    def mapped(self, dtype: str | np.dtype[Any]) -> np.ndarray:
        """All bytes as an array, mapped unless they are few (errors of `read`)."""
        if self.size < _WAITING_BYTES:
            return np.frombuffer(self.read(0, self.size), dtype)
        self._write()
        return np.memmap(self._file, dtype, "r").view(np.ndarray)

    def _write(self) -> None:
        if self._file is None:
            self._file = _temporary()
            weakref.finalize(self, self._file.close)
        with memoryview(self._waiting) as left:
            _write(self._file, left)
        self._waiting.clear()


def _temporary() -> Any:
    """A file without a name."""
    try:
        return tempfile.TemporaryFile(prefix="cachekd-", buffering=0)
    except OSError as error:
        raise _full(error) from error


def _write(file: Any, data: memoryview) -> None:
    done = 0
    while done < len(data):
        try:
            done += file.write(data[done:])
        except OSError as error:
            raise _full(error) from error


def _full(error: OSError) -> StoreError:
    return StoreError(
        f"what waits on disk cannot be kept in {tempfile.tempdir or '(TMPDIR)'}: {error}. Free "
        "space there, or set TMPDIR to a folder on a larger disk"
    )


def spilled(array: _Array) -> _Array:
    """The same values, mapped from a file: the system takes their memory back when it wants to.

    A small array stays as it is.

    Raises:
        StoreError: the disk is full; names the folder.
    """
    if array.nbytes < _WAITING_BYTES:
        return array
    with _temporary() as file:
        _write(file, memoryview(np.ascontiguousarray(array).view(np.uint8).data).cast("B"))
        mapped = np.memmap(file, array.dtype, "r", shape=array.shape)
    return mapped.view(np.ndarray)  # type: ignore[return-value]


class SpooledSamples(Sequence[Sample]):
    """Samples in the order they are appended; each is made anew when it is asked for."""

    def __init__(self) -> None:
        self._tokens, self._roles, self._facts = Spool(), Spool(), Spool()
        self._names: dict[str, int] = {}
        self._texts: list[str] = []

    def append(self, sample: Sample) -> None:
        """Put a sample behind those that are there (errors of `Spool.append`)."""
        self._tokens.append(np.ascontiguousarray(sample.input_ids, np.int32).data)
        self._roles.append(np.ascontiguousarray(sample.roles, np.uint8).data)
        prompt = -1 if sample.prompt_length is None else sample.prompt_length
        names = self._number(sample.domain), self._number(sample.source)
        self._facts.append(_FACTS.pack(self._roles.size, prompt, sample.weight, sample.row, *names))

    def __len__(self) -> int:
        return self._facts.size // _FACTS.size

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> list[Sample]: ...
    def __getitem__(self, place: int | slice) -> Sample | list[Sample]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"there are {len(self)} samples; asked for number {place}")
        place %= len(self)
        before = min(place, 1)
        facts = self._facts.read((place - before) * _FACTS.size, (before + 1) * _FACTS.size)
        start = _FACTS.unpack_from(facts)[0] if before else 0
        end, prompt, weight, row, domain, source = _FACTS.unpack_from(facts, before * _FACTS.size)
        count = end - start
        return Sample(
            input_ids=np.frombuffer(self._tokens.read(4 * start, 4 * count), np.int32),
            roles=np.frombuffer(self._roles.read(start, count), np.uint8),
            prompt_length=None if prompt < 0 else prompt,
            domain=self._texts[domain],
            weight=weight,
            source=self._texts[source],
            row=row,
        )

    def lengths(self) -> Int64:
        """Tokens of each sample, [P]."""
        lengths_P = np.empty(len(self), np.int64)
        for first in range(0, len(self), _PART):
            part = lengths_P[first : first + _PART]
            data = self._facts.read(first * _FACTS.size, len(part) * _FACTS.size)
            part[:] = np.frombuffer(data, np.int64).reshape(-1, _FACTS.size // 8)[:, 0]
        lengths_P[1:] -= lengths_P[:-1].copy()
        return lengths_P

    def _number(self, text: str) -> int:
        if text not in self._names:
            self._names[text] = len(self._texts)
            self._texts.append(text)
        return self._names[text]


class SpooledFiles(Mapping[str, Any]):
    """Contents of files by their digests."""

    def __init__(self) -> None:
        self._spool = Spool()
        self._parts: dict[str, tuple[int, int]] = {}

    def add(self, data: Any) -> None:
        """Keep the bytes of a file (errors of `Spool.append`)."""
        self._parts[bytes_digest(data)] = (self._spool.size, memoryview(data).nbytes)
        self._spool.append(data)

    def __getitem__(self, digest: str) -> bytearray:
        return self._spool.read(*self._parts[digest])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

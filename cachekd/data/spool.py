"""Spools: prepared samples and files wait on disk, not in memory, until they are used.

Comes in: samples as they are prepared, and the bytes of files to be written later. Goes out: the
same by place or by digest. Tokens and roles lie in files without a name in the folder for temporary
files (``TMPDIR``), which vanish with the process. They are read, not mapped: mapped pages would
count as memory of the process. What stays in memory of a sample is about 40 bytes.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from cachekd.data.digests import bytes_digest
from cachekd.errors import StoreError
from cachekd.types import Int64, Sample

_WAITING_BYTES = 1 << 20


class Spool:
    """Bytes that are appended, and read from anywhere."""

    def __init__(self) -> None:
        file = tempfile.TemporaryFile(prefix="cachekd-", buffering=0)  # noqa: SIM115
        weakref.finalize(self, file.close)
        self._file = file
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
        if start + size > self.size - len(self._waiting):
            self._write()
        data = bytearray(size)
        found = os.preadv(self._file.fileno(), [data], start)
        assert found == size, "only what was appended is read"
        return data

    def _write(self) -> None:
        with memoryview(self._waiting) as left:
            done = 0
            while done < len(left):
                try:
                    done += self._file.write(left[done:])
                except OSError as error:
                    raise _full(error) from error
        self._waiting.clear()


def _full(error: OSError) -> StoreError:
    return StoreError(
        f"prepared data cannot be kept in {tempfile.gettempdir()}: {error}. Free space there, or "
        "set TMPDIR to a folder on a larger disk"
    )


class SpooledSamples(Sequence[Sample]):
    """Samples in the order they are appended; each is made anew when it is asked for."""

    def __init__(self) -> None:
        self._tokens, self._roles = Spool(), Spool()
        self._ends = array("q")
        self._prompts, self._weights, self._rows = array("q"), array("d"), array("q")
        self._domains, self._sources = array("i"), array("i")
        self._names: dict[str, int] = {}
        self._texts: list[str] = []

    def append(self, sample: Sample) -> None:
        """Put a sample behind those that are there (errors of `Spool.append`)."""
        self._tokens.append(np.ascontiguousarray(sample.input_ids, np.int32).data)
        self._roles.append(np.ascontiguousarray(sample.roles, np.uint8).data)
        self._ends.append(self._roles.size)
        self._prompts.append(-1 if sample.prompt_length is None else sample.prompt_length)
        self._weights.append(sample.weight)
        self._rows.append(sample.row)
        self._domains.append(self._number(sample.domain))
        self._sources.append(self._number(sample.source))

    def __len__(self) -> int:
        return len(self._ends)

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
        start = self._ends[place - 1] if place else 0
        count = self._ends[place] - start
        prompt = self._prompts[place]
        return Sample(
            input_ids=np.frombuffer(self._tokens.read(4 * start, 4 * count), np.int32),
            roles=np.frombuffer(self._roles.read(start, count), np.uint8),
            prompt_length=None if prompt < 0 else prompt,
            domain=self._texts[self._domains[place]],
            weight=self._weights[place],
            source=self._texts[self._sources[place]],
            row=self._rows[place],
        )

    def lengths(self) -> Int64:
        """Tokens of each sample, [P]."""
        lengths_P = np.array(self._ends, np.int64)
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

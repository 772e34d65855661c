"""Segments of a score store: records of closed logs in one file, with an index at its end.

A segment is `MAGIC`, records as in a log, then its index as `ENTRY` rows sorted by key (the file
field 0), then blake2b-128 of the index, the number of rows and `END`. Its name is the sha256 of
its bytes. A segment whose index is damaged is scanned as a log is.

Compaction: closed logs and small segments become new segments, which are on disk under their names
before the old files are removed; a crash in between leaves records twice, which are equal.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cachekd.data.digests import KEY_BYTES, bytes_digest
from cachekd.data.packed import Keys
from cachekd.store.io import Location
from cachekd.store.score_index import ENTRY, Entries, entries_of, sorted_once
from cachekd.store.score_logs import LOG, MAGIC, is_closed, open_file, pack, read_record, scan

LOGS, SEGMENTS = "logs", "segments"
SEGMENT = ".seg"
_LOCK = "compact.lock"
_END = b"ckseg001"
_TAIL = struct.Struct(f"<{KEY_BYTES}sQ{len(_END)}s")
_SEGMENT_BYTES = 1 << 27  # half of what a compaction holds in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What a compaction did: records kept, records left out as damaged, and bytes that were cut."""

    records: int = 0
    damaged: int = 0
    torn_bytes: int = 0


def read_file(descriptor: int, file: int) -> tuple[Entries, int]:
    """Entries of a log or segment, and where its last whole record ends; 0: no file of ours."""
    size = os.fstat(descriptor).st_size
    if os.pread(descriptor, len(MAGIC), 0) != MAGIC:
        return np.empty(0, ENTRY), 0
    indexed = _read_index(descriptor, size)
    if indexed is None:
        return scan(descriptor, file, len(MAGIC), size)
    indexed["file"] = file
    return indexed, size


def _read_index(descriptor: int, size: int) -> Entries | None:
    """The index at the end of a segment, or None where there is none, or a damaged one."""
    if size < len(MAGIC) + _TAIL.size:
        return None
    digest, rows, end = _TAIL.unpack(os.pread(descriptor, _TAIL.size, size - _TAIL.size))
    start = size - _TAIL.size - rows * ENTRY.itemsize
    if end != _END or start < len(MAGIC):
        return None
    data = os.pread(descriptor, rows * ENTRY.itemsize, start)
    if hashlib.blake2b(data, digest_size=KEY_BYTES).digest() != digest:
        return None
    entries = np.frombuffer(data, ENTRY).copy()
    offsets, lengths = entries["offset"], entries["length"].astype(np.int64)
    inside = (offsets >= len(MAGIC)) & (offsets <= start) & (lengths <= start - offsets)
    return entries if inside.all() else None


def compact(location: Location) -> Compacted:
    """Merge closed logs into segments; nothing where there are none, or another process does it.

    Raises:
        StoreError: a segment cannot be written; nothing was removed then.
    """
    root = Path(location.path(LOGS)).parent
    with _alone(root) as alone:
        opened = _closed_logs(root) if alone else []
        if not opened:
            return Compacted()
        opened += _small_segments(root)
        try:
            made, done = _merge(location, [descriptor for _, descriptor in opened])
            for path, _ in opened:
                if path.name not in made:
                    path.unlink()
            return done
        finally:
            for _, descriptor in opened:
                os.close(descriptor)


@contextmanager
def _alone(root: Path) -> Iterator[bool]:
    """Whether this process alone compacts; the lock ends with the process that holds it."""
    descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def _closed_logs(root: Path) -> list[tuple[Path, int]]:
    opened = []
    for path in sorted((root / LOGS).glob(f"[!.]*{LOG}")):
        descriptor = open_file(path)
        ours = os.pread(descriptor, len(MAGIC), 0) == MAGIC  # else it is of another version
        if ours and is_closed(descriptor):
            opened.append((path, descriptor))
        else:
            os.close(descriptor)
    return opened


def _small_segments(root: Path) -> list[tuple[Path, int]]:
    """Segments that are worth merging again."""
    return [
        (path, open_file(path))
        for path in sorted((root / SEGMENTS).glob(f"[!.]*{SEGMENT}"))
        if path.stat().st_size < _SEGMENT_BYTES // 2
    ]


def _merge(location: Location, descriptors: Sequence[int]) -> tuple[set[str], Compacted]:
    """Names of the segments made of all good records, each key once, and counts."""
    parts, torn = [np.empty(0, ENTRY)], 0
    for file, descriptor in enumerate(descriptors):
        entries, end = read_file(descriptor, file)
        parts.append(entries)
        torn += os.fstat(descriptor).st_size - end
    entries = sorted_once(np.concatenate(parts))
    # In the order they were written: the blocks of a document stand together.
    entries = entries[np.lexsort((entries["offset"], entries["file"]))]
    made: set[str] = set()
    kept, builder = 0, _Builder()
    keys = Keys(np.ascontiguousarray(entries["key"]))
    for key, entry in zip(keys, entries, strict=True):
        value = read_record(
            descriptors[entry["file"]], key, int(entry["offset"]), int(entry["length"])
        )
        if value is None:
            continue
        kept += 1
        builder.add(key, value)
        if len(builder.data) >= _SEGMENT_BYTES:
            made.add(_publish(location, builder))
            builder = _Builder()
    if builder.rows:
        made.add(_publish(location, builder))
    return made, Compacted(records=kept, damaged=len(entries) - kept, torn_bytes=torn)


class _Builder:
    """A segment as it grows."""

    def __init__(self) -> None:
        self.data = bytearray(MAGIC)
        self.rows: list[tuple[bytes, int, int, int]] = []

    def add(self, key: bytes, value: bytes) -> None:
        self.rows.append((key, 0, len(value), len(self.data)))
        self.data += pack(key, value)

    def finish(self) -> bytes:
        index = sorted_once(entries_of(self.rows)).tobytes()
        digest = hashlib.blake2b(index, digest_size=KEY_BYTES).digest()
        return bytes(self.data + index + _TAIL.pack(digest, len(self.rows), _END))


def _publish(location: Location, builder: _Builder) -> str:
    data = builder.finish()
    name = f"{bytes_digest(data)}{SEGMENT}"
    location.create(f"{SEGMENTS}/{name}", data)
    return name

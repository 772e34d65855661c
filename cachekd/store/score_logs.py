"""Append logs of small values by 16-byte keys: one writer each, readable while it is written.

A log is `MAGIC`, then records without gaps, little-endian:

    length   uint32      bytes of the value
    key      16 bytes
    value    uint32      CRC-32 of key and value
    head     uint32      CRC-32 of the 24 bytes before
    bytes    [length]

A writer holds an exclusive ``flock`` on its log as long as it lives, however it ends: a log that
can be locked is closed. What follows the last whole record was cut off by a kill.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from cachekd.data import limits
from cachekd.data.digests import KEY_BYTES
from cachekd.errors import StoreError
from cachekd.store import disk
from cachekd.store.local import make_path
from cachekd.store.names import not_plain
from cachekd.store.score_index import Entries, entries_of
from cachekd.store.temporary import TEMPORARY

MAGIC = b"cksc0001"
LOG = ".log"
_HEAD = struct.Struct(f"<I{KEY_BYTES}sII")
_CHECKED = _HEAD.size - 4


def pack(key: bytes, value: bytes) -> bytes:
    """A record."""
    head = _HEAD.pack(len(value), key, zlib.crc32(value, zlib.crc32(key)), 0)[:_CHECKED]
    return head + struct.pack("<I", zlib.crc32(head)) + value


def read_record(descriptor: int, key: bytes, offset: int, length: int) -> bytes | None:
    """Value of the record at an offset, or None where it is not the whole record of this key."""
    if length > limits.SCORE_BYTES or offset < 0:
        return None
    data = os.pread(descriptor, _HEAD.size + length, offset)
    value = data[_HEAD.size :]
    return value if len(value) == length and data == pack(key, value) else None


def open_file(path: Path) -> int:
    """A log or segment, for reading; a pipe does not hold the caller up.

    Raises:
        FileNotFoundError: there is none.
        CorruptCache: it is no plain file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise not_plain(str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_plain(str(path))
    return descriptor


def scan(descriptor: int, file: int, start: int, size: int) -> tuple[Entries, int]:
    """Entries of the whole records from ``start`` on, and where the last of them ends.

    Values are not read: their checksums are looked at when they are.
    """
    found = []
    while start + _HEAD.size <= size:
        head = os.pread(descriptor, _HEAD.size, start)
        length, key, _, checksum = _HEAD.unpack(head)
        end = start + _HEAD.size + length
        if zlib.crc32(head[:_CHECKED]) != checksum or end > size:
            break
        found.append((key, file, length, start))
        start = end
    return entries_of(found), start


def is_closed(descriptor: int) -> bool:
    """Whether it is known that the writer of a log is gone."""
    return disk.is_free(descriptor) is True


class LogWriter:
    """A log of this process alone, under a name that no other can guess.

    Attributes:
        path: its file.
        descriptor: open for reading and writing.
        size: bytes of whole records.
    """

    def __init__(self, folder: Path) -> None:
        name = f"{secrets.token_hex(16)}{LOG}"
        self.path = folder / name
        try:
            make_path(str(folder))
            opened = disk.open_folder(str(folder))
            try:
                self.descriptor = disk.open_new(f"{TEMPORARY}{name}", opened)
                # It is locked before it has a name: no other takes it for one that was closed.
                disk.try_lock(self.descriptor)
                disk.write(self.descriptor, memoryview(MAGIC))
                disk.rename(f"{TEMPORARY}{name}", name, opened)
            finally:
                disk.close(opened)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self.size = len(MAGIC)

    def append(self, records: Iterable[tuple[bytes, bytes]], file: int) -> Entries:
        """Write records in one go; entries that say where they stand in the log ``file``.

        Raises:
            StoreError: the disk takes no more; what was written before stays whole.
        """
        found, data = [], bytearray()
        for key, value in records:
            found.append((key, file, len(value), self.size + len(data)))
            data += pack(key, value)
        try:
            view, offset = memoryview(data), self.size
            while view:
                written = disk.write_at(self.descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            disk.cut(self.descriptor, self.size)
            raise _cannot_write(self.path, error) from error
        self.size += len(data)
        return entries_of(found)

    def sync(self) -> None:
        """Wait until the disk has what was written.

        Raises:
            StoreError: it cannot.
        """
        try:
            disk.sync(self.descriptor)
        except OSError as error:
            raise _cannot_write(self.path, error) from error


def _cannot_write(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot write {path}: {error.strerror or error}. Scores that were written before are "
        "whole; free space or fix access, or choose another folder with --score-cache"
    )

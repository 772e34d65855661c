"""Copying many files of a cache at once: retried, counted, and looked at again on arrival.

Comes in: names with digests, where they are and where they go. Goes out: a `Moved`. Bytes that do
not have their digest are read again, and refused where they stay wrong; none is ever written. What
arrived is judged by its size and checksum where a listing tells both (the MD5 that S3 keeps of an
object in one part), and is read back and hashed anywhere else.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

from cachekd.data.digests import bytes_digest
from cachekd.errors import CorruptCache, Incomplete, StoreError
from cachekd.sharing.content import Blob
from cachekd.store.io import Location
from cachekd.store.listing import Entry

T = TypeVar("T")
Step = Callable[[int, int], None]  # bytes done, bytes in all
_ATTEMPTS = 5
_WAIT_SECONDS = 0.2


@dataclass(slots=True)
class Moved:
    """What a transfer has done so far.

    Attributes:
        files, bytes: that were written.
        files_skipped, bytes_skipped: that were there already.
        retried: attempts that failed and were made again.
    """

    files: int = 0
    bytes: int = 0
    files_skipped: int = 0
    bytes_skipped: int = 0
    retried: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Count, from any thread."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def report(self) -> dict[str, int]:
        """The counts as plain JSON."""
        return {
            "files_moved": self.files,
            "bytes_moved": self.bytes,
            "files_skipped": self.files_skipped,
            "bytes_skipped": self.bytes_skipped,
            "retried": self.retried,
        }


class Copier:
    """Copies files between two locations.

    Args:
        source: where they are.
        into: where they go.
        jobs: files that travel at once.
        step: called with bytes done and in all.
        stop_asked: whether to stop in good order.
    """

    def __init__(
        self,
        source: Location,
        into: Location,
        jobs: int,
        step: Step | None = None,
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self.moved = Moved()
        self._source, self._into, self._jobs = source, into, jobs
        self._step, self._stop_asked = step or (lambda done, whole: None), stop_asked
        self._remote = not (source.local and into.local)

    def copy(self, blobs: Mapping[str, Blob]) -> None:
        """Copy files that are named by their digest, and look at what arrived.

        Raises:
            CorruptCache: bytes at the source do not have their digest; names the file.
            StoreError: a file cannot be read or written.
            Incomplete: a stop was asked for.
        """
        whole = sum(blob.size or 0 for blob in blobs.values())
        sums: dict[str, str] = {}
        done = 0

        def one(name: str) -> None:
            nonlocal done
            data = self.read(name, blobs[name].digest)
            self.again(lambda: self._into.keep(name, data, blobs[name].digest))
            sums[name] = "" if self._into.local else _md5(data)
            self.moved.add(files=1, bytes=len(data))
            done += len(data)
            self._step(done, max(whole, done))

        self.each(blobs, one)
        self._look_again(blobs, sums)

    def read(self, name: str, digest: str) -> bytes:
        """Bytes of a file at the source that have this digest (errors of `copy`)."""

        def read() -> bytes:
            data: Any = self._source.map(name)
            if bytes_digest(data) != digest:
                raise _Altered(
                    f"{self._source.path(name)}: its bytes do not have the digest {digest} that "
                    "names them. Nothing of it was copied: verify that cache, and repair it first"
                )
            return data  # type: ignore[no-any-return]

        return self.again(read)

    def read_all(self, named: Mapping[str, str]) -> dict[str, bytes]:
        """Bytes of many files at the source, by name (errors of `copy`)."""
        found: dict[str, bytes] = {}

        def one(name: str) -> None:
            found[name] = bytes(self.read(name, named[name]))

        self.each(named, one)
        return found

    def again(self, act: Callable[[], T]) -> T:
        """Do something; where a network is between, again after a failure that may pass."""
        for attempt in range(_ATTEMPTS - 1):
            try:
                return act()
            except StoreError as error:
                if not self._remote or (type(error) is not StoreError and not _passes(error)):
                    raise
                self.moved.add(retried=1)
                time.sleep(_WAIT_SECONDS * 2**attempt)
        return act()

    def each(self, names: Iterable[str], act: Callable[[str], None]) -> None:
        """Act on each of these, several at once; the first error ends it."""

        def unless_stopped(name: str) -> None:
            if self._stop_asked():
                raise Incomplete(
                    "stopped by a signal. What has arrived is whole and is not sent again: run "
                    "the same command again to continue"
                )
            act(name)

        pool = ThreadPoolExecutor(self._jobs)
        try:
            futures = [pool.submit(unless_stopped, name) for name in names]
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done():
                    future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _look_again(self, blobs: Mapping[str, Blob], sums: Mapping[str, str]) -> None:
        """Look at what arrived; what is not as it was sent is an error."""
        listed = listings(self._into, {name.partition("/")[0] for name in sums})

        def one(name: str) -> None:
            entry = listed.get(name)
            if entry is not None and entry.md5 and entry.md5 == sums[name]:
                return
            if bytes_digest(self.again(lambda: self._into.map(name))) != blobs[name].digest:
                raise StoreError(
                    f"{self._into.path(name)}: what arrived are other bytes than were sent. Run "
                    "the same command again; if it stays so, the disk or network there is at fault"
                )

        self.each(sums, one)


class _Altered(CorruptCache):
    """Bytes that do not have their digest: on their way, or where they lie."""


def _passes(error: StoreError) -> bool:
    return isinstance(error, _Altered)


def listings(location: Location, folders: Iterable[str]) -> dict[str, Entry]:
    """Files of sub-folders by their full name."""
    return {
        f"{folder}/{base}": entry
        for folder in sorted(folders)
        for base, entry in location.entries(folder).items()
    }


def lacking(
    into: Location, blobs: Mapping[str, Blob], known: Sequence[str] | frozenset[str], copier: Copier
) -> dict[str, Blob]:
    """Of these files those that a location does not hold.

    Args:
        into: the location.
        blobs: the files.
        known: names that its seal gives: what is sealed was looked at when it arrived, so that its
            size is enough. The digest of others is looked at.
        copier: counts what is left out, and looks at several at once.
    """
    listed = listings(into, {name.partition("/")[0] for name in blobs})
    sealed, missing = frozenset(known), {}

    def one(name: str) -> None:
        blob, entry = blobs[name], listed.get(name)
        right = entry is not None and blob.size in (None, entry.size)
        if not right or not (name in sealed or into.has(name, blob.digest)):
            missing[name] = blob
        else:
            assert entry is not None, "it is there"
            copier.moved.add(files_skipped=1, bytes_skipped=entry.size)

    copier.each(blobs, one)
    return {name: missing[name] for name in blobs if name in missing}


def _md5(data: Any) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()

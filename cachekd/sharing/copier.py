"""Copying many files of a cache at once: retried, counted, and looked at again on arrival.

Comes in: names with digests, where they are and where they go. Goes out: a `Moved`. Files travel in
pieces and are hashed as they go by; bytes that do not have their digest are read again, and refused
where they stay wrong: none is ever seen under the name. What arrived is judged by the checksum that
a listing of S3 tells, and is read back and hashed anywhere else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Lock
from typing import TypeVar

from cachekd.errors import Incomplete, StoreError
from cachekd.sharing.content import Blob
from cachekd.store.io import Location
from cachekd.store.listing import Entry
from cachekd.store.pieces import Altered, Checked, digest_of

T = TypeVar("T")
Step = Callable[[int, int], None]  # bytes done, bytes in all
RELIED_SECONDS = 12 * 3600.0  # half of the age from which on `cachekd gc` takes files, as a rule
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
            passed = self.bring(name, blobs[name].digest, over=blobs[name].over)
            sums[name] = passed.etag
            self.moved.add(files=1, bytes=passed.size)
            done += passed.size
            self._step(done, max(whole, done))

        self.each(blobs, one)
        self._look_again(blobs, sums)

    def bring(self, name: str, digest: str, *, over: bool = False) -> Checked:
        """Copy a file that is named by its digest, in pieces; what went by (errors of `copy`).

        ``over``: in the place of one that is there, whose time is then that of the new one.
        """
        path, read = self._source.path(name), lambda: self._source.pieces(name)
        pieces = Checked(path, digest, read, summed=not self._into.local)
        self.again(lambda: self._into.take(name, pieces, over=over))
        return pieces

    def judge(self, name: str, digest: str) -> None:
        """Look at a file of the source that is named by its digest (errors of `copy`)."""
        path, read = self._source.path(name), lambda: self._source.pieces(name)
        pieces = Checked(path, digest, read)
        self.again(lambda: deque(pieces(), maxlen=0))

    def read(self, name: str, digest: str) -> bytes:
        """Bytes of a small file at the source that have this digest (errors of `copy`)."""
        pieces = Checked(self._source.path(name), digest, lambda: (self._source.read(name),))
        return self.again(lambda: b"".join(pieces()))

    def read_all(self, named: Mapping[str, str]) -> dict[str, bytes]:
        """Bytes of many files at the source, by name (errors of `copy`)."""
        found: dict[str, bytes] = {}

        def one(name: str) -> None:
            found[name] = bytes(self.read(name, named[name]))

        self.each(named, one)
        return found

    def again(self, act: Callable[[], T]) -> T:
        """Do something; where a network is between, again after bytes that came as others.

        All else that may pass was tried again for long enough below (`cachekd.store.retries`).
        """
        for attempt in range(_ATTEMPTS - 1):
            try:
                return act()
            except Altered:
                if not self._remote:
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
            if entry is not None and entry.etag and entry.etag == sums[name]:
                return
            if self.again(lambda: digest_of(self._into.pieces(name))) != blobs[name].digest:
                raise StoreError(
                    f"{self._into.path(name)}: what arrived are other bytes than were sent. Run "
                    "the same command again; if it stays so, the disk or network there is at fault"
                )

        self.each(sums, one)


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
            size is enough. The digest of others is looked at, and what is older than
            `RELIED_SECONDS` is lacking too: a collection may be about to take it away.
        copier: counts what is left out, and looks at several at once.
    """
    listed = listings(into, {name.partition("/")[0] for name in blobs})
    sealed, missing = frozenset(known), {}
    # Times of files are times of day, so this is one of the few places that compares them.
    oldest = datetime.now(UTC).timestamp() - RELIED_SECONDS

    def one(name: str) -> None:
        blob, entry = blobs[name], listed.get(name)
        right = entry is not None and blob.size in (None, entry.size)
        if name not in sealed:
            young = entry is not None and (entry.modified is None or entry.modified > oldest)
            right = right and young and into.has(name, blob.digest)
        if not right:
            missing[name] = replace(blob, over=entry is not None)
        else:
            assert entry is not None, "it is there"
            copier.moved.add(files_skipped=1, bytes_skipped=entry.size)

    copier.each(blobs, one)
    return {name: missing[name] for name in blobs if name in missing}

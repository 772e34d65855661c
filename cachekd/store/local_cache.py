"""Files of remote caches held on this machine's disk: bounded, checked, shared by all processes.

Comes in: the sha256 and size of a file, and where its bytes come from. Goes out: the bytes, mapped.
A file is named by its digest, so all caches and processes that read it share it. It is fetched
under a hidden name that has its whole size from the start, checked, and renamed; so the sizes in
the folder are what is held or on its way, and never above the bound. What was used longest ago goes
first; a file that a process has mapped may go, its bytes stay until it is let go. A process checks
the digest of a file that it finds here once, and fetches it again if it was damaged.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import pyarrow as pa

from cachekd.data.digests import bytes_digest
from cachekd.errors import StoreError
from cachekd.store import disk
from cachekd.store.local import LocalFolder
from cachekd.store.names import altered
from cachekd.store.parts import PART, Parts, Waiting
from cachekd.store.retries import count

LOCK = ".lock"
_POLL_SECONDS = 0.02
_WAIT_SECONDS = 600.0  # for others, while none of them goes on
_ATTEMPTS = 3
_DIGEST = re.compile("[0-9a-f]{64}")
_log = logging.getLogger(__name__)
_threads = [threading.Lock()]

Chunks = Callable[[], Iterator[bytes]]


class LocalCache:
    """A folder that holds at most so many bytes of files.

    Args:
        folder: made if it is not there.
        limit: bytes.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.root, self.limit = folder, limit
        self._folder = LocalFolder(folder)
        self._checked: set[str] = set()
        self._parts = Parts()
        self._known: dict[str, int] = {}  # bytes of files that were looked at

    def evictions(self) -> int:
        """How many files any process has taken away for others; -1 where there is no folder.

        It is the size of the file for locks, which holds no bytes, so that one look tells it.
        """
        try:
            return os.stat(f"{self.root}/{LOCK}", follow_symlinks=False).st_size
        except FileNotFoundError:
            return -1

    def held(self) -> frozenset[str]:
        """Digests of the files that are here now."""
        return frozenset(filter(_DIGEST.fullmatch, self._folder.names()))

    def get(self, path: str, digest: str, size: int, chunks: Chunks) -> pa.Buffer:
        """The bytes of a file, mapped; fetched if they are not here.

        Args:
            path: what messages call the file.
            digest: its sha256.
            size: its bytes.
            chunks: where they come from, in order; called again for another try.

        Raises:
            CorruptCache: what comes has another digest, also when it comes again.
            StoreError: the file is larger than the bound, the disk has no room, or others that
                have the room do not go on.
        """
        self._refuse_large(path, size)
        with self._told(path, size), self._folder.opened("", make=True) as folder:
            waiting: Waiting | None = None
            while waiting is None or waiting.seconds() < _WAIT_SECONDS:
                data = self._held(folder, digest, size)
                if data is not None:
                    return data
                part = self._begin(folder, digest, size)
                if part is None:  # another process fetches it, or has what is free
                    waiting = waiting or Waiting(folder)
                    time.sleep(_POLL_SECONDS)
                else:
                    self._fetch(folder, part, path, digest, size, chunks)
                    waiting = None
        raise StoreError(
            f"{self.root}: no room for {path} ({size} bytes) came free, and nothing that other "
            f"processes fetch went on for {_WAIT_SECONDS:.0f} seconds. Look what they wait for, or "
            "raise --local-cache-size"
        )

    def _refuse_large(self, path: str, size: int) -> None:
        if size > self.limit:
            raise StoreError(
                f"{path} has {size} bytes, and the local cache {self.root} may hold {self.limit}. "
                "Raise --local-cache-size, or capture with a smaller --unit-tokens"
            )

    def _held(self, folder: int, digest: str, size: int) -> pa.Buffer | None:
        try:
            file = disk.open_old(digest, folder)
        except FileNotFoundError:
            return None
        try:
            data = disk.map_whole(file)
            if digest not in self._checked:
                if data.size != size or bytes_digest(data) != digest:
                    self._drop_damaged(folder, digest)
                    return None
                self._checked.add(digest)
            with suppress(OSError):  # another user's: it only goes sooner
                disk.touch(file)
        finally:
            disk.close(file)
        return data

    def _drop_damaged(self, folder: int, digest: str) -> None:
        _log.warning("%s/%s was damaged; it is fetched again", self.root, digest)
        count("local_files_damaged")
        with suppress(FileNotFoundError):
            disk.unlink(digest, folder)

    def _begin(self, folder: int, digest: str, size: int) -> tuple[str, int] | None:
        """A new file of this size on its way, which is locked; None if it cannot be now."""
        with self._alone(folder) as lock:
            sizes = self._sizes(folder)
            if digest in sizes or any(name.startswith(f"{PART}{digest}") for name in sizes):
                return None
            if not self._make_room(folder, lock, sizes, size):
                return None
            name = f"{PART}{digest}-{secrets.token_hex(8)}"
            file = disk.open_new(name, folder)
            try:
                disk.try_lock(file)
                if size:
                    disk.reserve(file, size)
            except BaseException:
                disk.unlink(name, folder)
                disk.close(file)
                raise
        return name, file

    @contextmanager
    def _alone(self, folder: int) -> Iterator[int]:
        """Within, no other process or thread counts what is here; gives the file for locks."""
        with _threads[0]:  # a process has the bytes of a file locked, not a thread
            file = disk.open_lock(LOCK, folder)
            try:
                while disk.try_lock_bytes(file, 0) is False:
                    time.sleep(_POLL_SECONDS / 10)
                yield file
            finally:
                disk.close(file)

    def _sizes(self, folder: int) -> dict[str, int]:
        """Bytes of each file that is here or on its way; what is here is looked at once."""
        found: dict[str, int] = {}
        for name in disk.names(folder):
            part = name.startswith(PART)
            if not part and not _DIGEST.fullmatch(name):
                continue
            if part and self._parts.given_up(folder, name):
                continue
            if name in self._known:
                found[name] = self._known[name]
                continue
            with suppress(FileNotFoundError):
                found[name] = disk.look(name, folder).st_size
        self._known = {name: size for name, size in found.items() if not name.startswith(PART)}
        return found

    def _make_room(self, folder: int, lock: int, sizes: dict[str, int], size: int) -> bool:
        """Take away what was used longest ago; False where what is on its way needs the room."""
        held = sum(sizes.values())
        if held + size <= self.limit:
            return True
        for name in self._oldest_first(folder, sizes):
            if held + size <= self.limit:
                break
            with suppress(FileNotFoundError):
                disk.unlink(name, folder)
            count("local_files_evicted")
            disk.cut(lock, os.fstat(lock).st_size + 1)  # see `evictions`
            self._checked.discard(name)
            held -= sizes[name]
        return held + size <= self.limit

    def _oldest_first(self, folder: int, names: Iterable[str]) -> list[str]:
        """Of these the files that are here, what was used longest ago first."""
        used: dict[str, int] = {}
        for name in names:
            if not name.startswith(PART):
                with suppress(FileNotFoundError):
                    used[name] = disk.look(name, folder).st_mtime_ns
        return sorted(used, key=used.__getitem__)

    def _fetch(
        self, folder: int, part: tuple[str, int], path: str, digest: str, size: int, chunks: Chunks
    ) -> None:
        name, file = part
        try:
            for left in reversed(range(_ATTEMPTS)):
                found = self._written(file, size, chunks)
                if found == (size, digest):
                    break
                count("wrong_bodies")
                if not left:
                    what = f"{found[0]} bytes with sha256 {found[1]}"
                    raise altered(path, f"expected {size} bytes with sha256 {digest}, found {what}")
            with self._alone(folder):  # who counts meanwhile may see neither name
                try:
                    disk.rename(name, digest, folder)
                except FileNotFoundError:  # taken for given up, see `Parts`: it is fetched again
                    return
            self._checked.add(digest)
            count("files_fetched")
            count("bytes_fetched", size)
        except BaseException:
            with suppress(FileNotFoundError):
                disk.unlink(name, folder)
            raise
        finally:
            disk.close(file)

    def _written(self, file: int, size: int, chunks: Chunks) -> tuple[int, str]:
        """Bytes that came, and their digest; what is more than there should be is not written."""
        place, digest = 0, hashlib.sha256()
        for chunk in chunks():
            digest.update(chunk)
            view = memoryview(chunk)[: max(0, size - place)]
            place += len(chunk)
            at = place - len(chunk)
            while view:
                done = disk.write_at(file, view, at)
                view, at = view[done:], at + done
        return place, digest.hexdigest()

    @contextmanager
    def _told(self, path: str, size: int) -> Iterator[None]:
        """Within, errors of this machine's disk say so."""
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "Free space there, or lower --local-cache-size" if full else "Check its rights"
            raise StoreError(
                f"the local cache {self.root} cannot hold {path} ({size} bytes): "
                f"{error.strerror or error}. {advice}, or choose another folder (--local-cache)"
            ) from error


def refuse_other(path: str, data: pa.Buffer, digest: str, size: int | None) -> None:
    """Refuse bytes that are not those of a digest.

    Raises:
        CorruptCache: says what was expected and what was found.
    """
    if size is not None and data.size != size:
        raise altered(path, f"expected {size} bytes, found {data.size}")
    found = bytes_digest(data)
    if found != digest:
        raise altered(path, f"expected sha256 {digest}, found {found}")


_shared: dict[tuple[str, int], LocalCache] = {}


def local_cache(folder: str, limit: int) -> LocalCache:
    """The local cache of this process in a folder."""
    return _shared.setdefault((folder, limit), LocalCache(folder, limit))


def _after_fork() -> None:
    _threads[0] = threading.Lock()  # a thread of the parent may have had it


os.register_at_fork(after_in_child=_after_fork)

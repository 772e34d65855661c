"""Which process works on what, among those that fill one cache.

A claim saves work and decides nothing: what is committed, only an exclusive create decides. A run
has one hidden file in the cache, a byte of which is locked by the process that works on what it
stands for; the system lets go of it when the process ends, however it ends, so no claim is left by
the dead. Where a filesystem knows no locks, or is none of this machine's, every claim is granted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from cachekd.errors import StoreError
from cachekd.store import disk
from cachekd.store.io import Location
from cachekd.store.locks import LOCKS, close_lock, locks_in_use, open_lock

REPAIR = "repair"
_POLL_SECONDS = 0.02
_PROBE = 1 << 39  # a byte that stands for no piece of work


class Claims:
    """Claims of this process on numbered pieces of one work.

    Args:
        location: the cache.
        work: the same for all processes that do it; letters and digits.
    """

    def __init__(self, location: Location, work: str) -> None:
        self._location = location
        self._folder, self._name = location.folder, f"{LOCKS}{work}"
        with _told(location):
            self._file = open_lock(self._folder, self._name) if self._folder else None

    def known(self) -> bool:
        """Whether there are locks that tell what others have."""
        return self._file is not None and disk.try_lock_bytes(self._file, _PROBE) is not None

    def take(self, number: int) -> bool:
        """Claim a piece; False while another process has it."""
        return self._file is None or disk.try_lock_bytes(self._file, number) is not False

    def share(self, number: int) -> bool:
        """Have a piece together with others that share it; False while one has it alone."""
        return self._file is None or disk.share_byte(self._file, number)

    def wait(self, number: int) -> bool:
        """Claim a piece, when others let go of it; False where there are no locks to tell."""
        while self._file is not None:
            locked = disk.try_lock_bytes(self._file, number)
            if locked is not False:
                return bool(locked)
            time.sleep(_POLL_SECONDS)
        return False

    def release(self, number: int) -> None:
        """Let another process have it."""
        if self._file is not None:
            disk.free_bytes(self._file, number)

    def close(self) -> None:
        """Let go of everything; the last process takes the file away."""
        if self._folder is not None and self._file is not None:
            file, self._file = self._file, None
            with _told(self._location):
                close_lock(self._folder, self._name, file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def alone(location: Location) -> Iterator[None]:
    """Within, no process that fills the cache begins; none may be at work now.

    Raises:
        StoreError: another process works on the cache.
    """
    with Claims(location, REPAIR) as claims:
        if (location.folder and locks_in_use(location.folder)) or not claims.take(0):
            raise StoreError(
                f"{location.url}: another process writes this cache. Wait until it has ended, or "
                "stop it (Ctrl-C, it can be continued), then run this command again"
            )
        yield


@contextmanager
def unrepaired(location: Location, *, make: bool = False) -> Iterator[None]:
    """Within, which any number of processes may be, no process repairs or collects the cache.

    Args:
        location: the cache.
        make: also of a folder that is not there yet; it goes again if nothing comes into it.

    Raises:
        StoreError: one does now.
    """
    if location.folder is None or not (make or os.path.isdir(location.folder.root)):
        yield  # there is nothing to repair
        return
    with Claims(location, REPAIR) as claims:
        if not claims.share(0):
            raise StoreError(
                f"{location.url} is being repaired or collected (cachekd verify --repair, gc). "
                "Wait until that has ended, then run the same command again"
            )
        yield


@contextmanager
def _told(location: Location) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write to {location.url} ({error.strerror or error}); choose a cache location "
            "with write access, free space, then run the same command again"
        ) from error

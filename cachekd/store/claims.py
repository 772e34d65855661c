"""Which process works on what, among those that fill one cache.

A claim saves work and decides nothing: what is committed, only an exclusive create decides. A run
has one hidden file in the cache, a byte of which is locked by the process that works on what it
stands for; the system lets go of it when the process ends, however it ends, so no claim is left by
the dead. Where a filesystem knows no locks, or is none of this machine's, every claim is granted.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from cachekd.store import disk
from cachekd.store.io import Location
from cachekd.store.local import LOCKS


class Claims:
    """Claims of this process on numbered pieces of one work.

    Args:
        location: the cache.
        work: 32 hex digits: the same for all processes that do it.
    """

    def __init__(self, location: Location, work: str) -> None:
        self._location, self._name = location, f"{LOCKS}{work}"
        self._file = location.lock_file(self._name)

    def take(self, number: int) -> bool:
        """Claim a piece; False while another process has it."""
        return self._file is None or disk.try_lock_bytes(self._file, number) is not False

    def release(self, number: int) -> None:
        """Let another process have it."""
        if self._file is not None:
            disk.free_bytes(self._file, number)

    def close(self) -> None:
        """Let go of everything; the last process takes the file away."""
        if self._file is not None:
            self._location.unlock_file(self._name, self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

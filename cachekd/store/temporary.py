"""Files on their way: written whole under a temporary name, then published under the final one.

A writer has its file locked while it lives. What a writer left that is gone is known by that.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from cachekd.store import disk

TEMPORARY = ".tmp-"
LEASE_SECONDS = 24 * 3600  # how long another host's temporary file counts as being written
NOT_PLAIN = {errno.ELOOP, errno.ENOTDIR, errno.ENXIO}  # a link, a folder that is none, a pipe
_ATTEMPTS = 3
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextmanager
def temporary(folder: int, pieces: Iterable[bytes]) -> Iterator[str]:
    """A synced file of these pieces under a temporary name, locked; the name is gone after."""
    name, file = _open_new(folder)
    try:
        try:
            disk.try_lock(file)
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[disk.write(file, view) :]
            disk.sync(file)
            yield name
        finally:
            with suppress(FileNotFoundError):
                disk.unlink(name, folder)
    finally:
        disk.close(file)


def _open_new(folder: int) -> tuple[str, int]:
    """A temporary name that nobody has, and its file."""
    for _ in range(_ATTEMPTS):
        name = f"{TEMPORARY}{_host()}-{secrets.token_hex(16)}"
        with suppress(FileExistsError):
            return name, disk.open_new(name, folder)
    # No FileExistsError: the caller takes that for its final name.
    raise OSError(errno.EBUSY, "every temporary name is taken")


def publish(folder: int, written: str, base: str) -> None:
    """Give a temporary file its final name; `FileExistsError` if that is taken."""
    try:
        disk.link(written, base, folder)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            disk.look(base, folder)
        except FileNotFoundError:
            disk.rename(written, base, folder)
            return
        raise FileExistsError(errno.EEXIST, "exists", base) from error


def _host() -> str:
    return hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()


def clock(folder: int) -> float:
    """Now, as the filesystem tells it."""
    with temporary(folder, ()) as name:
        return disk.look(name, folder).st_mtime


def sweep(folder: int, name: str, now: float) -> bool:
    """Take a temporary file away if its writer is gone."""
    try:
        file = disk.open_old(name, folder)
    except OSError:  # gone, not made by a writer, or another user's
        return False
    try:
        locked = disk.try_lock(file)
        old = now - os.fstat(file).st_mtime > LEASE_SECONDS
        own = name.startswith(f"{TEMPORARY}{_host()}-")
        if not (old or (locked and own)) or locked is False:
            return False
        disk.unlink(name, folder)
    except FileNotFoundError:
        return False
    finally:
        disk.close(file)
    return True

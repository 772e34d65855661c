"""A cache's folder on this machine: files that appear whole or not at all, and reach the disk.

Comes in: names below the folder, at most two components. A new file is written under an
unguessable temporary name (exclusive create), synced, linked to its final name, and its folder is
synced. A writer holds a lock on its temporary file while it lives; `LocalFolder.sweep` takes away
what writers left that are gone.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pyarrow as pa

from cachekd.errors import CorruptCache
from cachekd.store import disk

TEMPORARY = ".tmp-"
LEASE_SECONDS = 24 * 3600  # how long another host's temporary file counts as being written
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NOT_PLAIN = {errno.ELOOP, errno.ENOTDIR, errno.ENXIO}
_ATTEMPTS = 3
_READ_BYTES = 1 << 24


class LocalFolder:
    """Files below a folder of this machine; errors are those of the operating system.

    A name that is no plain file (a link, pipe, device or folder) raises `CorruptCache`.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def exists(self, name: str) -> bool:
        """Whether something has this name."""
        try:
            with self._folder_of(name) as (folder, base):
                disk.look(base, folder)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with self._opened(name) as file:
            return os.fstat(file).st_size

    def names(self, folder: str = "") -> list[str]:
        """Names in a sub-folder (or in the root) that are no folders, sorted; hidden ones too."""
        try:
            with self._folder(folder) as opened:
                return sorted(disk.names(opened))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        with self._folder_of(name) as (folder, base):
            return _read(f"{self.root}/{name}", base, folder)

    @contextmanager
    def reader(self, folder: str) -> Iterator[Callable[[str], bytes]]:
        """Within: reads files of a sub-folder that is opened but once."""
        with self._folder(folder) as opened:
            yield lambda base: _read(f"{self.root}/{folder}/{base}", base, opened)

    def map(self, name: str) -> pa.Buffer:
        """All bytes of a file, mapped."""
        with self._opened(name) as file:
            return disk.map_whole(file)

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file, whole or not at all; False if the name is taken.

        Either way the name is on the disk afterwards.
        """
        with self._folder_of(name, make=True) as (folder, base):
            for attempt in range(_ATTEMPTS):
                try:
                    made = self._create(folder, base, data)
                except FileNotFoundError:  # taken for that of a dead writer, and swept
                    if attempt == _ATTEMPTS - 1:
                        raise
                else:
                    disk.sync(folder)
                    return made
        raise AssertionError("it returns or raises")

    def _create(self, folder: int, base: str, data: bytes) -> bool:
        with _temporary(folder, data) as temporary:
            try:
                _publish(folder, temporary, base)
            except FileExistsError:
                return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all, in the place of an older one."""
        with self._folder_of(name, make=True) as (folder, base):
            with _temporary(folder, data) as temporary:
                disk.rename(temporary, base, folder)
            disk.sync(folder)

    def remove(self, name: str) -> None:
        """Take a file away, whatever kind of file it is; no error if there is none."""
        with suppress(FileNotFoundError), self._folder_of(name) as (folder, base):
            disk.unlink(base, folder)
            disk.sync(folder)

    def probe(self) -> None:
        """Make a file and take it away; raises if that cannot be done."""
        with self._folder("") as folder, _temporary(folder, b""):
            pass

    def sync(self, folders: list[str]) -> None:
        """Wait until the disk has all names in these sub-folders, and the root's."""
        for name in ["", *folders]:
            try:
                with self._folder(name) as folder:
                    disk.sync(folder)
            except FileNotFoundError:
                continue

    def sweep(self, folders: list[str]) -> int:
        """Take away temporary files of writers that are gone; tells how many.

        A file of this host goes when nobody holds its lock; another host's, or one where there are
        no locks, when it is `LEASE_SECONDS` old by the filesystem's own clock.
        """
        swept = 0
        for name in ["", *folders]:
            left = [found for found in self.names(name) if found.startswith(TEMPORARY)]
            if left:
                with self._folder(name) as folder:
                    now = _clock(folder)
                    swept += sum(_sweep(folder, one, now) for one in left)
        return swept

    @contextmanager
    def _folder(self, name: str, make: bool = False) -> Iterator[int]:
        if make:
            make_path(self.root)
        opened = [disk.open_folder(self.root)]
        try:
            if name:
                if make:
                    _make_below(name, opened[0])
                opened.append(_plain(f"{self.root}/{name}", disk.open_folder, name, opened[0]))
            yield opened[-1]
        finally:
            for folder in opened:
                disk.close(folder)

    @contextmanager
    def _folder_of(self, name: str, make: bool = False) -> Iterator[tuple[int, str]]:
        parent, _, base = name.rpartition("/")
        with self._folder(parent, make) as folder:
            yield folder, base

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        with self._folder_of(name) as (folder, base):
            file = _open(f"{self.root}/{name}", base, folder)
            try:
                yield file
            finally:
                disk.close(file)


def _open(path: str, base: str, folder: int) -> int:
    if not stat.S_ISREG(disk.look(base, folder).st_mode):
        raise not_plain(path)
    return _plain(path, disk.open_old, base, folder)


def _read(path: str, base: str, folder: int) -> bytes:
    file = _open(path, base, folder)
    try:
        return b"".join(iter(lambda: disk.read(file, _READ_BYTES), b""))
    finally:
        disk.close(file)


def not_plain(path: str) -> CorruptCache:
    """The error for a name below a cache that is no plain file or folder."""
    return CorruptCache(
        f"{path}: expected a plain file in a plain folder, found a link or another kind of file; "
        "links below a cache are not followed. Put the file itself there"
    )


def _plain(path: str, open_by: Callable[[str, int], int], name: str, folder: int) -> int:
    try:
        return open_by(name, folder)
    except OSError as error:
        if error.errno in _NOT_PLAIN:
            raise not_plain(path) from error
        raise


def make_path(path: str) -> None:
    """A folder and those above it; each that is new is synced into the one that holds it."""
    if os.path.isdir(path):
        return
    parent, base = os.path.split(path)
    make_path(parent or os.curdir)
    folder = disk.open_folder(parent or os.curdir)
    try:
        _make_below(base, folder, links=True)
    finally:
        disk.close(folder)


def _make_below(name: str, folder: int, links: bool = False) -> None:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=links)
    except FileNotFoundError:
        with suppress(FileExistsError):  # another writer was first
            disk.make_folder(name, folder)
        disk.sync(folder)
        return
    if links and not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)


@contextmanager
def _temporary(folder: int, data: bytes) -> Iterator[str]:
    """A synced file with these bytes under a temporary name, locked; the name is gone after."""
    name = f"{TEMPORARY}{_host()}-{secrets.token_hex(16)}"
    file = disk.open_new(name, folder)
    try:
        try:
            disk.try_lock(file)
            view = memoryview(data)
            while view:
                view = view[disk.write(file, view) :]
            disk.sync(file)
            yield name
        finally:
            with suppress(FileNotFoundError):
                disk.unlink(name, folder)
    finally:
        disk.close(file)


def _publish(folder: int, temporary: str, base: str) -> None:
    try:
        disk.link(temporary, base, folder)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            disk.look(base, folder)
        except FileNotFoundError:
            disk.rename(temporary, base, folder)
            return
        raise FileExistsError(errno.EEXIST, "exists", base) from error


def _host() -> str:
    return hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()


def _clock(folder: int) -> float:
    """Now, as the filesystem tells it."""
    with _temporary(folder, b"") as name:
        return disk.look(name, folder).st_mtime


def _sweep(folder: int, name: str, now: float) -> bool:
    """Take a temporary file away if its writer is gone."""
    try:
        file = disk.open_old(name, folder)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in _NOT_PLAIN:  # not made by a writer
            return False
        raise
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

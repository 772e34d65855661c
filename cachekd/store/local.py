"""A cache's folder on this machine: files that appear whole or not at all, and reach the disk.

Comes in: names below the folder, at most two components. A new file is written under an
unguessable temporary name (exclusive create), synced, linked to its final name, and its folder is
synced. A writer holds a lock on its temporary file while it lives; `LocalFolder.sweep` takes away
what writers left that are gone.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import pyarrow as pa

from cachekd.store import disk
from cachekd.store.at_once import Read
from cachekd.store.listing import Entry, local_entries, local_folders
from cachekd.store.names import not_plain, too_large
from cachekd.store.pieces import PIECE_BYTES
from cachekd.store.temporary import (
    NOT_PLAIN,
    TEMPORARY,
    clock,
    publish,
    sweep,
    temporary,
)

T = TypeVar("T")
_ATTEMPTS = 3
_READ_BYTES = 1 << 24
_log = logging.getLogger(__name__)


class LocalFolder:
    """Files below a folder of this machine; errors are those of the operating system.

    A name that is no plain file (a link, pipe, device or folder) raises `CorruptCache`.
    """

    lists = True

    def __init__(self, root: str) -> None:
        self.root = root

    def exists(self, name: str) -> bool:
        """Whether something has this name."""
        try:
            with self._folder_of(name) as (folder, base):
                disk.look(base, folder)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with self._opened(name) as file:
            return os.fstat(file).st_size

    def names(self, folder: str = "") -> list[str]:
        """Names in a sub-folder (or in the root) that are no folders, sorted; hidden ones too."""
        try:
            with self.opened(folder) as opened:
                return sorted(disk.names(opened))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def entries(self, folder: str = "") -> dict[str, Entry]:
        """Plain files of a sub-folder (or of the root) by name, and what a listing tells."""
        return local_entries(f"{self.root}/{folder}")

    def folders(self) -> list[str]:
        """Names of the folders below this one."""
        return local_folders(self.root)

    def read(self, name: str, most: int | None = None) -> bytes:
        """All bytes of a file, which may have at most so many."""
        with self._folder_of(name) as (folder, base):
            return _read(f"{self.root}/{name}", base, folder, most)

    @contextmanager
    def reader(self, folder: str, most: int | None, names: Iterable[str]) -> Iterator[Read]:
        """Within: reads these files of a sub-folder that is opened but once (see `read`)."""
        with self.opened(folder) as opened:
            yield lambda base: _read(f"{self.root}/{folder}/{base}", base, opened, most)

    def map(self, name: str) -> pa.Buffer:
        """All bytes of a file, mapped."""
        with self._opened(name) as file:
            return disk.map_whole(file)

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of a file of this size, in order."""
        yield self.read(name, size)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, in order, a piece at a time."""
        with self._opened(name) as file:
            while piece := _piece(file):
                yield piece

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file, whole or not at all; False if the name is taken.

        Either way the name is on the disk afterwards.
        """
        return self.put(name, lambda: (data,), over=False)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all, in the place of an older one."""
        self.put(name, lambda: (data,), over=True)

    def put(self, name: str, pieces: Callable[[], Iterable[bytes]], *, over: bool) -> bool:
        """Write a file of pieces, as `create` or `replace` does; an error of theirs leaves none."""
        write = self._replace if over else self._create
        with self._folder_of(name, make=True) as (folder, base):
            made = self._again(lambda: write(folder, base, pieces()))
            disk.sync(folder)
            return made

    def _create(self, folder: int, base: str, pieces: Iterable[bytes]) -> bool:
        with temporary(folder, pieces) as written:
            try:
                publish(folder, written, base)
            except FileExistsError:
                return False
        return True

    def _replace(self, folder: int, base: str, pieces: Iterable[bytes]) -> bool:
        with temporary(folder, pieces) as written:
            disk.rename(written, base, folder)
        return True

    def _again(self, write: Callable[[], bool]) -> bool:
        """Write; again where the temporary file was taken for that of a dead writer, and swept."""
        for _ in range(_ATTEMPTS - 1):
            with suppress(FileNotFoundError):
                return write()
        return write()

    def remove(self, name: str) -> None:
        """Take a file away, whatever kind of file it is; no error if there is none."""
        with suppress(FileNotFoundError), self._folder_of(name) as (folder, base):
            disk.unlink(base, folder)
            disk.sync(folder)

    def probe(self) -> None:
        """Make a file and take it away; raises if that cannot be done."""
        with self.opened("") as folder, temporary(folder, ()):
            pass

    def sync(self, folders: list[str]) -> None:
        """Wait until the disk has all names in these sub-folders, and the root's."""
        for name in ["", *folders]:
            try:
                with self.opened(name) as folder:
                    disk.sync(folder)
            except FileNotFoundError:
                continue

    def sweep(self, folders: list[str]) -> int:
        """Take away temporary files of writers that are gone; tells how many.

        A file of this host goes when nobody holds its lock; another host's, or one where there are
        no locks, when it is `LEASE_SECONDS` old by the filesystem's own clock. What may not be
        taken away, as another user's, stays: it does no harm.
        """
        swept = 0
        for name in ["", *folders]:
            left = [found for found in self.names(name) if found.startswith(TEMPORARY)]
            if left:
                try:
                    with self.opened(name) as folder:
                        now = clock(folder)
                        swept += sum(sweep(folder, one, now) for one in left)
                except OSError as error:
                    _log.info("%s/%s cannot be swept: %s", self.root, name, error)
        return swept

    @contextmanager
    def opened(self, name: str, make: bool = False) -> Iterator[int]:
        """Within: a sub-folder, or the root, open; made if asked for."""
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
        with self.opened(parent, make) as folder:
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


def _read(path: str, base: str, folder: int, most: int | None) -> bytes:
    file = _open(path, base, folder)
    try:
        size = os.fstat(file).st_size
        if most is not None and size > most:
            raise too_large(path, most)
        # A large file comes in one go.
        return b"".join(iter(lambda: disk.read(file, max(_READ_BYTES, size)), b""))
    finally:
        disk.close(file)


def _piece(file: int) -> bytes:
    """The next bytes of a file, as many as a piece has unless it ends."""
    data = disk.read(file, PIECE_BYTES)
    while data and len(data) < PIECE_BYTES:
        more = disk.read(file, PIECE_BYTES - len(data))
        if not more:
            break
        data += more
    return data


def _plain(path: str, open_by: Callable[[str, int], int], name: str, folder: int) -> int:
    try:
        return open_by(name, folder)
    except OSError as error:
        if error.errno in NOT_PLAIN:
            raise not_plain(path) from error
        raise


def nearest(path: str) -> str:
    """A folder, or where it is not there the nearest above it that is."""
    while not os.path.exists(path):  # nor is one that may not be looked into
        path = os.path.dirname(path) or os.curdir
    return path


def in_existing(path: str, look: Callable[[str], T]) -> T:
    """What a look tells of a folder, or of the one above it that there is."""
    with suppress(FileNotFoundError):
        return look(nearest(path))
    # Another process had made the folder for a lock alone, and took it away again.
    return look(nearest(path))


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

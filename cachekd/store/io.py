"""All reading and writing of a cache: one place, any fsspec filesystem.

A file appears under its final name whole or not at all, and never replaces another: on a local
filesystem by `cachekd.store.local`; elsewhere by one conditional put, `cachekd.store.remote`. Only
hints, cards and what was found damaged (`replace`) may be written over. Files of a remote location
that are named by their digest are read through `cachekd.store.local_cache`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import pyarrow as pa

from cachekd.data.digests import bytes_digest
from cachekd.errors import CorruptCache, StoreError
from cachekd.store.at_once import Read
from cachekd.store.listing import Entry
from cachekd.store.local import LocalFolder, in_existing, nearest
from cachekd.store.local_cache import LocalCache, local_cache, refuse_other
from cachekd.store.locks import sweep_locks
from cachekd.store.names import cannot_write, check_name, missing, shown, told
from cachekd.store.pieces import Checked, digest_of
from cachekd.store.remote import RemoteFolder, opened
from cachekd.store.settings import StoreSettings, settings


class Location:
    """A folder on any fsspec filesystem that holds a cache.

    Args:
        url: a path, or a URL of fsspec.
        given: how it is reached; default: the settings in use.
        held: whether files are read through the local cache, if it is a remote one.

    Attributes:
        url: the place as messages name it, see `shown`.
        target: the place as the user gave it.
        local: whether it is a folder of this machine.
        folder: that folder as `LocalFolder`, or None.
        private: whether no other process sees it (a filesystem in memory).
        lists: whether it can tell which files there are.
        cache: the local cache that its files are read through, or None.

    Raises:
        ConfigError: there is no such protocol, or a package for it is lacking.
    """

    def __init__(self, url: str, *, given: StoreSettings | None = None, held: bool = True) -> None:
        self.url = shown(url)
        self.target = url
        self._given, self._held = given or settings(), held
        protocol = url.partition("://")[0] if "://" in url else "file"
        self.local = protocol in ("file", "local")
        self.private = protocol == "memory"
        self.folder = LocalFolder(opened(url, {})[1].rstrip("/") or "/") if self.local else None
        options = {} if self.private else self._given.options
        self._files = self.folder or RemoteFolder(url, options)
        self._root, self.lists = self._files.root, self._files.lists
        self.cache: LocalCache | None = None
        if held and not (self.local or self.private):
            self.cache = local_cache(self._given.folder, self._given.limit)
        self._last: tuple[str, pa.Buffer] | None = None  # of what is read past the local cache

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Location, given=self._given, held=self._held), (self.target,)

    def path(self, name: str) -> str:
        """Full path of a file of the cache, or its URL, as messages name it."""
        return f"{self._root}/{check_name(name)}"

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        with self._told(check_name(name)):
            return self._files.exists(name)

    def names(self, folder: str = "") -> list[str]:
        """Names of the files of a sub-folder (or of the root), sorted; temporary ones left out."""
        with self._told(check_name(folder) if folder else ""):
            found = self._files.names(folder)
        return sorted(name for name in found if not name.startswith("."))

    def entries(self, folder: str = "") -> dict[str, Entry]:
        """Files of a sub-folder (or of the root) by name, and what a listing tells of each."""
        with self._told(check_name(folder) if folder else ""):
            found = self._files.entries(folder)
        return {name: entry for name, entry in sorted(found.items()) if name[0] != "."}

    def folders(self) -> list[str]:
        """Names of the folders below the root, sorted."""
        with self._told(""):
            return sorted(self._files.folders())

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            CorruptCache: the file is missing.
        """
        with self._told(check_name(name)):
            return self._files.size(name)

    def read(self, name: str, most: int | None = None) -> bytes:
        """All bytes of a file.

        Args:
            name: of the file.
            most: a larger file is not read.

        Raises:
            CorruptCache: the file is missing, too large, or no plain file.
            StoreError: it cannot be read.
        """
        with self._told(check_name(name)):
            return self._files.read(name, most)

    @contextmanager
    def reader(self, folder: str, names: Iterable[str], most: int | None = None) -> Iterator[Read]:
        """Within: reads these files of one sub-folder in their order, as `read` does, for less."""
        with ExitStack() as stack:
            with self._told(check_name(folder)):
                read_base = stack.enter_context(self._files.reader(folder, most, names))

            def read(base: str) -> bytes:
                name = check_name(f"{folder}/{base}")
                try:
                    return read_base(base)
                except OSError:
                    with self._told(name):
                        raise

            yield read

    def checked(self, name: str, digest: str, size: int | None = None) -> pa.Buffer:
        """All bytes of a file that is named by its sha256, mapped where they are on this machine.

        Args:
            name: of the file.
            digest: its sha256.
            size: its bytes, where a record says so.

        Raises:
            CorruptCache: the file is missing, or has other bytes; says what was expected.
            StoreError: it cannot be read, or not be held here.
        """
        path = self.path(name)
        if self.cache is None:
            data = self.map(name)
            refuse_other(path, data, digest, size)
            return data
        most = self.size(name) if size is None else size
        return self.cache.get(path, digest, most, lambda: self._chunks(name, most))

    def _chunks(self, name: str, size: int) -> Iterator[bytes]:
        with self._told(name):
            yield from self._files.chunks(name, size)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, in order, a piece at a time (errors of `read`)."""
        with self._told(check_name(name)):
            yield from self._files.pieces(name)

    def map(self, name: str) -> pa.Buffer:
        """All bytes of a file as a buffer; memory-mapped where the file is local."""
        check_name(name)
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        with self._told(name):
            data = self._files.map(name)
        self._last = None if self.local or self._held else (name, data)
        return data

    def _told(self, name: str) -> AbstractContextManager[None]:
        return told(self._root, name)

    def missing(self, name: str) -> CorruptCache:
        """The error for a file that should be there and is not."""
        return missing(self.path(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file, whole or not at all, and never over another.

        Returns:
            True if this call made the file, False if it was there already.

        Raises:
            StoreError: the file cannot be written; names the path and the bytes needed.
        """
        check_name(name)
        try:
            self._last = None
            return self._files.create(name, data)
        except OSError as error:
            raise cannot_write(self.path(name), len(data), error) from error

    def replace(self, name: str, data: bytes) -> None:
        """Write a file, atomically, over an older one.

        Raises:
            StoreError: the file cannot be written.
        """
        check_name(name)
        try:
            self._last = None
            self._files.replace(name, data)
        except OSError as error:
            raise cannot_write(self.path(name), len(data), error) from error

    def keep(self, name: str, data: bytes, digest: str) -> None:
        """Write a file that is named by its digest; one that is there is read, and mended.

        Raises:
            StoreError: the file cannot be written.
        """
        if not self.create(name, data) and not self.has(name, digest):
            self.replace(name, data)

    def take(self, name: str, pieces: Checked, *, over: bool = False) -> None:
        """`keep`, of a file that comes in pieces; ``over``: also over one that has its bytes.

        Raises:
            CorruptCache: they are other bytes; then there is no new file.
            StoreError: the file cannot be written, or the pieces not be read.
        """
        self._last = None
        try:
            made = self._files.put(check_name(name), pieces, over=over)
            if not (made or self.has(name, pieces.digest)):
                self._files.put(name, pieces, over=True)
        except OSError as error:
            raise cannot_write(self.path(name), pieces.size, error) from error

    def holds(self, name: str, data: bytes) -> bool:
        """Whether a file is there, can be read, and has these bytes."""
        return self.has(name, bytes_digest(data))

    def has(self, name: str, digest: str) -> bool:
        """Whether a file is there, can be read, and has this sha256."""
        try:
            if self.local or not self._held:
                return bytes_digest(self.map(name)) == digest
            return digest_of(self.pieces(name)) == digest
        except StoreError:  # missing, no plain file, or it cannot be read: not these bytes
            return False

    def remove(self, name: str) -> None:
        """Take a file away; no error if there is none.

        Raises:
            StoreError: it cannot be taken away.
        """
        path = self.path(name)
        try:
            self._last = None
            self._files.remove(name)
        except OSError as error:
            raise StoreError(f"cannot delete {path}: {error.strerror or error}") from error

    def sync(self, folders: Iterable[str]) -> None:
        """Wait until all names in these sub-folders are on the disk.

        Raises:
            StoreError: they cannot be.
        """
        if self.folder:
            with self._told(""):
                self.folder.sync(sorted(folders))

    def sweep(self, folders: Iterable[str]) -> int:
        """Take away what writers that are gone left half-written; tells how many files."""
        if not self.folder:
            return 0
        with self._told(""):
            return self.folder.sweep(sorted(folders)) + sweep_locks(self.folder)

    def check_writable(self) -> None:
        """Find out before any work whether files can be made here.

        Raises:
            StoreError: they cannot.
            ConfigError: there is no exclusive create, so that two writers could spoil the cache.
        """
        if not self.folder:
            self._files.probe()
            return
        try:
            in_existing(self._root, lambda above: LocalFolder(above).probe())
        except OSError as error:
            raise StoreError(
                f"cannot write to {nearest(self._root)} ({error.strerror}); "
                "choose a cache location with write access"
            ) from error

    def free_bytes(self) -> int | None:
        """Free bytes on the disk of a local cache, else None."""
        return in_existing(self._root, shutil.disk_usage).free if self.local else None

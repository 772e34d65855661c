"""All reading and writing of a cache: one place, any fsspec filesystem.

A file appears under its final name whole or not at all, and never replaces another: on a local
filesystem by `cachekd.store.local`; elsewhere by one conditional put. Only hints, cards and what
was found damaged (`replace`) may be written over.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar

import fsspec
import pyarrow as pa

from cachekd.data.digests import bytes_digest
from cachekd.errors import ConfigError, CorruptCache, StoreError
from cachekd.store.listing import Entry, local_entries, remote_entries, remote_folders
from cachekd.store.local import LocalFolder, nearest, too_large
from cachekd.store.locks import sweep_locks
from cachekd.store.names import check_name, shown

T = TypeVar("T")


class Location:
    """A folder on any fsspec filesystem that holds a cache.

    Attributes:
        url: the place as messages name it, see `shown`.
        target: the place as the user gave it.
        local: whether it is a folder of this machine.
        folder: that folder as `LocalFolder`, or None.
        private: whether no other process sees it (a filesystem in memory).
    """

    def __init__(self, url: str) -> None:
        try:
            filesystem, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"{shown(url)!r} is not a location that can be opened: {error}"
            ) from error
        self.url = shown(url)
        self.target = url
        self._fs = filesystem
        self._root = root.rstrip("/") or "/"
        names = filesystem.protocol
        self._protocols = (names,) if isinstance(names, str) else tuple(names)
        self.local = "file" in self._protocols
        self.folder = LocalFolder(self._root) if self.local else None
        self.private = "memory" in self._protocols

    def path(self, name: str) -> str:
        """Full path of a file of the cache."""
        return f"{self._root}/{check_name(name)}"

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        path = self.path(name)
        with self._told(name):
            return self.folder.exists(name) if self.folder else bool(self._fs.exists(path))

    def names(self, folder: str = "") -> list[str]:
        """Names of the files of a sub-folder (or of the root), sorted; temporary ones left out."""
        if folder:
            check_name(folder)
        with self._told(folder):
            found = self.folder.names(folder) if self.folder else [*self.entries(folder)]
        return sorted(name for name in found if not name.startswith("."))

    def entries(self, folder: str = "") -> dict[str, Entry]:
        """Files of a sub-folder (or of the root), and what a listing tells of each."""
        path = self.path(folder) if folder else self._root
        with self._told(folder):
            found = local_entries(path) if self.local else remote_entries(self._fs, path)
        return {name: entry for name, entry in sorted(found.items()) if name[0] != "."}

    def folders(self) -> list[str]:
        """Names of the folders below the root, sorted."""
        with self._told(""):
            return sorted(remote_folders(self._fs, self._root))

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            CorruptCache: the file is missing.
        """
        path = self.path(name)
        with self._told(name):
            return self.folder.size(name) if self.folder else int(self._fs.size(path))

    def read(self, name: str, most: int | None = None) -> bytes:
        """All bytes of a file.

        Args:
            name: of the file.
            most: a larger file is not read.

        Raises:
            CorruptCache: the file is missing, too large, or no plain file.
            StoreError: it cannot be read.
        """
        path = self.path(name)
        with self._told(name):
            if self.folder:
                return self.folder.read(name, most)
            data = bytes(self._fs.cat_file(path, end=None if most is None else most + 1))
        if most is not None and len(data) > most:
            raise too_large(path, most)
        return data

    @contextmanager
    def reader(self, folder: str, most: int | None = None) -> Iterator[Callable[[str], bytes]]:
        """Within: reads many files of one sub-folder, as `read` does, for less."""
        if not self.folder:
            yield lambda base: self.read(f"{folder}/{base}", most)
            return
        with ExitStack() as stack:
            with self._told(check_name(folder)):
                read_base = stack.enter_context(self.folder.reader(folder, most))

            def read(base: str) -> bytes:
                name = check_name(f"{folder}/{base}")
                try:
                    return read_base(base)
                except OSError:
                    with self._told(name):
                        raise

            yield read

    def map(self, name: str) -> pa.Buffer:
        """All bytes of a file as a buffer; memory-mapped where the file is local."""
        if not self.folder:
            return pa.py_buffer(self.read(name))
        check_name(name)
        with self._told(name):
            return self.folder.map(name)

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Within, the errors of the operating system become those of a cache."""
        try:
            yield
        except FileNotFoundError as error:
            raise (self.missing(name) if name else _gone(self._root)) from error
        except OSError as error:
            path = self.path(name) if name else self._root
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        except MemoryError as error:
            path = self.path(name) if name else self._root
            raise StoreError(f"cannot read {path}: it is larger than the memory") from error

    def missing(self, name: str) -> CorruptCache:
        """The error for a file that should be there and is not."""
        mend = "Restore it, or run the precompute command again to make it anew"
        if name.rpartition("/")[2] in ("cache.json", "capture.json"):
            mend = (
                "It says whose the cache is: restore it from a copy (a lost cache.json of a cache "
                "without attention is also written anew by the precompute command of its teacher)"
            )
        return CorruptCache(
            f"{self.path(name)} is missing; it was deleted, or the cache was copied only in part. "
            f"{mend}"
        )

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file, whole or not at all, and never over another.

        Returns:
            True if this call made the file, False if it was there already.

        Raises:
            StoreError: the file cannot be written; names the path and the bytes needed.
        """
        path = self.path(name)
        try:
            if self.folder:
                return self.folder.create(name, data)
            self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            raise self._cannot_write(name, len(data), error) from error
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a file, atomically, over an older one.

        Raises:
            StoreError: the file cannot be written.
        """
        path = self.path(name)
        try:
            if self.folder:
                self.folder.replace(name, data)
            else:
                self._fs.pipe_file(path, data)
        except OSError as error:
            raise self._cannot_write(name, len(data), error) from error

    def keep(self, name: str, data: bytes, digest: str) -> None:
        """Write a file that is named by its digest; one that is there is read, and mended.

        Raises:
            StoreError: the file cannot be written.
        """
        if not self.create(name, data) and not self.has(name, digest):
            self.replace(name, data)

    def holds(self, name: str, data: bytes) -> bool:
        """Whether a file is there, can be read, and has these bytes."""
        return self.has(name, bytes_digest(data))

    def has(self, name: str, digest: str) -> bool:
        """Whether a file is there, can be read, and has this sha256."""
        try:
            return bytes_digest(self.map(name)) == digest
        except StoreError:  # missing, no plain file, or it cannot be read: not these bytes
            return False

    def remove(self, name: str) -> None:
        """Take a file away; no error if there is none.

        Raises:
            StoreError: it cannot be taken away.
        """
        path = self.path(name)
        try:
            if self.folder:
                self.folder.remove(name)
            elif self._fs.exists(path):
                self._fs.rm_file(path)
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
            ConfigError: the filesystem has no exclusive create.
        """
        if not self.folder:
            if "hf" in self._protocols:
                raise ConfigError(
                    f"{self.url}: the hub has no exclusive create; "
                    "build the cache in a local folder, then upload it"
                )
            return
        try:
            self._in_existing(lambda above: LocalFolder(above).probe())
        except OSError as error:
            raise StoreError(
                f"cannot write to {nearest(self._root)} ({error.strerror}); "
                "choose a cache location with write access"
            ) from error

    def free_bytes(self) -> int | None:
        """Free bytes on the disk of a local cache, else None."""
        return self._in_existing(shutil.disk_usage).free if self.local else None

    def _in_existing(self, look: Callable[[str], T]) -> T:
        """What a look tells of the root, or of the folder above it that there is."""
        with suppress(FileNotFoundError):
            return look(nearest(self._root))
        # Another process had made the root for a lock alone, and took it away again.
        return look(nearest(self._root))

    def _cannot_write(self, name: str, size: int, error: OSError) -> StoreError:
        return StoreError(
            f"cannot write {self.path(name)} ({size} bytes): {error.strerror or error}. What was "
            "committed before is whole; free space or fix access, then run the same command again"
        )


def _gone(root: str) -> StoreError:
    return StoreError(f"{root} went away while it was worked on")

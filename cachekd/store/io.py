"""All reading and writing of a cache: one place, any fsspec filesystem.

A file appears under its final name whole or not at all, and never replaces another: on a local
filesystem by an unguessable temporary name (exclusive create), write, fsync, link and a sync of
the folder; elsewhere by one conditional put. Only hints (`replace`) may be written over.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from pathlib import Path

import fsspec
import pyarrow as pa

from cachekd.errors import ConfigError, CorruptCache, StoreError

_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def check_name(name: str) -> str:
    """The name if it is safe below a cache folder: at most two plain components.

    Raises:
        CorruptCache: the name could lead out of the cache.
    """
    parts = name.split("/")
    if len(parts) > 2 or not all(_COMPONENT.fullmatch(part) for part in parts):
        raise CorruptCache(
            f"{name!r} is not a file name that a cache may hold; the file that names it was altered"
        )
    return name


class Location:
    """A folder on any fsspec filesystem that holds a cache.

    Attributes:
        url: the place as the user gave it.
        local: whether it is a folder of this machine.
        private: whether no other process sees it (a filesystem in memory).
    """

    def __init__(self, url: str) -> None:
        try:
            filesystem, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{url!r} is not a location that can be opened: {error}") from error
        self.url = url
        self._fs = filesystem
        self._root = root.rstrip("/") or "/"
        self._protocols = _protocols(filesystem)
        self.local = "file" in self._protocols
        self.private = "memory" in self._protocols

    def path(self, name: str) -> str:
        """Full path of a file of the cache."""
        return f"{self._root}/{check_name(name)}"

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return bool(self._fs.exists(self.path(name)))

    def names(self, folder: str = "") -> list[str]:
        """Names of the files of a sub-folder (or of the root), sorted; temporary ones left out."""
        path = f"{self._root}/{check_name(folder)}" if folder else self._root
        if not self._fs.isdir(path):
            return []
        found = (str(entry["name"]).rstrip("/").rsplit("/", 1)[-1] for entry in self._list(path))
        return sorted(name for name in found if not name.startswith("."))

    def _list(self, path: str) -> list[dict[str, object]]:
        self._fs.invalidate_cache(path)
        return [entry for entry in self._fs.ls(path, detail=True) if entry["type"] == "file"]

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            CorruptCache: the file is missing.
        """
        try:
            return int(self._fs.size(self.path(name)))
        except FileNotFoundError as error:
            raise self.missing(name) from error

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            CorruptCache: the file is missing.
            StoreError: it cannot be read.
        """
        try:
            return bytes(self._fs.cat_file(self.path(name)))
        except FileNotFoundError as error:
            raise self.missing(name) from error
        except OSError as error:
            raise StoreError(f"cannot read {self.path(name)}: {error}") from error

    def map(self, name: str) -> pa.Buffer:
        """All bytes of a file as a buffer; memory-mapped where the file is local."""
        if not self.local:
            return pa.py_buffer(self.read(name))
        try:
            with pa.memory_map(self.path(name)) as source:
                return source.read_buffer()
        except FileNotFoundError as error:
            raise self.missing(name) from error
        except OSError as error:
            raise StoreError(f"cannot read {self.path(name)}: {error}") from error

    def missing(self, name: str) -> CorruptCache:
        """The error for a file that should be there and is not."""
        return CorruptCache(
            f"{self.path(name)} is missing; it was deleted, or the cache was copied only in part. "
            "Restore it, or run the precompute command again to make it anew"
        )

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file, whole or not at all, and never over another.

        Returns:
            True if this call made the file, False if it was there already.

        Raises:
            StoreError: the file cannot be written; names the path and the bytes needed.
        """
        try:
            if self.local:
                return self._create_local(Path(self.path(name)), data)
            return self._create_remote(name, data)
        except OSError as error:
            raise self._cannot_write(name, len(data), error) from error

    def replace(self, name: str, data: bytes) -> None:
        """Write a hint or a card, atomically, over an older one.

        Raises:
            StoreError: the file cannot be written.
        """
        try:
            if not self.local:
                self._fs.pipe_file(self.path(name), data)
                return
            final = Path(self.path(name))
            temporary = _write_temporary(final, data)
            try:
                os.replace(temporary, final)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(final.parent)
        except OSError as error:
            raise self._cannot_write(name, len(data), error) from error

    def check_writable(self) -> None:
        """Find out before any work whether files can be made here.

        Raises:
            StoreError: they cannot.
            ConfigError: the filesystem has no exclusive create.
        """
        if not self.local:
            if "hf" in self._protocols:
                raise ConfigError(
                    f"{self.url}: the hub has no exclusive create; "
                    "build the cache in a local folder, then upload it"
                )
            return
        folder = self._existing_folder()
        probe = folder / f".cachekd-{secrets.token_hex(16)}"
        try:
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"cannot write to {folder} ({error.strerror}); "
                "choose a cache location with write access"
            ) from error

    def free_bytes(self) -> int | None:
        """Free bytes on the disk of a local cache, else None."""
        if not self.local:
            return None
        return shutil.disk_usage(self._existing_folder()).free

    def _existing_folder(self) -> Path:
        # os.path.exists: a folder that may not be looked into counts as not there
        folder = Path(self._root)
        while not os.path.exists(folder):
            folder = folder.parent
        return folder

    def _create_local(self, final: Path, data: bytes) -> bool:
        temporary = _write_temporary(final, data)
        try:
            _publish(temporary, final)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(final.parent)
        return True

    def _create_remote(self, name: str, data: bytes) -> bool:
        try:
            self._fs.pipe_file(self.path(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def _cannot_write(self, name: str, size: int, error: OSError) -> StoreError:
        reason = error.strerror or str(error)
        return StoreError(
            f"cannot write {self.path(name)} ({size} bytes): {reason}. What was committed before "
            "is whole; free space or fix access, then run the same command again"
        )


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    names = filesystem.protocol
    return (names,) if isinstance(names, str) else tuple(names)


def _write_temporary(final: Path, data: bytes) -> Path:
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".tmp-{secrets.token_hex(16)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o666)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _publish(temporary: Path, final: Path) -> None:
    try:
        os.link(temporary, final, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if final.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(final)) from error
        os.rename(temporary, final)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

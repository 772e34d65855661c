"""Every operation on the local files of a store, and nothing else.

One small module, called by its name (``disk.link(...)``), so that a test can make any single
operation fail, end the process before it, or log them all. Files are reached from an open folder,
one name at a time: a symbolic link below a cache is never followed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa

OPERATIONS = (
    "open_folder",
    "make_folder",
    "open_new",
    "open_old",
    "look",
    "names",
    "read",
    "map_whole",
    "write",
    "write_at",
    "cut",
    "reserve",
    "touch",
    "sync",
    "close",
    "link",
    "rename",
    "unlink",
    "remove_folder",
    "open_lock",
    "try_lock",
    "try_lock_bytes",
    "share_byte",
    "free_bytes",
    "is_free",
)
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}


def open_folder(name: str, folder: int | None = None) -> int:
    """A folder by its path, or by its name in an open one, where it must be no link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | (0 if folder is None else os.O_NOFOLLOW)
    return os.open(name, flags, dir_fd=folder)


def make_folder(name: str, folder: int | None = None) -> None:
    """A new folder; its mode is what the umask leaves."""
    os.mkdir(name, dir_fd=folder)


def open_new(name: str, folder: int) -> int:
    """A new file, for reading and writing; its mode is what the umask leaves."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.open(name, flags, 0o666, dir_fd=folder)


def open_old(name: str, folder: int) -> int:
    """A file that is there, for reading; a pipe does not hold the caller up."""
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)


def look(name: str, folder: int) -> os.stat_result:
    """What has this name; a link is looked at itself."""
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def names(folder: int) -> list[str]:
    """Names in a folder that are no folders themselves."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]


def read(file: int, size: int) -> bytes:
    """At most so many bytes."""
    return os.read(file, size)


def map_whole(file: int) -> pa.Buffer:
    """All bytes of a file, mapped; the buffer holds no descriptor."""
    if not os.fstat(file).st_size:
        return pa.py_buffer(b"")
    with pa.memory_map(f"/dev/fd/{file}") as source:  # the very file, whatever has its name now
        return source.read_buffer()


def write(file: int, data: memoryview) -> int:
    """Bytes written of these, at the file's end."""
    return os.write(file, data)


def write_at(file: int, data: memoryview, offset: int) -> int:
    """Bytes written of these, at an offset."""
    return os.pwrite(file, data, offset)


def cut(file: int, size: int) -> None:
    """Make a file that is open end at this size."""
    os.ftruncate(file, size)


def reserve(file: int, size: int) -> None:
    """Take room for so many bytes of a new file, which then has this size."""
    os.posix_fallocate(file, 0, size)


def touch(file: int) -> None:
    """Note that a file was used now."""
    os.utime(file)


def sync(file: int) -> None:
    """Wait until the disk has the file's bytes, or the folder's names."""
    os.fsync(file)


def close(file: int) -> None:
    """Let a file or a folder go."""
    os.close(file)


def link(old: str, new: str, folder: int) -> None:
    """A second name; fails if there is such a file."""
    os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)


def rename(old: str, new: str, folder: int) -> None:
    """Another name, in the place of what has it."""
    os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)


def unlink(name: str, folder: int) -> None:
    """Take a name away."""
    os.unlink(name, dir_fd=folder)


def open_lock(name: str, folder: int) -> int:
    """A file that is there or is made, for locks alone."""
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666, dir_fd=folder)


def remove_folder(path: str) -> None:
    """Take an empty folder away."""
    os.rmdir(path)


def try_lock(file: int) -> bool | None:
    """Lock a file for this process until it is closed, also by the process's death.

    Returns:
        True if it is locked now, False if another process has it, None if this filesystem knows no
        locks.
    """
    return _taken(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))


def try_lock_bytes(file: int, offset: int, count: int = 1) -> bool | None:
    """The same of bytes of a file, there or not; 0: all from the offset on.

    The process has them, not the open file: a second one of the same process has them too, and
    closing either lets go of all.
    """
    return _taken(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, count, offset))


def share_byte(file: int, offset: int) -> bool:
    """Lock a byte beside others that share it; False while one has it alone."""
    shared = _taken(lambda: fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, offset))
    return shared is not False


def free_bytes(file: int, offset: int, count: int = 1) -> None:
    """Let another process lock these bytes."""
    with _where_there_are_locks():
        fcntl.lockf(file, fcntl.LOCK_UN, count, offset)


def is_free(file: int) -> bool | None:
    """Whether no process has a file locked; None if this filesystem knows no locks."""
    free = _taken(lambda: fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB))
    if free:
        fcntl.flock(file, fcntl.LOCK_UN)
    return free


def _taken(lock: Callable[[], None]) -> bool | None:
    """Whether a lock could be taken; None where there are none."""
    try:
        lock()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


@contextmanager
def _where_there_are_locks() -> Iterator[None]:
    """Within, a filesystem without locks does nothing."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise

"""Files whose bytes processes lock: what stands for work that one of them does at a time.

They are hidden files in the root of a local cache. The system lets go of a lock when its process
ends, however it ends; the last process that uses a file takes it away.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from contextlib import suppress

from cachekd.store import disk
from cachekd.store.local import LocalFolder

LOCKS = ".claims-"
_PAUSE_SECONDS = 0.02
_ATTEMPTS = 50
_IN_USE = 1 << 40  # a byte that everybody shares who has the file open
_log = logging.getLogger(__name__)
# Files that this process has open: were one opened and closed once more, all its locks went.
_own: Counter[str] = Counter()
_made: set[str] = set()  # roots that were made for a lock


def open_lock(folder: LocalFolder, name: str) -> int:
    """A file for locks, open; made if it is not there."""
    if not os.path.isdir(folder.root):
        _made.add(folder.root)
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):  # who made the root for a lock takes it away with that
            return _open_lock(folder, name)
        time.sleep(_PAUSE_SECONDS)
    return _open_lock(folder, name)


def _open_lock(folder: LocalFolder, name: str) -> int:
    with folder.opened("", make=True) as root:
        while True:
            file = disk.open_lock(name, root)
            # Seen to be in use; unless somebody took it away in between.
            if disk.share_byte(file, _IN_USE) and os.fstat(file).st_nlink:
                _own[f"{folder.root}/{name}"] += 1
                return file
            disk.close(file)
            time.sleep(_PAUSE_SECONDS)


def close_lock(folder: LocalFolder, name: str, file: int) -> None:
    """Let go of a file for locks; take it away if no other process has one of its bytes.

    A root that was made for it, and holds nothing else, goes too.
    """
    try:
        # No longer in use here: of two that end at once one must find nobody else.
        disk.free_bytes(file, _IN_USE)
        if disk.try_lock_bytes(file, 0, 0):
            with folder.opened("") as root, suppress(FileNotFoundError):
                disk.unlink(name, root)
            if folder.root in _made:
                with suppress(OSError):  # it holds something, or another process uses it
                    disk.remove_folder(folder.root)
    except FileNotFoundError:  # somebody took the whole root away
        return
    finally:
        _own[f"{folder.root}/{name}"] -= 1
        disk.close(file)


def locks_in_use(folder: LocalFolder) -> bool:
    """Whether another process has locked anything but the byte of files that are merely open."""
    for name in _of_others(folder):
        file = open_lock(folder, name)
        taken = disk.try_lock_bytes(file, 0, _IN_USE) is False
        close_lock(folder, name, file)
        if taken:
            return True
    return False


def sweep_locks(folder: LocalFolder) -> int:
    """Take away files that nobody uses; tells how many. What may not be taken away stays."""
    swept = 0
    for name in _of_others(folder):
        try:
            close_lock(folder, name, open_lock(folder, name))
        except OSError as error:  # another user's, or a link: it does no harm
            _log.info("%s/%s cannot be swept: %s", folder.root, name, error)
        swept += not folder.exists(name)
    return swept


def _of_others(folder: LocalFolder) -> list[str]:
    names = [name for name in folder.names() if name.startswith(LOCKS)]
    return [name for name in names if not _own[f"{folder.root}/{name}"]]

"""Files of a report: found to be writable before any work, then written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from cachekd.errors import ConfigError
from cachekd.store.local import LocalFolder, nearest


def check_writable(path: Path, option: str, *, folder: bool = False) -> None:
    """Find out whether a file, or files in a folder, can be written here.

    Args:
        path: where to.
        option: setting that said so, for the message.
        folder: whether the path is that of a folder.

    Raises:
        ConfigError: it cannot; says what is in the way.
    """
    if path.is_dir() and not folder:
        raise ConfigError(f"{option}: {path} is a folder; expected the name of a file in it")
    above = nearest(str(path if folder else path.parent))
    try:
        LocalFolder(above).probe()
    except OSError as error:
        raise ConfigError(
            f"{option}: cannot write to {above} ({error.strerror}); choose another place"
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it; its folder is made.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    LocalFolder(str(path.parent)).replace(path.name, data)

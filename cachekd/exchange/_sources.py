"""The files of a source: where they are, and how they are opened.

Comes in: files and folders, local or fsspec URLs. Goes out: `File`s. What networks do is tried
again as it is for caches; messages tell neither what signs a URL nor who it is opened as.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar

from cachekd.errors import CachekdError, DataError
from cachekd.store.explained import clean, explained
from cachekd.store.names import shown
from cachekd.store.remote import opened
from cachekd.store.retries import Patience, lacks

T = TypeVar("T")
_BUFFER = 1 << 20
_SIGNED = ("http://", "https://")  # what follows "?" is no part of the name


class _Place:
    """A filesystem and a path on it; what is asked of it is tried again where that may help."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._patience = Patience()
        self.local = "://" not in url or url.startswith(("file://", "local://"))
        self.fs, self.path = self.tried(lambda: opened(url, {}))
        self._patience = Patience()  # nothing was reached yet

    def tried(self, call: Callable[[], T]) -> T:
        """What a call gives.

        Raises:
            FileNotFoundError: there is no such file, for sure.
            DataError: it cannot be read; says why, without secrets.
        """
        try:
            return self._patience.tried(shown(self.url), call)
        except Exception as error:
            if isinstance(error, CachekdError) or lacks(error):
                raise
            why, advice = explained(error)
            if isinstance(error, ValueError):  # a server without ranges, or an answer that is none
                advice = "Copy the file to this machine first"
            told = f"{shown(self.url)}: it cannot be read: {clean(why, {})}. {advice}"
            raise DataError(told) from error

    def is_folder(self) -> bool:
        """Whether the path is one (errors of `tried`)."""
        return bool(self.tried(lambda: self.fs.info(self.path)["type"] == "directory"))

    def inside(self) -> list[str]:
        """Paths of all files below it (errors of `tried`)."""
        return sorted(self.tried(lambda: self.fs.find(self.path)), key=_natural)


class File:
    """One file of a source: its base name for messages, and how it is opened."""

    def __init__(self, place: _Place, path: str) -> None:
        self._place = place
        self.path = path
        bare = re.sub(r"[?#].*", "", path) if path.startswith(_SIGNED) else path
        self._folder, _, self.name = bare.rpartition("/")

    def open(self) -> BinaryIO:
        """The file, for reading.

        Raises:
            DataError: it cannot be opened.
        """
        try:
            file: BinaryIO = self._place.tried(lambda: self._place.fs.open(self.path, "rb"))
        except FileNotFoundError as error:
            raise DataError(f"{self.name}: there is no such file") from error
        return (
            file if self._place.local else io.BufferedReader(_Patient(self._place, file), _BUFFER)
        )

    def beside(self, name: str) -> File:
        """A file of another name in the same folder."""
        return File(self._place, f"{self._folder}/{name}")

    def exists(self) -> bool:
        """Whether it is there."""
        return bool(self._place.tried(lambda: self._place.fs.isfile(self.path)))


class _Patient(io.RawIOBase):
    """A remote file; a read that failed is tried again from the same place, where it has places."""

    def __init__(self, place: _Place, file: Any) -> None:
        super().__init__()
        self._place, self._file = place, file

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """Whether the server has ranges."""
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a place."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """The place that is read next."""
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        """Bytes of the file; fewer than asked for only at its end."""
        place = self.tell()

        def read() -> bytes:
            if self.tell() != place:
                self.seek(place)
            return bytes(self._file.read(len(buffer)))

        data = self._place.tried(read)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close it."""
        if not self.closed:
            self._file.close()
        super().close()


def files_of(sources: Sequence[str], suffixes: Sequence[str]) -> list[File]:
    """All files of these sources with one of these suffixes; of folders in order of their numbers.

    Raises:
        ConfigError: there is no such protocol, or a package for it is lacking.
        DataError: a source is not there, cannot be read, or holds no such file; says what it holds.
    """
    found: list[File] = []
    for source in sources:
        place = _Place(source)
        try:
            inside = place.inside() if place.is_folder() else None
        except FileNotFoundError as error:
            raise DataError(
                f"{shown(source)}: there is no such file or folder; check the path"
            ) from error
        if inside is None:
            found.append(File(place, place.path))
            continue
        fitting = [name for name in inside if name.endswith(tuple(suffixes))]
        if not fitting:
            names = ", ".join(PurePosixPath(name).name for name in inside[:6]) or "nothing"
            raise DataError(
                f"{shown(source)}: expected files ending in {', '.join(suffixes)}; the folder "
                f"holds {names}"
            )
        found += [File(place, name) for name in fitting]
    return found


def _natural(path: str) -> list[Any]:
    """``data_2`` before ``data_10``."""
    parts: list[Any] = [""]
    for sign in path:
        if sign.isdigit() and isinstance(parts[-1], int):
            parts[-1] = 10 * parts[-1] + int(sign)
        elif sign.isdigit():
            parts.append(int(sign))
        elif isinstance(parts[-1], str):
            parts[-1] += sign
        else:
            parts.append(sign)
    return parts

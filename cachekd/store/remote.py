"""A cache's folder that is none of this machine's, through fsspec.

Comes in: names below the folder. A new file appears whole by one conditional put, which never
writes over another; on S3 that is ``If-None-Match: *``, of large files at the end of a multipart
upload, which nobody sees before. What networks do is tried again and counted. Nothing that was
listed or looked up before is believed. Errors are `FileNotFoundError`, `FileExistsError`, or a
`StoreError` that says all; none holds an option's value or what signs a URL.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

import pyarrow as pa

from cachekd.errors import ConfigError, StoreError
from cachekd.store.at_once import Read, read_at_once
from cachekd.store.explained import clean, told_of
from cachekd.store.listing import Entry, entries_of, folders_of
from cachekd.store.multipart import put
from cachekd.store.names import shown, too_large
from cachekd.store.pieces import PIECE_BYTES
from cachekd.store.retries import Patience, ShortBody, code_of, count, lacks, status_of

T = TypeVar("T")

CHUNK_BYTES = 16 << 20
_CANNOT_LIST = ("http", "https")
_CANNOT_CREATE = ("hf", *_CANNOT_LIST)
_EXTRAS = {"s3": "cachekd[s3]", "s3a": "cachekd[s3]", "http": "aiohttp", "https": "aiohttp"}
_NO_SUCH_RANGE = 416
_PROBE = ".probe-"
_NAMES = {"hf": "the hub", "http": "plain HTTP", "https": "plain HTTP"}
_log = logging.getLogger(__name__)


class RemoteFolder:
    """Files below a folder of a remote filesystem.

    Attributes:
        root: the folder's URL as messages name it.
        lists: whether it can tell which files there are; plain HTTP cannot.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url, self._options = url, options
        self.root = shown(url).rstrip("/")
        self._patience = Patience()
        self._connect()
        names = self._fs.protocol
        protocols = {names} if isinstance(names, str) else set(names)
        self.lists = protocols.isdisjoint(_CANNOT_LIST)
        self._creates = protocols.isdisjoint(_CANNOT_CREATE)
        self._parts = "s3" in protocols

    def _connect(self) -> None:
        self._process = os.getpid()
        self._fs, path = opened(self._url, self._options)
        self._path = path.rstrip("/") or "/"

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self._call(name, lambda fs, path: fs.info(path))
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str = "") -> list[str]:
        """Names of the files of a sub-folder (or of the root)."""
        if not self.lists:
            raise StoreError(
                f"{shown(self._url)}: plain HTTP cannot tell which files there are; only a sealed "
                "cache can be read from there"
            )
        return list(self.entries(folder))

    def entries(self, folder: str) -> dict[str, Entry]:
        """Files of a sub-folder (or of the root) by name, and what a listing tells of each."""
        return entries_of(self._listed(folder))

    def folders(self) -> list[str]:
        """Names of the folders below this one."""
        return folders_of(self._listed(""))

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        try:
            return list(self._call(folder, lambda fs, path: fs.ls(path, detail=True)))
        except FileNotFoundError:
            return []

    def size(self, name: str) -> int:
        """Bytes of a file."""
        size = self._call(name, lambda fs, path: fs.info(path)).get("size")
        return len(self.read(name)) if size is None else int(size)

    def read(self, name: str, most: int | None = None) -> bytes:
        """All bytes of a file, which may have at most so many."""
        data = self._head(name, None if most is None else most + 1)
        if most is not None and len(data) > most:
            raise too_large(f"{self.root}/{name}", most)
        return data

    def _head(self, name: str, end: int | None) -> bytes:
        try:
            return bytes(self._call(name, lambda fs, path: fs.cat_file(path, end=end)))
        except StoreError as error:
            if status_of(error) == _NO_SUCH_RANGE:  # of an empty file
                return b""
            raise

    def reader(
        self, folder: str, most: int | None, names: Iterable[str]
    ) -> AbstractContextManager[Read]:
        """Within: reads these files of a sub-folder, as `read` does."""
        return read_at_once(names, lambda base: self.read(f"{folder}/{base}", most))

    def map(self, name: str) -> pa.Buffer:
        """All bytes of a file, in memory."""
        return pa.py_buffer(self.read(name))

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of a file of this size, in order."""
        yield from self._rest(name, 0, size, CHUNK_BYTES)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, in order; how many is asked where they are more than one piece."""
        first = self._head(name, PIECE_BYTES)
        yield first
        place = len(first)  # of a server without ranges all of it
        size = self.size(name) if place == PIECE_BYTES else place
        del first
        if place < size:
            yield from self._rest(name, place, size, PIECE_BYTES)

    def _rest(self, name: str, place: int, size: int, most: int) -> Iterator[bytes]:
        while place < size or not place:
            part = self._chunk(name, place, min(most, size - place), size)
            yield part
            place += len(part)
            if not part:
                return

    def _chunk(self, name: str, start: int, length: int, size: int) -> bytes:
        def read(fs: Any, path: str) -> bytes:
            data = bytes(fs.cat_file(path, start=start, end=start + length) if size else b"")
            if len(data) == size:  # a server without ranges sends all
                return data[start:]
            if len(data) != length:
                raise ShortBody(f"expected {length} bytes at {start} of {path}, found {len(data)}")
            return data

        try:  # a file of this name can have no other bytes: what was listed before may be believed
            return self._call(name, read, fresh=False)
        except FileNotFoundError:
            return self._call(name, read)

    def create(self, name: str, data: bytes) -> bool:
        """Make a file, whole or not at all; False if another one has its name.

        True also where the file is there with these bytes: an answer to an earlier try may have
        been lost on the way.
        """
        whole = bytes(data)
        with suppress(FileExistsError):
            self._call(name, lambda fs, path: fs.pipe_file(path, whole, mode="create"))
            return True
        # Not within the handler: errors of this reading would be taken for what the put met.
        if self.size(name) != len(whole) or self.read(name) != whole:
            return False
        count("puts_found_done")
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all, in the place of an older one."""
        whole = bytes(data)
        self._call(name, lambda fs, path: fs.pipe_file(path, whole))

    def put(self, name: str, pieces: Callable[[], Iterable[bytes]], *, over: bool) -> bool:
        """Write a file of pieces, whole or not at all; False if another has its name.

        Only on S3 they go as they come; a store that knows no parts is given all of them at once.
        """
        joined = (lambda: (b"".join(pieces()),)) if not self._parts else pieces
        with suppress(FileExistsError):
            put(lambda call: self._call(name, call), joined(), over=over)
            return True
        return False

    def remove(self, name: str) -> None:
        """Take a file away; no error if there is none."""
        with suppress(FileNotFoundError):  # another was first, or an earlier try was
            self._call(name, lambda fs, path: fs.rm_file(path))

    def _call(self, name: str, call: Callable[[Any, str], T], *, fresh: bool = True) -> T:
        """What a call on a path gives, tried again where that may help.

        Fresh: what the filesystem remembers of listings and look-ups is not believed.
        """
        if self._process != os.getpid():  # connections are not shared with the parent
            self._connect()
        path = f"{self._path}/{name}" if name else self._path

        def once() -> T:
            if fresh:
                self._fs.invalidate_cache()
            return call(self._fs, path)

        try:
            return self._patience.tried(shown(path), once)
        except Exception as error:
            if exists(error):
                raise FileExistsError(shown(path)) from error
            if lacks(error) and code_of(error) != "NoSuchBucket":
                raise
            raise StoreError(told_of(f"{self.root}/{name}", error, self._options)) from error

    def probe(self) -> None:
        """Make a file and take it away, if that may be; find out whether a second one is refused.

        Raises:
            ConfigError: there is no exclusive create here.
            StoreError: a file cannot be made.
        """
        name = f"{_PROBE}{secrets.token_hex(16)}"
        if self._creates:
            self.create(name, b"1")
            refused = not self.create(name, b"2")
            try:
                self.remove(name)
            except StoreError as error:  # a place that only grows is as good
                _log.warning("what was made to try a place stays there, 1 byte: %s", error)
        if not self._creates or not refused:
            raise ConfigError(
                f"{self.root}: {_NAMES.get(self.root.partition(':')[0], 'this store')} has no "
                "exclusive create; "
                "build the cache in a local folder, then upload it"
            )


def opened(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """A filesystem and the path on it.

    Raises:
        ConfigError: there is no such protocol, or it needs a package that is not there.
        StoreError: it is asked for on the way, and cannot be reached.
    """
    import fsspec

    protocol = url.partition("://")[0]
    settings = dict(options)
    if protocol in ("s3", "s3a"):  # tries are counted here, and none is made below
        settings.setdefault("config_kwargs", {"retries": {"total_max_attempts": 1}})
        settings.setdefault("use_listings_cache", False)
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **settings)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        install = f". pip install '{extra}'" if extra else ""
        raise ConfigError(f"{shown(url)!r} cannot be opened: {error}{install}") from error
    except (ValueError, TypeError) as error:
        why = clean(f"{error}", options)
        raise ConfigError(f"{shown(url)!r} is not a location that can be opened: {why}") from error
    except OSError as error:  # of a filesystem that is connected to at once
        raise StoreError(told_of(shown(url), error, options)) from error
    if protocol in ("s3", "s3a"):
        filesystem.retries = 1
    return filesystem, root


def exists(error: BaseException) -> bool:
    """Whether a conditional put found a file."""
    return isinstance(error, FileExistsError) or code_of(error) == "PreconditionFailed"

"""Files of remote caches fetched before they are read, by threads beside the reader.

Comes in: what will be read, in order, with the place in that order where each is first read. Goes
out: files in the local cache. It is a help alone: what fails here is met again by the reader, who
fetches for itself and tells of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cachekd.errors import CachekdError
from cachekd.store.retries import count

_THREADS = 4
_END_SECONDS = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that will be read.

    Attributes:
        place: where in the order it is first read.
        size: its bytes.
        fetch: brings it here.
    """

    place: int
    size: int
    fetch: Callable[[], None]


class Ahead:
    """Fetches files in their order, at most so many bytes before they are read.

    Args:
        files: sorted by place.
        limit: bytes that may be fetched and not be read yet; one file may always be.
    """

    def __init__(self, files: Sequence[Wanted], limit: int) -> None:
        self._files, self._limit = files, limit
        self._next = self._read = self._waiting = 0  # files in [_read, _next) wait to be read
        self._place = 0
        self._change = threading.Condition()
        self._ended = False

    @contextmanager
    def running(self) -> Iterator[Callable[[int], None]]:
        """Within, files are fetched; what is given back tells the place that is read now."""
        threads = [
            threading.Thread(target=self._run, name="cachekd-ahead", daemon=True)
            for _ in range(min(_THREADS, len(self._files)))
        ]
        for thread in threads:
            thread.start()
        try:
            yield self._at
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()
            for thread in threads:
                thread.join(_END_SECONDS)

    def _at(self, place: int) -> None:
        with self._change:
            self._place = place
            read = self._read
            while self._read < self._next and self._files[self._read].place <= place:
                self._waiting -= self._files[self._read].size
                self._read += 1
            if self._read > read:  # else there is no more room than before
                self._change.notify_all()

    def _run(self) -> None:
        while (file := self._take()) is not None:
            try:
                file.fetch()
                count("files_ahead")
            except CachekdError as error:
                _log.info("not fetched ahead: %s", error)

    def _take(self) -> Wanted | None:
        """The next file that is not read yet, when there is room for it."""
        with self._change:
            while not self._ended and self._next < len(self._files):
                file = self._files[self._next]
                if file.place < self._place:  # the reader was first
                    self._next = self._read = self._next + 1
                elif not self._waiting or self._waiting + file.size <= self._limit:
                    self._next += 1
                    self._waiting += file.size
                    return file
                else:
                    self._change.wait()
        return None

"""What may be tried again over a network, how long, and how often it was.

Comes in: an operation on a remote filesystem. Goes out: its result, or the error of the last try.
Which errors pass is told by their class and status, so that no client library is imported here.
Waits double from `FIRST_SECONDS` to `MOST_SECONDS`, each shortened at random; an operation is given
up after `TOTAL_SECONDS`, or after `CONTACT_SECONDS` if nothing ever came from that location.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")

FIRST_SECONDS, MOST_SECONDS = 0.1, 5.0
TOTAL_SECONDS, CONTACT_SECONDS = 120.0, 20.0
# Conflict (a conditional put beside another), throttled, and what servers say when they are ill.
_STATUSES = frozenset([408, 409, 425, 429, 500, 502, 503, 504])
# Also the end of an upload in parts that was done already, its answer lost: the next put finds out.
_NO_UPLOAD = "NoSuchUpload"
_CODES = frozenset(
    "SlowDown RequestTimeout InternalError ServiceUnavailable XAmzContentSHA256Mismatch BadDigest "
    f"IncompleteBody ConditionalRequestConflict OperationAborted {_NO_UPLOAD}".split()
)
_CLASSES = frozenset(
    # aiohttp, botocore, fsspec, httpx and requests: connections, and bodies that are not whole
    "ClientConnectionError ClientPayloadError HTTPClientError ResponseStreamingError "
    "IncompleteReadError FlexibleChecksumError ResponseParserError FSTimeoutError TransportError "
    "ChunkedEncodingError ConnectionError TimeoutError ShortBody".split()
)
_SETTLED = frozenset(["OfflineModeIsEnabled"])  # a kind of ConnectionError, and yet it stays
_log = logging.getLogger(__name__)
_lock = [threading.Lock()]
_counts: Counter[str] = Counter()


def count(kind: str, number: int = 1) -> None:
    """Note that something happened, so that reports can tell."""
    with _lock[0]:
        _counts[kind] += number


def counted() -> dict[str, int]:
    """How often each kind of thing happened in this process: ``retries`` and its like."""
    with _lock[0]:
        return dict(_counts)


def since(before: Mapping[str, int]) -> dict[str, int]:
    """What happened since these counts were taken."""
    found = Counter(counted())
    found.subtract(before)
    return {kind: number for kind, number in sorted(found.items()) if number}


class ShortBody(OSError):
    """A server sent fewer or more bytes than it should."""


class Patience:
    """Tries operations on one location again.

    Attributes:
        reached: whether an answer ever came from there.
    """

    def __init__(self) -> None:
        self.reached = False
        self._random = random.SystemRandom()

    def tried(self, what: str, call: Callable[[], T]) -> T:
        """What a call gives; tried again while its error may pass.

        Raises:
            Exception: the call's last one.
        """
        started = time.monotonic()
        for number in range(1, 1 << 30):
            try:
                found = call()
                self.reached = True
                return found
            except Exception as error:
                self.reached |= status_of(error) is not None
                longest = TOTAL_SECONDS if self.reached else CONTACT_SECONDS
                pause = min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(number - 1, 30))
                pause *= self._random.uniform(0.5, 1.0)
                if not passes(error) or time.monotonic() + pause - started > longest:
                    if number > 1:
                        error.add_note(f"tried {number} times")
                    raise
                count("retries")
                _log.info("%s: try %d failed (%s); again", what, number, type(error).__name__)
            time.sleep(pause)
        raise AssertionError("unreachable")


def passes(error: BaseException) -> bool:
    """Whether the same operation may succeed later."""
    if isinstance(error, PermissionError | FileExistsError) or lacks(error):
        return False
    for one in chain(error):
        if type(one).__name__ in _SETTLED:
            return False
        if code_of(one) in _CODES:
            return True
        status = status_of(one)
        if status is not None:
            return status in _STATUSES
        if _CLASSES.intersection(kind.__name__ for kind in type(one).__mro__):
            return True
    return False


def lacks(error: BaseException) -> bool:
    """Whether an error says for sure that there is no such file.

    fsspec's HTTP says so of anything that went wrong; its cause tells.
    """
    if not isinstance(error, FileNotFoundError) or code_of(error) == _NO_UPLOAD:
        return False
    causes = list(chain(error))[1:]
    statuses = [status for status in map(status_of, causes) if status is not None]
    if statuses:
        return any(status in (404, 410) for status in statuses)
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    return not names & _CLASSES


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error tells of, as the client libraries keep it."""
    for one in chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(response, "status_code", getattr(one, "status", None))
        if isinstance(status, int):
            return status
    return None


def code_of(error: BaseException) -> str:
    """The code of an S3 error, or nothing."""
    for one in chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _after_fork() -> None:
    _lock[0] = threading.Lock()  # a thread of the parent may have had it
    _counts.clear()


os.register_at_fork(after_in_child=_after_fork)

"""Where memory is short: one kind of error whatever the device calls it, and work in pieces.

Comes in: a call on a batch. Goes out: what it gives, of the whole batch or of one piece after
another. Nothing of a failed try is held while the next one runs.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

MOST_FAILURES = 5
"""Tries in a row that may fail before a batch is given up."""
_SHORT = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "not enough memory")

T = TypeVar("T")


@contextmanager
def one_memory_error() -> Iterator[None]:
    """Within, running out of memory is a `MemoryError`, on a CPU as on a GPU."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
    except RuntimeError as error:
        if any(words in str(error) for words in _SHORT):
            raise MemoryError(str(error)) from error
        raise


def release() -> None:
    """Give back what a failed try held: its frames are a cycle, and a GPU keeps freed blocks."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def in_pieces(
    rows: int, call: Callable[[slice], list[T]], given_up: Callable[[slice, str], Exception]
) -> tuple[list[T], int]:
    """What ``call`` gives of all rows, and in how many pieces lack of memory cut them.

    The whole is tried twice, for what is short now may be free soon; after that pieces shrink, so
    that the last try of `MOST_FAILURES` in a row is of a single row. Each piece that is done
    counts anew; the next one is as large.

    Args:
        rows: of the batch, at least 1.
        call: gives one result a row, or raises `MemoryError`.
        given_up: the error for rows that were given up, of these rows and the last failure.

    Raises:
        Exception: what ``given_up`` makes.
    """
    found: list[T] = []
    size, pieces, failures, failure = rows, 0, 0, ""
    while len(found) < rows:
        part = slice(len(found), min(len(found) + size, rows))
        try:
            done = call(part)
        except MemoryError as error:
            failure = str(error)  # the error itself holds the frames of the try
        else:
            assert len(done) == part.stop - part.start, "one result a row"
            found += done
            pieces, failures = pieces + 1, 0
            continue
        failures += 1
        release()
        if failures == MOST_FAILURES:
            raise given_up(part, failure)
        if failures > 1:
            size = _smaller(part.stop - part.start, MOST_FAILURES - failures)
    return found, pieces


def _smaller(size: int, tries: int) -> int:
    """The next size on the way to 1 at the last of so many tries."""
    return max(1, min(size // 2, int(size ** (1 - 1 / tries) + 1e-9)))

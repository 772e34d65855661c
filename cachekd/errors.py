"""Every error a user can meet, drawn as one tree.

    CachekdError
    ├── ConfigError         a setting is wrong, unknown or contradicts another
    ├── DataError           a data file or a row of it cannot be used
    ├── TeacherError        a teacher cannot be loaded, or gave targets that cannot be stored
    │   └── BadTargets      of some rows it gave no distribution
    ├── StoreError          a location cannot be read or written
    │   ├── CacheNotFound   there is no cache at this place
    │   ├── UnsealedCache   the cache is not finished
    │   └── CorruptCache    a file of the cache is missing, altered or cannot be decoded
    ├── WorkerError         a process that reads samples for training died, or had no memory
    ├── NonFiniteLoss       the loss of a training step, or its gradient, is nan or infinite
    ├── MismatchError       two things that must belong together do not (wrong pair)
    └── Incomplete          stopped in good order; the same command continues

A message says what was expected, what was found, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INCOMPLETE = 3
EXIT_CORRUPT = 4
EXIT_MISMATCH = 5


class CachekdError(Exception):
    """Base of all errors that cachekd raises for a user."""

    exit_code = EXIT_FAILED


class ConfigError(CachekdError):
    """A setting is wrong, unknown, or contradicts another."""

    exit_code = EXIT_USAGE


class DataError(CachekdError):
    """A data file, or a row of one, cannot be used."""


class TeacherError(CachekdError):
    """A teacher cannot be loaded, or gave targets that cannot be stored."""


class BadTargets(TeacherError):
    """A teacher gave no distribution of some rows.

    Args:
        what: what is wrong with them.
        rows: these rows, by the document's place in the batch.
    """

    def __init__(self, what: str, rows: Mapping[int, Sequence[int]] = MappingProxyType({})) -> None:
        super().__init__(what)
        self.rows = rows


class StoreError(CachekdError):
    """A location cannot be read or written."""


class CacheNotFound(StoreError):
    """There is no cache at this place."""


class UnsealedCache(StoreError):
    """The cache has no seal, and the caller did not ask for a partial one."""


class CorruptCache(StoreError):
    """A file of the cache is missing, altered, or cannot be decoded."""

    exit_code = EXIT_CORRUPT


class WorkerError(CachekdError):
    """A process of cachekd died, did not start, or had no memory left."""


class NonFiniteLoss(CachekdError):
    """The loss of a training step or its gradient is nan or infinite: the step was not taken."""


class MismatchError(CachekdError):
    """Two things that must belong together do not: tokenizer, weights, capture, or vocabulary."""

    exit_code = EXIT_MISMATCH


class Incomplete(CachekdError):
    """The work stopped in good order before its end; the same command continues it."""

    exit_code = EXIT_INCOMPLETE

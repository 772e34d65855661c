"""What a Parquet file of another tool says that it unpacks to, looked at before it is read.

Comes in: a stream of the file. Goes out: nothing, or a refusal. Values that repeat are packed to
next to nothing, so that a file of some kilobytes may say that it holds billions. Log-probabilities
do not repeat: what unpacks to a thousand times its bytes is none.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from cachekd.data import limits
from cachekd.errors import DataError
from cachekd.store.thrift import Reader

_END = 8  # the length of the footer, and the mark of the format
_GROUPS, _COLUMNS, _ABOUT, _VALUES, _UNPACKED = 4, 1, 3, 5, 6
_WIDTH = 8  # bytes of a value, at the most
_RATIO, _SLACK = 1000, 1 << 26


def refuse_bomb(stream: BinaryIO, name: str) -> None:
    """Refuse a file that unpacks to far more than it holds.

    Raises:
        DataError: it does, or its footer cannot be read.
    """
    size = stream.seek(0, 2)
    try:
        unpacked = _unpacked(_footer(stream, size))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{name}: the file cannot be read: its footer is none of Parquet ({error!r:.100})"
        ) from error
    if unpacked > _SLACK + _RATIO * size:
        raise DataError(
            f"{name}: a file of {size} bytes says that it unpacks to {unpacked}, more than "
            f"{_RATIO} times as many; it is no file of log-probabilities, and nothing of it was "
            "unpacked"
        )


def _footer(stream: BinaryIO, size: int) -> dict[int, Any]:
    stream.seek(max(0, size - _END))
    length = int.from_bytes(stream.read(4), "little")
    if not 0 < length <= min(limits.FOOTER_BYTES, size - 12):
        raise ValueError(f"a footer of {length} bytes")
    stream.seek(size - _END - length)
    return Reader(stream.read(length)).struct()


def _unpacked(footer: dict[int, Any]) -> int:
    """Bytes that all columns unpack to, as the footer has it."""
    columns = [c[_ABOUT] for group in footer.get(_GROUPS, []) for c in group[_COLUMNS]]
    return sum(max(_WIDTH * about[_VALUES], about[_UNPACKED]) for about in columns)

"""JSONL files: one object a line, and lines that hold none.

Comes in: a stream. Goes out: lines with their number, and the object or the table of a line; what
is wrong with a line is told of that line alone, so that it can be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from cachekd.errors import DataError
from cachekd.exchange import Broken

LINE_BYTES = 1 << 28
"""Bytes of a line at most: more are not read."""


def lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their number from 0.

    Raises:
        DataError: a line is longer than `LINE_BYTES`.
    """
    number = 0
    while line := stream.readline(LINE_BYTES + 1):
        if len(line) > LINE_BYTES:
            raise DataError(
                f"{name} line {number + 1}: more than {LINE_BYTES} bytes; expected one JSON object "
                "a line"
            )
        if not line.isspace():
            yield number, line
        number += 1


def object_of(line: bytes, name: str, number: int) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        DataError: it is none.
    """
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} line {number + 1}: expected one JSON object; {error}") from error
    if not isinstance(value, dict):
        raise DataError(
            f"{name} line {number + 1}: expected one JSON object; found {type(value).__name__}"
        )
    return value


def told(text: str) -> str:
    """A reason that can be printed and stored: half characters of a line are replaced."""
    return text.encode("utf-8", "replace").decode()


def rows(
    stream: BinaryIO, name: str, columns: Sequence[str]
) -> Iterator[tuple[int, pa.RecordBatch | Broken]]:
    """Each line as a table of one row, or why it is none with these columns.

    Raises:
        DataError: a line is longer than `LINE_BYTES`.
    """
    for number, line in lines(stream, name):
        try:
            row = object_of(line, name, number)
            missing = [column for column in columns if row.get(column) is None]
            if missing:
                raise DataError(f"it has no {', '.join(missing)}")
            yield number, pa.RecordBatch.from_pylist([row])
        except (DataError, pa.ArrowException, OverflowError, ValueError, TypeError) as error:
            # Numbers beyond 64 bits, and text that is no Unicode, fit no column.
            reason = told(str(error).removeprefix(f"{name} "))
            yield number, Broken(source=name, row=number, reason=reason)

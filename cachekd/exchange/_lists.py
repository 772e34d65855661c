"""Rows of a table as documents; lists of lists as flat arrays, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cachekd.errors import DataError
from cachekd.exchange import Broken, Document, Found
from cachekd.exchange._files import Batch, list_of, numbers
from cachekd.types import Int64


def documents_of(
    batches: Iterator[Batch], document: Callable[[str, int, pa.RecordBatch, int], Document | str]
) -> Iterator[Found]:
    """One document a row.

    Args:
        batches: rows of a source.
        document: of the name of the file, the number of a row, a batch, and the place of the row in
            it: the document, or what is wrong with it.
    """
    for source, first, batch in batches:
        if isinstance(batch, Broken):
            yield batch
            continue
        for place in range(batch.num_rows):
            try:
                found = document(source, first + place, batch, place)
            except DataError as error:
                found = str(error)
            if isinstance(found, str):
                yield Broken(source=source, row=first + place, reason=found)
            else:
                yield found


def nested_rows(column: pa.Array, place: int, dtype: Any) -> tuple[Int64, np.ndarray]:
    """Entries of each row of a document, int64 [R], and their values [n].

    Raises:
        DataError: the column holds no lists of lists of numbers.
    """
    offsets, rows, _ = list_of(column)
    inner, values, _ = list_of(rows)
    first, last = offsets[place], offsets[place + 1]
    flat = values.slice(inner[first], inner[last] - inner[first])
    return np.diff(inner[first : last + 1]), numbers(flat, dtype)


def list_column(parts: Sequence[np.ndarray]) -> pa.ListArray:
    """One list a document."""
    offsets = np.cumsum([0, *map(len, parts)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(parts)))


def nested(parts: Sequence[np.ndarray]) -> pa.ListArray:
    """Documents of rows [R, K] as lists of lists."""
    width = parts[0].shape[1]
    rows = np.cumsum([0, *(len(part) for part in parts)])
    inner = pa.ListArray.from_arrays(
        pa.array(np.arange(rows[-1] + 1) * width, pa.int32()),
        pa.array(np.concatenate(parts).ravel()),
    )
    return pa.ListArray.from_arrays(pa.array(rows, pa.int32()), inner)


def ragged(counts: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> pa.ListArray:
    """Documents of ragged rows as lists of lists: entries of each row, and their values."""
    inner = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(np.concatenate(counts))]), pa.int32()),
        pa.array(np.concatenate(values)),
    )
    rows = np.cumsum([0, *map(len, counts)])
    return pa.ListArray.from_arrays(pa.array(rows, pa.int32()), inner)

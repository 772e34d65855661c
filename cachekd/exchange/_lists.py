"""Rows of a table as documents; lists of lists as flat arrays, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cachekd.errors import DataError
from cachekd.exchange import Broken, Document, Found, Mask
from cachekd.exchange._files import Batch, list_of, numbers
from cachekd.store.tables import flat_column
from cachekd.types import Int64, Role, UInt8

IGNORED = -100
"""The label of a token that is not trained."""


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
    offsets, rows = list_of(column)
    inner, values = list_of(rows)
    first, last = offsets[place], offsets[place + 1]
    flat = values.slice(inner[first], inner[last] - inner[first])
    return np.diff(inner[first : last + 1]), numbers(flat, dtype)


def roles_of(length: int, trained: Mask | None) -> tuple[UInt8, int | None]:
    """Role of each token, and the prompt's length where what is not trained is one prompt."""
    if trained is None or trained.all() or not trained.any():
        return np.full(length, Role.TEXT, np.uint8), None
    roles = np.where(trained, Role.ASSISTANT, Role.USER).astype(np.uint8)
    first = int(trained.argmax())
    return roles, first if first and trained[first:].all() else None


def list_column(parts: Sequence[np.ndarray]) -> pa.ListArray:
    """One list a document."""
    return _listed(np.cumsum([0, *map(len, parts)]), _flat(np.concatenate(parts)))


def nested(parts: Sequence[np.ndarray]) -> pa.ListArray:
    """Documents of rows [R, K] as lists of lists."""
    width = parts[0].shape[1]
    rows = np.cumsum([0, *(len(part) for part in parts)])
    values = _flat(np.concatenate(parts).ravel())
    return _listed(rows, _listed(np.arange(rows[-1] + 1) * width, values))


def ragged(counts: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> pa.ListArray:
    """Documents of ragged rows as lists of lists: entries of each row, and their values."""
    inner = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    rows = np.cumsum([0, *map(len, counts)])
    return _listed(rows, _listed(inner, _flat(np.concatenate(values))))


def text_column(texts: Sequence[str]) -> pa.Array:
    """One text a document; unlike ``pa.array``, loads no pandas."""
    parts = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, parts)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(parts))]
    return pa.Array.from_buffers(pa.string(), len(parts), buffers)


def _listed(offsets: np.ndarray, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(flat_column(offsets.astype(np.int32), pa.int32()), values)


def _flat(values: np.ndarray) -> pa.Array:
    return flat_column(values, pa.from_numpy_dtype(values.dtype))

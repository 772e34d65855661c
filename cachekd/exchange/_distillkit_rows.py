"""Rows of DistillKit's Parquet as documents: columns of one width, and packed sets taken apart.

Comes in: batches of rows, and the settings of the compressor. Goes out: documents, or why a row is
none. A packed row numbers its documents in ``attention_mask``; 0 is padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from cachekd.errors import DataError
from cachekd.exchange import Broken, Document, Found
from cachekd.exchange._distillkit import Compressor, LegacyCompressor, decode, decode_legacy
from cachekd.exchange._files import Batch, list_of, numbers
from cachekd.exchange._lists import IGNORED, roles_of
from cachekd.types import Int64

CURRENT = ("input_ids", "compressed_logprobs", "bytepacked_indices")
LEGACY = ("input_ids", "packed_indices", "exact_values", "coeffs")


@dataclass(frozen=True, slots=True, eq=False)
class _Lists:
    """A column [documents][rows][width] of a batch, flat."""

    offsets: Int64
    inner: Int64
    values: pa.Array

    def rows(self, place: int, width: int, dtype: Any) -> np.ndarray | str:
        """Rows of a document, [R, width], or what is wrong with them."""
        first, last = self.offsets[place], self.offsets[place + 1]
        widths = np.diff(self.inner[first : last + 1])
        if (widths != width).any():
            found = sorted({*widths.tolist()})[:3]
            return f"rows of {', '.join(map(str, found))} values where the settings say {width}"
        flat = self.values.slice(self.inner[first], self.inner[last] - self.inner[first])
        return numbers(flat, dtype).reshape(-1, width)


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """A batch: tokens, columns of packed rows, and the documents that tokens are of, flat."""

    tokens: Int64
    ids: pa.Array
    columns: Mapping[str, _Lists]
    masks: tuple[Int64, pa.Array] | None
    labels: tuple[Int64, pa.Array] | None


def _opened(batch: pa.RecordBatch, names: Sequence[str]) -> _Opened:
    """Columns of a batch.

    Raises:
        DataError: one of them holds no lists.
    """
    tokens, ids = list_of(batch.column("input_ids"))
    masks, labels = (
        list_of(batch.column(name)) if name in batch.schema.names else None
        for name in ("attention_mask", "labels")
    )
    columns = {name: _lists(batch.column(name)) for name in names}
    return _Opened(tokens, ids, columns, masks, labels)


def documents(batches: Iterator[Batch], settings: Compressor | LegacyCompressor) -> Iterator[Found]:
    """Documents of rows; of a packed one, each that was packed into it."""
    names = LEGACY if isinstance(settings, LegacyCompressor) else CURRENT
    for source, first, batch in batches:
        if isinstance(batch, Broken):
            yield batch
            continue
        try:
            opened = _opened(batch, names[1:])
        except DataError as error:
            for row in range(first, first + batch.num_rows):
                yield Broken(source=source, row=row, reason=str(error))
            continue
        for place in range(batch.num_rows):
            yield from _of_row(source, first + place, opened, place, settings)


def _of_row(
    source: str, row: int, opened: _Opened, place: int, settings: Compressor | LegacyCompressor
) -> Iterator[Found]:
    """The documents of a row, or what is wrong with it."""
    try:
        own = _numbers(opened.tokens, opened.ids, place)
        found = _entries(opened.columns, place, settings)
        segments = None if opened.masks is None else _numbers(*opened.masks, place)
        labels = None if opened.labels is None else _numbers(*opened.labels, place)
    except DataError as error:
        found = str(error)
    if isinstance(found, str):
        yield Broken(source=source, row=row, reason=found)
    else:
        yield from _split(source, row, own, *found, segments, labels)


def _numbers(offsets: Int64, values: pa.Array, place: int) -> Int64:
    """One list of whole numbers."""
    found: Int64 = numbers(
        values.slice(offsets[place], offsets[place + 1] - offsets[place]), np.int64
    )
    return found


def _lists(column: pa.Array) -> _Lists:
    offsets, rows = list_of(column)
    inner, values = list_of(rows)
    return _Lists(offsets, inner, values)


def _entries(
    columns: Mapping[str, _Lists], place: int, settings: Compressor | LegacyCompressor
) -> tuple[np.ndarray, np.ndarray] | str:
    """Ids and values [R, k] of a document's rows, or what is wrong with them."""
    wanted: tuple[tuple[str, int, Any], ...]
    if isinstance(settings, LegacyCompressor):
        wanted = (
            ("packed_indices", settings.words, np.uint64),
            ("exact_values", settings.exact_k, np.float32),
            ("coeffs", settings.terms, np.float32),
        )
    else:
        wanted = (
            ("compressed_logprobs", settings.value_bytes, np.uint8),
            ("bytepacked_indices", settings.id_bytes, np.uint8),
        )
    parts = []
    for name, width, dtype in wanted:
        found = columns[name].rows(place, width, dtype)
        if isinstance(found, str):
            return f"{name}: {found} (settings of another compressor?)"
        parts.append(found)
    if len({len(part) for part in parts}) != 1:
        return f"columns of {', '.join(str(len(part)) for part in parts)} rows do not agree"
    if isinstance(settings, LegacyCompressor):
        return decode_legacy(settings, *parts)
    return decode(settings, *parts)


def _split(
    source: str,
    row: int,
    input_ids: Int64,
    ids_RK: np.ndarray,
    values_RK: np.ndarray,
    segments: Int64 | None,
    labels: Int64 | None,
) -> Iterator[Found]:
    """The document of a row, or the several that were packed into it."""
    length = len(input_ids)
    reason = _misfit(length, len(ids_RK), {"attention_mask": segments, "labels": labels})
    if reason is not None:
        yield Broken(source=source, row=row, reason=reason)
        return
    starts = [0, length]
    if segments is not None:
        starts = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), length]
    for start, stop in pairwise(starts):
        if stop - start < 2 or (segments is not None and segments[start] == 0):
            continue  # padding, or a document whose other tokens were cut off
        part = slice(start, stop - 1)
        trained = None if labels is None else labels[start:stop] != IGNORED
        roles, prompt_length = roles_of(stop - start, trained)
        yield Document(
            source=source,
            row=row,
            input_ids=input_ids[start:stop],
            counts=np.full(stop - 1 - start, ids_RK.shape[1], np.int64),
            ids=ids_RK[part].ravel(),
            logprobs=values_RK[part].ravel(),
            roles=roles,
            prompt_length=prompt_length,
        )


def _misfit(length: int, rows: int, columns: Mapping[str, Int64 | None]) -> str | None:
    """How rows and columns of tokens do not fit so many token ids, or None."""
    if rows not in (length, length - 1):
        return f"{rows} rows beside {length} token ids; expected {length - 1} or {length}"
    for name, values in columns.items():
        if values is not None and len(values) != length:
            return f"{name} of {len(values)} places beside {length} token ids"
    return None

"""All samples of a cache as one table, put together shard by shard.

Comes in: rows of samples shards. Goes out: a `SampleTable` in which each sample id stands once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from cachekd.data.packed import Keys, Labels, Places, has_copies
from cachekd.data.spool import Spool
from cachekd.store.samples import SampleTable
from cachekd.store.tables import SAMPLES, ints_or, numpy_of, packed_of, whole_of
from cachekd.types import Int64


def collect(tables: Iterable[tuple[pa.Table, bool]], *, on_disk: bool = False) -> SampleTable:
    """Samples of several shards in the order given; a sample id that was met is left out.

    Args:
        tables: each with whether the teacher wrote its responses.
        on_disk: keep the columns there, and mapped: see `cachekd.data.spool`.
    """
    column = _Spooled if on_disk else _Grown
    samples = _joined((_unpacked(*table) for table in tables), column)
    if not has_copies(samples.ids):
        return samples
    copies = Places(samples.ids).copies()
    return samples.take(np.flatnonzero(copies == 0)) if copies.any() else samples


def _joined(parts: Iterable[SampleTable], kind: type[_Grown] | type[_Spooled]) -> SampleTable:
    """Samples of all parts; each part is let go before the next one comes."""
    empty = _unpacked(pa.Table.from_batches([], SAMPLES), False)  # loads no pandas
    columns = {name: kind(column) for name, column in _columns(empty).items()}
    columns["span_offsets"] = kind(np.zeros(1, np.int64))
    names: dict[str, int] = {}
    spans = 0
    for part in parts:
        arrays = _columns(part)
        arrays["span_offsets"] = arrays["span_offsets"][1:] + spans
        numbers = [names.setdefault(name, len(names)) for name in part.domains.names]
        arrays["domains"] = np.array(numbers, np.int32)[arrays["domains"]]
        for name, column in arrays.items():
            columns[name].append(column)
        spans += len(part.span_ends)
        del part, arrays
    return _table({name: column.array for name, column in columns.items()}, list(names))


def _table(arrays: dict[str, np.ndarray], names: Sequence[str]) -> SampleTable:
    """The table of these columns, by name, and of the names of its domains."""
    packed: dict[str, Any] = {
        "ids": Keys(arrays["ids"]),
        "keys": Keys(arrays["keys"]),
        "domains": Labels(arrays["domains"], names),
    }
    return SampleTable(**{**arrays, **packed})


def _columns(table: SampleTable) -> dict[str, np.ndarray]:
    """Columns of a table by name."""
    found = {field.name: getattr(table, field.name) for field in fields(table)}
    packed = {"ids": table.ids.array, "keys": table.keys.array, "domains": table.domains.codes}
    return {**found, **packed}


class _Grown:
    """An array that grows in its place, where the system moves pages and copies nothing."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array.copy()

    def append(self, more: np.ndarray) -> None:
        count = len(self.array)
        self.array.resize(count + len(more), refcheck=False)
        self.array[count:] = more


class _Spooled:
    """An array that grows on disk."""

    def __init__(self, array: np.ndarray) -> None:
        self._spool, self._dtype = Spool(), array.dtype
        self.append(array)

    def append(self, more: np.ndarray) -> None:
        self._spool.append(np.ascontiguousarray(more).view(np.uint8).data)

    @property
    def array(self) -> np.ndarray:
        return self._spool.mapped(self._dtype)


def _unpacked(table: pa.Table, written: bool) -> SampleTable:
    """Columns of one shard, copied so that the table can go."""
    columns = {name: whole_of(table[name]) for name in table.column_names}
    roles, ends = (_list_values(columns[name]) for name in ("span_roles", "span_ends"))
    domains = columns["domain"].dictionary_encode()
    return SampleTable(
        ids=packed_of(columns["sample_id"]),
        keys=packed_of(columns["key"]),
        lengths=numpy_of(columns["n_tokens"]).astype(np.int32),
        prompt_lengths=ints_or(columns["prompt_length"], -1),
        span_offsets=roles[0],
        span_roles=roles[1].astype(np.uint8),
        span_ends=ends[1].astype(np.int32),
        domains=Labels(numpy_of(domains.indices).astype(np.int32), domains.dictionary.to_pylist()),
        weights=numpy_of(columns["weight"]).astype(np.float64),
        written=np.full(table.num_rows, written),
    )


def _list_values(array: pa.Array) -> tuple[Int64, np.ndarray]:
    """Offsets from 0 and flat values of a list column."""
    offsets = numpy_of(array.offsets).astype(np.int64)
    values = numpy_of(array.values)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], values

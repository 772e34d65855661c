"""The Parquet tables of a cache: samples, responses and logits; written and read with checksums.

Bytes are a function of the rows: no dictionary, fixed compression, page checksums on. A reader
verifies page checksums too (pyarrow does neither by default).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cachekd.data import limits
from cachekd.data.packed import Keys
from cachekd.errors import CorruptCache
from cachekd.store.pages import check_pages
from cachekd.types import Int32

KEY = pa.binary(16)
SAMPLES = pa.schema(
    [
        pa.field("sample_id", KEY, nullable=False),
        pa.field("key", KEY, nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("prompt_length", pa.int32()),
        pa.field("span_roles", pa.list_(pa.field("element", pa.uint8(), nullable=False))),
        pa.field("span_ends", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("order", pa.int64(), nullable=False),
    ]
)
RESPONSES = pa.schema(
    [
        pa.field("prompt", KEY, nullable=False),
        pa.field("number", pa.int32(), nullable=False),
        pa.field("response", pa.list_(pa.field("element", pa.int32(), nullable=False))),
    ]
)
LOGITS = pa.schema(
    [
        pa.field("key", KEY, nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("n_entries", pa.int64(), nullable=False),
        pa.field("input_ids", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        pa.field("targets", pa.large_binary(), nullable=False),
    ]
)
_GROUP_BYTES = 1 << 20
_GROUP_ROWS = 4096


def write_table(
    columns: Mapping[str, Sequence[Any]], schema: pa.Schema, metadata: Mapping[str, str]
) -> pa.Buffer:
    """A table as the bytes of a Parquet file.

    Args:
        columns: values of each column of the schema, or Arrow arrays of its type.
        schema: names and types.
        metadata: key-value metadata of the file.
    """
    schema = schema.with_metadata({key: value for key, value in metadata.items()})
    table = pa.table(
        {
            name: values
            if isinstance(values := columns[name], pa.Array)
            else pa.array(values, schema.field(name).type)
            for name in schema.names
        },
        schema=schema,
    )
    sink = pa.BufferOutputStream()
    per_row = max(1, table.nbytes // max(1, table.num_rows))
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, min(_GROUP_ROWS, _GROUP_BYTES // per_row)),
        compression={name: "NONE" if name == "targets" else "ZSTD" for name in schema.names},
        use_dictionary=False,
        write_page_checksum=True,
        store_schema=True,
    )
    return sink.getvalue()


@dataclass(frozen=True, slots=True, eq=False)
class OpenTable:
    """A Parquet file whose sizes and columns are known to be possible.

    Attributes:
        name: for messages.
        file: of the library. Its ``metadata`` is not asked: a footer that contradicts itself ends
            the process there, while reading raises an error.
        rows: of each row group.
        schema: columns and metadata.
    """

    name: str
    file: pq.ParquetFile
    rows: tuple[int, ...]
    schema: pa.Schema


def open_table(
    name: str,
    data: pa.Buffer,
    schema: pa.Schema,
    *,
    rows: int = limits.TABLE_ROWS,
    values: int | None = None,
) -> OpenTable:
    """A Parquet file of the cache, its columns, sizes and pages checked before one is unpacked.

    Args:
        name: of the file, for messages.
        data: the whole file.
        schema: its columns.
        rows: most rows.
        values: most values of a column of lists; else `limits.ROW_VALUES` for each of these rows.

    Raises:
        CorruptCache: it is no such table, or unpacks to more than that.
    """
    try:
        groups = check_pages(
            memoryview(data),
            rows=rows,
            columns=len(schema.names),
            values=rows * limits.ROW_VALUES if values is None else values,
            text=rows * limits.ROW_TEXT,
        )
        file = pq.ParquetFile(
            pa.BufferReader(data),
            page_checksum_verification=True,
            thrift_string_size_limit=limits.FOOTER_BYTES,
            thrift_container_size_limit=limits.FOOTER_BYTES,
        )
        found = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptCache(
            f"{name} cannot be opened as a Parquet table of a cache: {error}; it was altered"
        ) from error
    if not found.equals(schema):
        raise CorruptCache(
            f"{name}: expected the columns {', '.join(schema.names)} of their types; "
            f"found {', '.join(found.names)[:300]}"
        )
    return OpenTable(name, file, tuple(groups), found)


def read_table(
    name: str, data: pa.Buffer, schema: pa.Schema, rows: int = limits.TABLE_ROWS
) -> pa.Table:
    """All rows of a table of the cache, one row group after another (errors of `open_table`)."""
    table = open_table(name, data, schema, rows=rows)
    groups = [read_group(table, group) for group in range(len(table.rows))]
    return pa.Table.from_batches(groups, table.schema)


def read_group(table: OpenTable, group: int) -> pa.RecordBatch:
    """One row group as one record batch (errors of `open_table`)."""
    try:
        found = table.file.read_row_group(group)
        found.validate(full=True)
        (batch,) = found.combine_chunks().to_batches()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptCache(f"{table.name}, row group {group} cannot be read: {error}") from error
    if batch.num_rows != table.rows[group]:
        raise CorruptCache(f"{table.name}, row group {group}: {batch.num_rows} rows are found")
    return batch


def numpy_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Values of a column without nulls, not copied; unlike ``to_numpy``, loads no pandas."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.from_dlpack(array)


def flat_column(
    values: np.ndarray, kind: pa.DataType, valid: NDArray[np.bool_] | None = None
) -> pa.Array:
    """A column over a numpy array, not copied: like ``pa.array``, but loads no pandas.

    Args:
        values: of the width of ``kind``, [P].
        kind: Arrow type.
        valid: False where there is no value, [P].
    """
    mask = None
    if valid is not None and not valid.all():
        mask = pa.py_buffer(np.packbits(valid, bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(kind, len(values), [mask, data])


def digests_column(keys: Keys) -> pa.Array:
    """A column of digests."""
    return pa.Array.from_buffers(KEY, len(keys), [None, pa.py_buffer(keys.data)])


def list_column(offsets: np.ndarray, values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """A column of lists: int32 offsets [P+1] into flat values."""
    flat = flat_column(values, kind.value_type)
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets))]
    return pa.Array.from_buffers(kind, len(offsets) - 1, buffers, children=[flat])


def ints_or(column: pa.Array, default: int) -> Int32:
    """Values of an int32 column, copied, ``default`` where there is none; loads no pandas."""
    part = slice(column.offset, column.offset + len(column))
    valid, data = column.buffers()
    values = np.frombuffer(data, np.int32)[part].copy() if len(column) else np.empty(0, np.int32)
    if valid is not None:
        bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[part]
        values[bits == 0] = default
    return values


def whole_of(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    # Of an empty column without a chunk others make a list first, for which pandas is loaded.
    return column.combine_chunks() if column.num_chunks else pa.nulls(0, column.type)


def packed_of(column: pa.Array) -> Keys:
    """Digests of a column, copied."""
    if not len(column):
        return Keys.of([])
    array = np.frombuffer(column.buffers()[1], f"S{KEY.byte_width}")
    return Keys(array[column.offset : column.offset + len(column)].copy())


def footer_bytes(data: pa.Buffer) -> bytes:
    """The footer of a Parquet file: metadata, its length and the closing magic."""
    view = memoryview(data)
    length = int.from_bytes(view[-8:-4], "little")
    return bytes(view[max(0, len(view) - length - 8) :])

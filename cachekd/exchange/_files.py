"""Tables of the files of a source, and lists in them as flat arrays.

Comes in: files and folders, local or fsspec URLs. Goes out: record batches of Parquet, Arrow or
JSONL files, a few rows at a time; and list columns as offsets and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cachekd.errors import DataError
from cachekd.exchange import Broken
from cachekd.exchange._footers import refuse_bomb
from cachekd.exchange._json_lines import rows
from cachekd.exchange._sources import File, files_of
from cachekd.store.tables import numpy_of
from cachekd.types import Int64

ROWS = 16
"""Documents read at once: lists of lists are large."""
_TABLES = (".parquet", ".arrow", ".jsonl")
_COLUMNS: Mapping[str, frozenset[str]] = {
    "distillkit": frozenset({"input_ids", "compressed_logprobs", "bytepacked_indices"}),
    "distillkit (legacy)": frozenset({"input_ids", "packed_indices", "exact_values", "coeffs"}),
    "axolotl": frozenset({"input_ids", "target_token_ids", "target_logprobs"}),
    "arrow": frozenset({"input_ids", "token_ids", "logprobs"}),
    "openai": frozenset({"choices"}),
}


Batch = tuple[str, int, pa.RecordBatch | Broken]
"""Name of a file, number of the first row, and rows; or a line of JSONL that holds none."""


def tables(
    sources: Sequence[str], columns: Sequence[str], wanted: str
) -> tuple[Iterator[Batch], list[str], int | None]:
    """Rows of Parquet, Arrow and JSONL files.

    Args:
        sources: files or folders.
        columns: those that every file must have.
        wanted: name of the format, for messages.

    Returns:
        batches, the columns of the first file, and how many rows there are, where that is cheap to
        know.

    Raises:
        DataError: a file is missing, of another kind or format, or has no rows.
    """
    files = files_of(sources, _TABLES)
    names = [_names(file) for file in files]
    for file, found in zip(files, names, strict=True):
        refuse_columns(file.name, found, columns, wanted)
    counted = [_count(file) for file in files if _is_parquet(file)]
    total = sum(counted) if len(counted) == len(files) else None
    if total == 0:
        raise DataError(f"{files[0].name}: expected rows; the source is empty")
    return _batches(files, columns), names[0], total


def refuse_columns(name: str, found: Sequence[str], columns: Sequence[str], wanted: str) -> None:
    """Refuse a table without these columns.

    Raises:
        DataError: says what was expected and found, and which format it looks like.
    """
    missing = [column for column in columns if column not in found]
    if not missing:
        return
    like = [other for other, signs in _COLUMNS.items() if signs <= {*found}]
    hint = f" Did you mean --format {like[0].partition(' ')[0]}?" if like else ""
    raise DataError(
        f"{name}: {wanted} has the columns {', '.join(columns)}; of them "
        f"{', '.join(missing)} is missing. Found: {', '.join(found)[:300] or 'none'}.{hint}"
    )


def _is_parquet(file: File) -> bool:
    return file.name.endswith(".parquet")


def _count(file: File) -> int:
    with _readable(file), file.open() as stream:
        return int(pq.ParquetFile(stream).metadata.num_rows)


def _names(file: File) -> list[str]:
    """Columns of a table."""
    if not file.name.endswith(_TABLES):
        hint = " Did you mean --format megatron?" if file.name.endswith(".tar") else ""
        raise DataError(f"{file.name}: expected a file ending in {', '.join(_TABLES)}.{hint}")
    with _readable(file):
        if _is_parquet(file):
            with file.open() as stream:
                refuse_bomb(stream, file.name)
                return list(pq.ParquetFile(stream).schema_arrow.names)
        batches = (batch for _, batch in _rows(file) if not isinstance(batch, Broken))
        return next((list(batch.schema.names) for batch in batches), [])


def _batches(files: Sequence[File], columns: Sequence[str]) -> Iterator[Batch]:
    found = False
    for file in files:
        with _readable(file):
            for first, batch in _rows(file, columns):
                found = True
                yield file.name, first, batch
    if not found:
        raise DataError(f"{files[0].name}: expected rows; the source is empty")


def _rows(file: File, columns: Sequence[str] = ()) -> Iterator[tuple[int, pa.RecordBatch | Broken]]:
    """Rows of a file, with the number of the first one; of JSONL, the line."""
    with file.open() as stream:
        if file.name.endswith(".jsonl"):
            yield from rows(stream, file.name, columns)
            return
        first = 0
        for batch in _parquet(stream) if _is_parquet(file) else _arrow(stream):
            yield first, batch
            first += batch.num_rows


def _parquet(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    # Pages of writers that put no checksums there are read as they are.
    file = pq.ParquetFile(stream, page_checksum_verification=True)
    yield from file.iter_batches(batch_size=ROWS)


def _arrow(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    """Batches of an Arrow stream, as `datasets` saves them, or file."""
    try:
        batches: Any = pa.ipc.open_stream(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        file = pa.ipc.open_file(stream)
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            yield batch.slice(start, ROWS)


class _readable:
    """Within, the errors of reading a file are `DataError`s that name it."""

    def __init__(self, file: File) -> None:
        self._name = file.name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pa.ArrowException | OSError | EOFError | MemoryError):
            raise DataError(f"{self._name}: the file cannot be read: {error}") from error


def list_of(array: pa.Array) -> tuple[Int64, pa.Array]:
    """Offsets int64 [N + 1] into the values of a list column, and the values.

    Raises:
        DataError: the column holds no lists.
    """
    if pa.types.is_fixed_size_list(array.type):
        places = array.offset + np.arange(len(array) + 1, dtype=np.int64)
        return places * array.type.list_size, array.values
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise DataError(f"expected a column of lists; found {array.type}")
    return numpy_of(array.offsets).astype(np.int64), array.values


def numbers(values: pa.Array, dtype: Any) -> np.ndarray:
    """Values of a number column; nulls are NaN, of whole numbers -1.

    Words of 64 bits may stand as signed numbers.

    Raises:
        DataError: they are no numbers.
    """
    words = np.dtype(dtype) == np.uint64 and pa.types.is_signed_integer(values.type)
    try:
        found = values.cast(pa.from_numpy_dtype(dtype), safe=not words)
        if found.null_count:
            found = found.fill_null(-1 if np.issubdtype(dtype, np.integer) else float("nan"))
        return numpy_of(found)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"expected numbers; found {values.type}: {error}") from error

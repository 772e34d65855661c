"""What a Parquet file unpacks to, read from its footer and page headers before it is unpacked.

Comes in: the bytes of a file. Goes out: the rows of its row groups, or a `ValueError`. A footer
says what its writer likes; the reader of the library allocates what each page header says, and a
footer that contradicts itself can end the process there. So both are read here first: pages lie
one after another within their chunk, are plain data with a checksum, and unpack to no more than
the rows can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cachekd.data import limits
from cachekd.store.thrift import Reader, Struct

# Fields of FileMetaData, RowGroup, ColumnChunk, ColumnMetaData and PageHeader.
_ROWS, _GROUPS = 3, 4
_COLUMNS, _GROUP_ROWS = 1, 3
_ELSEWHERE, _ABOUT = 1, 3
_KIND, _ENCODINGS, _PATH, _CODEC, _VALUES, _BYTES, _PAGES_AT = 1, 2, 3, 4, 5, 7, 9
_INDEX_AT, _DICTIONARY_AT = 10, 11
_PAGE, _UNPACKED, _PACKED, _CRC, _DATA = 1, 2, 3, 4, 5

_PLAIN = frozenset([0, 3, 4])  # PLAIN, and RLE and BIT_PACKED of levels
_WIDTHS = {1: 4, 2: 8, 5: 8, 7: 16}  # INT32, INT64, DOUBLE, FIXED_LEN_BYTE_ARRAY
_TEXT = 6  # BYTE_ARRAY
_NOT_PACKED, _ZSTD = 0, 6
_HEADER_BYTES = 1 << 16
_SLACK = 1 << 20


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One column of one row group: its name, where it lies, and what it says of itself."""

    name: str
    kind: int
    start: int
    stop: int
    values: int
    packed: bool


def check_pages(data: memoryview, *, rows: int, columns: int, values: int, text: int) -> list[int]:
    """Rows of each row group of a file whose pages unpack to no more than its rows can hold.

    Args:
        data: the whole file.
        rows: most rows.
        columns: how many columns, those within lists each.
        values: most values of each column of lists, all row groups together.
        text: most bytes of all packed columns of text together.

    Raises:
        ValueError: says what is wrong.
    """
    groups = _groups(data, rows)
    end, lists, texts = 4, dict[str, int](), 0
    for group, count in groups:
        if len(group[_COLUMNS]) != columns:
            raise ValueError(f"a row group of {len(group[_COLUMNS])} columns, not {columns}")
        for column in group[_COLUMNS]:
            chunk = _chunk(column, count, len(data))
            if chunk.start < end:
                raise ValueError("two columns share bytes")
            end = chunk.stop
            texts += _check_chunk(data, chunk)
            if "." in chunk.name:
                lists[chunk.name] = lists.get(chunk.name, 0) + chunk.values
    if max(lists.values(), default=0) > values:
        raise ValueError(f"a column of lists has {max(lists.values())} values, not {values}")
    if texts > text + _SLACK:
        raise ValueError(f"its text unpacks to {texts} bytes; at most {text} are read")
    return [count for _, count in groups]


def column_bytes(data: memoryview) -> dict[str, int]:
    """Bytes of each column of a file, all row groups together, as they lie in it.

    Columns within lists count for the list. What is left of the file is its footer.

    Raises:
        ValueError: the footer is that of no table of a cache.
    """
    found: dict[str, int] = {}
    for group, count in _groups(data, limits.TABLE_ROWS):
        for column in group[_COLUMNS]:
            chunk = _chunk(column, count, len(data))
            name = chunk.name.partition(".")[0]
            found[name] = found.get(name, 0) + chunk.stop - chunk.start
    return found


def _groups(data: memoryview, rows: int) -> list[tuple[Struct, int]]:
    """Row groups of a footer, with their rows; those of an empty table are left out."""
    length = int.from_bytes(data[-8:-4], "little")
    if not 0 < length <= min(limits.FOOTER_BYTES, len(data) - 12):
        raise ValueError(f"a footer of {length} bytes; at most {limits.FOOTER_BYTES} are read")
    footer = _struct(bytes(data[len(data) - 8 - length : len(data) - 8]))[0]
    whole, groups = footer.get(_ROWS), footer.get(_GROUPS)
    if not isinstance(whole, int) or not 0 <= whole <= rows:
        raise ValueError(f"{whole!r:.40} rows; at most {rows} are read")
    if not isinstance(groups, list) or len(groups) > limits.ROW_GROUPS:
        raise ValueError(f"more than {limits.ROW_GROUPS} row groups, or none")
    counts = [_rows_of(group) for group in groups]
    if whole and min(counts, default=0) < 1:
        raise ValueError("a row group has no rows")
    if sum(counts) != whole:
        raise ValueError(f"{whole} rows in row groups of {sum(counts)}")
    if not all(isinstance(group.get(_COLUMNS), list) for group in groups):
        raise ValueError("a row group has no columns")
    return list(zip(groups, counts, strict=True)) if whole else []


def _rows_of(group: Any) -> int:
    count = group.get(_GROUP_ROWS) if isinstance(group, dict) else None
    return count if type(count) is int else -1


def _struct(data: bytes) -> tuple[Struct, int]:
    """A struct, and where it ends."""
    reader = Reader(data)
    try:
        return reader.struct(), reader.place
    except IndexError as error:
        raise ValueError("a footer or page header ends early") from error


def _chunk(column: Any, rows: int, size: int) -> _Chunk:
    """A column of a row group of so many rows, in a file of this size."""
    about = column.get(_ABOUT) if isinstance(column, dict) else None
    if not isinstance(about, dict) or _ELSEWHERE in column:
        raise ValueError("a column lies in another file, or says nothing of itself")
    path, encodings = about.get(_PATH), about.get(_ENCODINGS)
    numbers = [about.get(field) for field in (_KIND, _CODEC, _VALUES, _BYTES, _PAGES_AT)]
    if not isinstance(path, list) or not all(isinstance(part, bytes) for part in path):
        raise ValueError("a column has no name")
    if not all(type(number) is int for number in numbers) or not isinstance(encodings, list):
        raise ValueError("a column lacks its sizes")
    name = ".".join(part.decode(errors="replace") for part in path)
    kind, codec, values, length, start = (int(number) for number in numbers if number is not None)
    if _DICTIONARY_AT in about or _INDEX_AT in about or not _PLAIN.issuperset(encodings):
        raise ValueError(f"{name:.80} has a dictionary, or is not encoded plainly: {encodings}")
    if codec not in (_NOT_PACKED, _ZSTD) or kind not in (*_WIDTHS, _TEXT):
        raise ValueError(f"{name:.80} is packed with {codec}, or of type {kind}")
    if not 0 <= start <= start + length <= size or length < 0:
        raise ValueError(f"{name:.80} reaches out of the file")
    if values < rows or ("." not in name and values != rows):
        raise ValueError(f"{name:.80} has {values} values in {rows} rows")
    return _Chunk(name, kind, start, start + length, values, codec == _ZSTD)


def _check_chunk(data: memoryview, chunk: _Chunk) -> int:
    """Bytes of text that a column unpacks to; other columns are compared with their values."""
    unpacked = _unpacked(data, chunk)
    if chunk.kind == _TEXT:
        return unpacked if chunk.packed else 0
    bound = (_WIDTHS[chunk.kind] + 1) * chunk.values + _SLACK // 16
    if unpacked > bound:
        raise ValueError(f"{chunk.name:.80} unpacks to {unpacked} bytes; its rows hold {bound}")
    return 0


def _unpacked(data: memoryview, chunk: _Chunk) -> int:
    """Bytes that the pages of a chunk unpack to, as their headers say."""
    place, total, values = chunk.start, 0, 0
    while place < chunk.stop:
        header, length = _struct(bytes(data[place : min(chunk.stop, place + _HEADER_BYTES)]))
        numbers = [header.get(field) for field in (_PAGE, _UNPACKED, _PACKED, _CRC)]
        page = header.get(_DATA)
        held = page.get(1) if isinstance(page, dict) else None
        if not all(type(number) is int for number in (*numbers, held)):
            raise ValueError("a page is no plain page of data with a checksum")
        kind, unpacked, packed, _ = (int(number) for number in numbers if number is not None)
        if kind != 0 or min(unpacked, packed, int(held or 0)) < 0:
            raise ValueError("a page is no plain page of data")
        if not chunk.packed and packed != unpacked:
            raise ValueError("a page that is not packed states another size")
        place, total, values = place + length + packed, total + unpacked, values + int(held or 0)
    if place != chunk.stop or values != chunk.values:
        raise ValueError("the pages of a column do not fill it")
    return total

"""What the pages of a Parquet file unpack to, read from their headers before any is unpacked.

Comes in: the bytes of a file and its footer. Goes out: nothing, or a `ValueError`. A footer says
what its writer likes; the reader of the library allocates what each page header says. So headers
(Thrift, compact protocol) are walked here: pages lie one after another within their chunk, are
plain data with a checksum, and unpack to what the columns can hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

_ENCODINGS = frozenset(["PLAIN", "RLE", "BIT_PACKED"])
_WIDTHS = {"INT32": 4, "INT64": 8, "DOUBLE": 8}
_DATA_PAGE = 0
_PAGE, _UNPACKED, _PACKED, _CRC, _DATA = 1, 2, 3, 4, 5
_HEADER_BYTES = 1 << 16
_SLACK = 1 << 20
_BOOLEANS, _BYTE, _WHOLE, _DOUBLE, _BINARY = (1, 2), 3, (4, 5, 6), 7, 8
_LISTS, _MAP, _STRUCT = (9, 10), 11, 12
_DEPTH = 8


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One column of one row group: where it lies, and whether its pages are not compressed."""

    start: int
    stop: int
    values: int
    plain: bool


def check_pages(data: memoryview, footer: pq.FileMetaData, values: int, text: int) -> None:
    """Refuse a file whose pages could unpack to more than its rows can hold.

    Args:
        data: the whole file.
        footer: of the file, read by the library.
        values: most values of each column of lists, all row groups together.
        text: most bytes of all columns of text together.

    Raises:
        ValueError: says what is wrong.
    """
    end, lists, texts = 4, dict[str, int](), 0
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        if row_group.num_columns != footer.num_columns or row_group.num_rows < 0:
            raise ValueError(f"row group {group} has {row_group.num_rows} rows")
        if not row_group.num_rows:
            if footer.num_rows:
                raise ValueError(f"row group {group} has no rows")
            continue  # of an empty table: nothing is read
        for number in range(footer.num_columns):
            column = row_group.column(number)
            chunk, bound = _chunk(column, row_group.num_rows, len(data))
            if chunk.start < end:
                raise ValueError("two columns share bytes")
            end = chunk.stop
            unpacked = _unpacked(data, chunk)
            if bound is None:
                texts += 0 if chunk.plain else unpacked
            elif unpacked > bound:
                raise ValueError(
                    f"{column.path_in_schema} unpacks to {unpacked} bytes; its rows hold {bound}"
                )
            if "." in column.path_in_schema:
                lists[column.path_in_schema] = lists.get(column.path_in_schema, 0) + chunk.values
    if max(lists.values(), default=0) > values:
        raise ValueError(f"a column of lists has {max(lists.values())} values, not {values}")
    if texts > text + _SLACK:
        raise ValueError(f"its text unpacks to {texts} bytes; at most {text} are read")


def _chunk(column: pq.ColumnChunkMetaData, rows: int, size: int) -> tuple[_Chunk, int | None]:
    """A column's chunk, and the most bytes that it unpacks to where its values have a width."""
    name, values = column.path_in_schema, column.num_values
    if column.has_dictionary_page or not _ENCODINGS.issuperset(column.encodings):
        raise ValueError(f"{name} has a dictionary, or is encoded as {column.encodings}")
    if column.compression not in ("ZSTD", "UNCOMPRESSED"):
        raise ValueError(f"{name} is compressed with {column.compression}")
    start, stop = column.data_page_offset, column.data_page_offset + column.total_compressed_size
    if not 0 <= start <= stop <= size or values < rows:
        raise ValueError(f"{name} reaches out of the file, or lacks values")
    if "." not in name and values != rows:
        raise ValueError(f"{name} has {values} values in {rows} rows")
    kind = column.physical_type
    chunk = _Chunk(start, stop, values, plain=column.compression != "ZSTD")
    if kind == "BYTE_ARRAY":
        return chunk, None
    width = 16 if kind == "FIXED_LEN_BYTE_ARRAY" else _WIDTHS[kind]
    return chunk, (width + 1) * values + _SLACK // 16


def _unpacked(data: memoryview, chunk: _Chunk) -> int:
    """Bytes that the pages of a chunk unpack to, as their headers say."""
    place, total, values = chunk.start, 0, 0
    while place < chunk.stop:
        header, body = _page(data, place, chunk.stop)
        packed, unpacked = header[_PACKED], header[_UNPACKED]
        if header[_PAGE] != _DATA_PAGE or _CRC not in header or min(packed, unpacked) < 0:
            raise ValueError("a page is no plain page of data with a checksum")
        if chunk.plain and packed != unpacked:
            raise ValueError("a page that is not compressed states another size")
        place, total, values = body + packed, total + unpacked, values + header[_DATA]
    if place != chunk.stop or values != chunk.values:
        raise ValueError("the pages of a column do not fill it")
    return total


def _page(data: memoryview, place: int, stop: int) -> tuple[dict[int, int], int]:
    """Numbers of a page header by field, and where its body begins; `_DATA` is its values."""
    reader = _Thrift(bytes(data[place : min(stop, place + _HEADER_BYTES)]))
    header = {}
    try:
        for field, kind in reader.fields():
            if kind in _WHOLE:
                header[field] = reader.whole()
            elif field == _DATA and kind == _STRUCT:
                header[field] = reader.first_of_struct()
            else:
                reader.skip(kind)
    except IndexError as error:
        raise ValueError("a page header ends early") from error
    if not header.keys() >= {_PAGE, _UNPACKED, _PACKED, _DATA}:
        raise ValueError("a page header lacks its sizes")
    return header, place + reader.place


class _Thrift:
    """Reads the compact protocol of Thrift; a short buffer raises `IndexError`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a struct; the caller reads or skips its value."""
        number = 0
        while head := self._byte():
            step = head >> 4
            number = number + step if step else self.whole()
            yield number, head & 15

    def whole(self) -> int:
        """A whole number in zigzag."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def first_of_struct(self) -> int:
        """The first whole number of a struct, which is skipped."""
        found = -1
        for number, kind in self.fields():
            if number == 1 and kind in _WHOLE:
                found = self.whole()
            else:
                self.skip(kind)
        return found

    def skip(self, kind: int, depth: int = _DEPTH) -> None:
        """Go past a value."""
        if not depth:
            raise ValueError("a page header is nested too deep")
        if kind == _BYTE:
            self.place += 1
        elif kind in _WHOLE:
            self._varint()
        elif kind == _DOUBLE:
            self.place += 8
        elif kind == _BINARY:
            length = self._varint()
            self.place += length
        elif kind == _STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth - 1)
        elif kind in _LISTS:
            self._skip_list(depth)
        elif kind not in _BOOLEANS:
            raise ValueError(f"a page header holds a value of type {kind}")

    def _skip_list(self, depth: int) -> None:
        head = self._byte()
        count = head >> 4 if head >> 4 != 15 else self._varint()
        if count > _HEADER_BYTES:
            raise ValueError("a page header holds a long list")
        for _ in range(count):
            self.skip(_BYTE if head & 15 in _BOOLEANS else head & 15, depth - 1)

    def _byte(self) -> int:
        value = self._data[self.place]
        self.place += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of a page header is too long")

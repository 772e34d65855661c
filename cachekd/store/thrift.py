"""Thrift's compact protocol, read: what the footers and page headers of Parquet are written in.

Comes in: bytes. Goes out: structs as dictionaries by field number, with whole numbers, bytes, lists
and structs as values. A short buffer raises `IndexError`, what is no such text `ValueError`; what
is made is never much larger than the bytes.
"""

from __future__ import annotations

from typing import Any

_TRUE, _FALSE, _BYTE, _WHOLE, _DOUBLE, _BINARY = 1, 2, 3, (4, 5, 6), 7, 8
_LISTS, _STRUCT = (9, 10), 12
_DEPTH = 12
Struct = dict[int, Any]


class Reader:
    """Reads structs one after another.

    Attributes:
        place: where the next one begins.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def struct(self, depth: int = _DEPTH) -> Struct:
        """The fields of a struct; of a field that comes twice the last."""
        if not depth:
            raise ValueError("a struct is nested too deep")
        found: Struct = {}
        number = 0
        while head := self._byte():
            step = head >> 4
            number = number + step if step else _zigzag(self._varint())
            kind = head & 15
            found[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _WHOLE:
            return _zigzag(self._varint())
        if kind == _BINARY:
            return self._take(self._varint())
        if kind == _STRUCT:
            return self.struct(depth - 1)
        if kind in _LISTS:
            return self._list(depth)
        if kind == _DOUBLE:
            return self._take(8)
        if kind in (_TRUE, _FALSE, _BYTE):  # a boolean of a list takes a byte
            return self._byte()
        raise ValueError(f"a value of type {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 != 15 else self._varint()
        if count > len(self._data) - self.place:  # each takes a byte at least
            raise ValueError("a list is longer than the bytes that hold it")
        return [self._value(head & 15, depth) for _ in range(count)]

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self.place:
            raise IndexError("a value is longer than the bytes that hold it")
        self.place += size
        return self._data[self.place - size : self.place]

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
                raise ValueError("a number is too long")


def _zigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)

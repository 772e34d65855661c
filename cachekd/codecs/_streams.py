"""Streams of unsigned integers as byte planes in one zstd frame, a block each.

All low bytes of a stream come first, then all second bytes, and so on, as many planes as its
largest value needs. Each stream begins a zstd block of its own, so that its bytes get a Huffman
table of their own; the frame states its content size and carries a checksum.

Content: one byte a stream, its number of planes; then the planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from cachekd.codecs._frames import unpack_frame
from cachekd.errors import CorruptCache

_LEVEL = 3
_FLUSH_BYTES = 128
MAX_PLANES = 4
Stream = NDArray[Any]


def pack(streams: Sequence[Stream]) -> bytes:
    """One frame of the streams, values 0 to 2^32 - 1."""
    split = [_planes(stream) for stream in streams]
    parts = [bytes(len(planes) for planes in split), *(b"".join(planes) for planes in split)]
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    frame = compressor.compressobj(size=sum(map(len, parts)))
    out, pending = [], 0
    for part in parts:
        out.append(frame.compress(part))
        pending += len(part)
        if pending >= _FLUSH_BYTES:
            out.append(frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
            pending = 0
    return b"".join([*out, frame.flush()])


def _planes(stream: Stream) -> list[bytes]:
    """Byte planes of a stream; none for one whose values are all 0."""
    if stream.dtype == np.uint8:
        return [stream.tobytes()] if stream.any() else []
    values = stream.astype(np.uint32)
    width = (int(values.max(initial=0)).bit_length() + 7) // 8
    planes = values.view(np.uint8).reshape(-1, 4)[:, :width]
    return [np.ascontiguousarray(planes[:, i]).tobytes() for i in range(width)]


class Frame:
    """An unpacked frame whose streams are read one after another.

    Args:
        data: the zstd frame.
        streams: how many streams it holds.
        limit: most bytes that its content may have; checked before anything is allocated.

    Raises:
        CorruptCache: it is no such frame.
    """

    def __init__(self, data: bytes, streams: int, limit: int) -> None:
        try:
            self._raw = unpack_frame(data, streams, limit)
        except ValueError as error:
            raise CorruptCache(f"targets of a record: {error}") from error
        self._widths = self._raw[:streams]
        self._next = 0
        self._place = streams
        if max(self._widths, default=0) > MAX_PLANES:
            raise CorruptCache("a stream of a record has too many planes")

    def take(self, count: int) -> Stream:
        """The next stream of this many values: uint8 if one plane suffices, else int64."""
        width = self._widths[self._next]
        if self._place + count * width > len(self._raw):
            raise CorruptCache("a record ends before its targets do")
        planes = [
            np.frombuffer(self._raw, np.uint8, count, self._place + count * i) for i in range(width)
        ]
        self._next += 1
        self._place += count * width
        if width <= 1:
            return planes[0] if planes else np.zeros(count, np.uint8)
        values = planes[0].astype(np.int64)
        for i, plane in enumerate(planes[1:], 1):
            values |= plane.astype(np.int64) << (8 * i)
        return values

    def finish(self) -> None:
        """Refuse bytes that no stream owns."""
        if self._place != len(self._raw) or self._next != len(self._widths):
            raise CorruptCache("a record holds more bytes than its targets need")
